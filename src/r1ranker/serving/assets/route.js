// placeholder
function startTabs() {}
function offerRouters() {}
