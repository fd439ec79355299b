// The routing tab. In: a prompt and how much quality counts. Out: the LLMs in the order of /v1/route; none is asked.

const ROUTE = new URL("v1/route", location.href.split("#")[0]).href;
let routing = null; // stops the request that is under way
let waiting = 0; // a change of the slider is sent when it rests

function startTabs() {
  const tabs = [byId("tab-rank"), byId("tab-route")];
  for (const tab of tabs) {
    tab.addEventListener("click", () => openTab(tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = tabs[1 - tabs.indexOf(tab)];
      openTab(other);
      other.focus();
    });
  }
  byId("route-ask").addEventListener("submit", (event) => { event.preventDefault(); route(); });
  byId("wish").addEventListener("input", () => {
    wished();
    clearTimeout(waiting);
    if (byId("prompt").value.trim()) waiting = setTimeout(route, 250);
  });
  wished();
}

function openTab(tab) {
  for (const other of [byId("tab-rank"), byId("tab-route")]) {
    const on = other === tab;
    other.setAttribute("aria-selected", String(on));
    other.tabIndex = on ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !on;
  }
  byId("keys").hidden = tab.id === "tab-route";
}

// The tab is there where the server has routers.
function offerRouters(names) {
  byId("tabs").hidden = !names.length;
  byId("router").replaceChildren(...names.map((name) => el("option", {}, name)));
  byId("router").closest(".field").hidden = names.length < 2;
  if (!names.length) openTab(byId("tab-rank"));
}

function wished() {
  const value = Number(byId("wish").value);
  byId("wish").setAttribute("aria-valuetext", `${Math.round(100 * value)} of 100 for quality`);
  byId("wish-value").textContent = value.toFixed(2);
}

function routeBody() {
  return {
    model: byId("router").value,
    messages: [{ role: "user", content: byId("prompt").value.trim() }],
    router: { cost_quality: Number(byId("wish").value) },
  };
}

async function route() {
  if (!byId("prompt").value.trim()) {
    routeAlert("Routing needs a prompt.");
    byId("prompt").focus();
    return;
  }
  if (routing) routing.abort();
  const mine = (routing = new AbortController());
  byId("routed").setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    const answer = await call(ROUTE, routeBody(), mine.signal);
    routeAlert("");
    drawRouted(answer, performance.now() - began);
  } catch (error) {
    if (error.name !== "AbortError") routeAlert(`No order. ${error.message}`);
  } finally {
    if (routing === mine) {
      routing = null;
      byId("routed").setAttribute("aria-busy", "false");
    }
  }
}

function routeAlert(words) {
  byId("route-alert").textContent = words;
  byId("route-alert").hidden = !words;
}

function drawRouted(answer, milliseconds) {
  const before = new Map([...document.querySelectorAll("#routed [data-model]")].map((row) => [row.dataset.model, row.offsetTop]));
  const dearest = Math.max(...answer.order.map((entry) => entry.cost), 0);
  const rows = answer.order.map((entry, i) => llmRow(entry, i, dearest));
  const out = Object.entries(answer.left_out || {});
  byId("routed").replaceChildren(
    el("div", { class: "llm heads", "aria-hidden": "true" }, el("span"), el("span", {}, "LLM"), el("span", { class: "cost" }, "cost, about"), el("span", { class: "score" }, "score")),
    el("ol", {}, rows),
    out.length ? el("ul", { class: "left-out" }, out.map(([name, why]) => el("li", { class: "soft" }, `${name}: left out, ${why}`))) : "",
    el("p", { class: "soft note" }, `${answer.reason}. Answered in ${Math.round(milliseconds)} ms. Scores are no probabilities of a right answer.`),
    el("div", { class: "tools" }, copyButton("Copy as curl", () => curlOf(ROUTE, routeBody(), !!byId("key").value)), copyButton("Copy as JSON", () => JSON.stringify(answer, null, 2))),
  );
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    for (const row of rows) {
      const from = before.get(row.dataset.model);
      const by = from === undefined ? 0 : from - row.offsetTop;
      if (by) row.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], { duration: 260, easing: "ease-out" });
    }
  }
  say(`Order: ${answer.order.map((entry) => entry.model).join(", ")}`);
}

function llmRow(entry, i, dearest) {
  const bar = el("i", { "aria-hidden": "true" });
  bar.style.width = `${dearest ? (100 * entry.cost) / dearest : 0}%`;
  const score = entry.score === null || entry.score === undefined ? "–" : entry.score.toFixed(3);
  return el(
    "li", { class: "llm", "data-model": entry.model },
    el("span", { class: "place" }, `${i + 1}`),
    el("span", { class: "text" }, entry.model),
    el("span", { class: "cost" }, el("span", { class: "unseen" }, "estimated cost "), `$${number(entry.cost, 3)}`, bar),
    el("span", { class: "score" }, el("span", { class: "unseen" }, "score "), score),
  );
}
