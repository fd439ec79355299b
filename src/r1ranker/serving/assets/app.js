// What the page does. In: the data in it, or answers of the server it came from. Out: drawings, and the address.

const DATA = JSON.parse(byId("data").textContent);
let current = { panels: [], shared: null }; // what is drawn now, for keys

function stepsNow() {
  return current.panels.map((panel) => panel.at);
}

function stopAll() {
  current.panels.forEach((panel) => panel.stop());
}

// What is wrong, in words; mild where it only says what there is not.
function alertOf(words, mild = false) {
  const box = byId("problem-alert");
  box.classList.toggle("mild", mild);
  box.textContent = words;
  box.hidden = !words;
}

// Typing, choosing and sliding have the keys to themselves.
function takesKeys(target) {
  return target.closest("input, textarea, select, [role=tab], pre") !== null;
}

document.addEventListener("keydown", (event) => {
  if (takesKeys(event.target) || event.ctrlKey || event.metaKey || event.altKey || byId("rank").hidden) return;
  const moves = {
    ArrowRight: (panel) => panel.show(panel.at + 1),
    ArrowLeft: (panel) => panel.show(panel.at - 1),
    Home: (panel) => panel.show(0),
    End: (panel) => panel.show(panel.view.steps.length - 1),
  };
  const others = { ArrowRight: "next", ArrowLeft: "previous" };
  if (event.shiftKey) {
    if (DATA.mode !== "traces" || !others[event.key]) return;
    byId(others[event.key]).click();
  } else {
    if (!moves[event.key] || !current.panels.length) return;
    current.panels.forEach(moves[event.key]);
  }
  event.preventDefault();
});

if (DATA.mode === "traces") startTraces(DATA);
else startServing();
