// Finished rankings. In: {runs: [names], queries: [{qid, problem or null, rankings: [one a run, or null]}]}.

function startTraces(data) {
  byId("pick").hidden = false;
  byId("rank").hidden = false;
  byId("query-keys").hidden = false;
  const several = data.runs.length > 1;
  const broken = data.queries.filter((query) => query.rankings.some(isBroken)).length;
  const queries = `${data.queries.length} quer${data.queries.length === 1 ? "y" : "ies"}`;
  byId("about").textContent = `Traces of ${data.runs.join(", ")}: ${queries}, ${broken} with broken answers`;
  document.title = `${data.runs.join(", ")} · R1-Ranker`;
  fillRuns(data.runs, several);
  if (!broken) byId("only-broken").closest("label").hidden = true;
  const state = fromFragment(location.hash) || {};
  if (data.runs.includes(state.left)) byId("left").value = state.left;
  if (several && data.runs.includes(state.right)) byId("right").value = state.right;
  const wanted = data.queries.findIndex((query) => query.qid === state.qid);
  list(data, wanted < 0 ? undefined : wanted);
  showQuery(data, state);
  for (const id of ["left", "right"]) byId(id).addEventListener("change", () => showQuery(data, { steps: [], picked: null }));
  byId("queries").addEventListener("change", () => showQuery(data));
  byId("search").addEventListener("input", () => relist(data));
  byId("only-broken").addEventListener("change", () => relist(data));
  byId("previous").addEventListener("click", () => move(data, -1));
  byId("next").addEventListener("click", () => move(data, 1));
  window.addEventListener("hashchange", () => location.reload()); // another permalink was opened here
  byId("pick").addEventListener("submit", (event) => event.preventDefault());
}

function isBroken(ranking) {
  return !!ranking && (!!ranking.error || ranking.steps.some((step) => step.answer.kind !== "valid"));
}

function fillRuns(runs, several) {
  byId("left").append(...runs.map((name) => el("option", {}, name)));
  byId("right").append(el("option", { value: "" }, "nothing"), ...runs.map((name) => el("option", {}, name)));
  byId("left-field").hidden = byId("right-field").hidden = !several;
  if (several) byId("right").value = runs[1];
}

// Fill the choice of queries with those that match; `wanted` is the place of the one to show.
function list(data, wanted) {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const only = byId("only-broken").checked;
  const options = [];
  data.queries.forEach((query, i) => {
    const label = queryOf(query.problem);
    const searched = `${query.qid} ${label}`.toLowerCase();
    if (!words.every((word) => searched.includes(word)) || (only && !query.rankings.some(isBroken))) return;
    const mark = query.rankings.some(isBroken) ? " (broken)" : "";
    const short = label.length > 90 ? `${label.slice(0, 90)}…` : label;
    options.push(el("option", { value: i }, (short ? `${query.qid}: ${short}` : query.qid) + mark));
  });
  byId("queries").replaceChildren(...options);
  if (wanted !== undefined) byId("queries").value = String(wanted);
  byId("of").textContent = `Query, ${options.length} of ${data.queries.length}`;
}

function relist(data) {
  const before = byId("queries").value;
  list(data);
  const choice = byId("queries");
  if ([...choice.options].some((option) => option.value === before)) choice.value = before;
  else showQuery(data);
  ends();
}

function move(data, by) {
  const choice = byId("queries");
  const to = choice.selectedIndex + by;
  if (to < 0 || to >= choice.options.length) return;
  choice.selectedIndex = to;
  showQuery(data);
}

function ends() {
  const choice = byId("queries");
  byId("previous").disabled = choice.selectedIndex <= 0;
  byId("next").disabled = choice.selectedIndex >= choice.options.length - 1;
}

function showQuery(data, state = {}) {
  stopAll();
  ends();
  const query = data.queries[byId("queries").value];
  if (!query) {
    current = { panels: [], shared: null };
    byId("results").replaceChildren(el("p", { class: "empty" }, "No query matches."));
    return;
  }
  const names = [byId("left").value, byId("right").value].filter((name, i) => name && (i === 0 || name !== byId("left").value));
  const views = [];
  const missing = [];
  for (const name of names) {
    const ranking = query.rankings[data.runs.indexOf(name)];
    if (ranking) views.push(viewOf(name, query.problem, ranking));
    else missing.push(name);
  }
  alertOf(missing.length ? `${missing.join(" and ")} did not rank this query.` : textsMissing(query.problem), true);
  const changed = () => history.replaceState(null, "", toFragment(stateOf(query)));
  const tools = el(
    "div", { class: "tools" },
    copyButton("Copy permalink", () => { changed(); return location.href; }),
    copyButton("Copy as JSON", () => JSON.stringify({ problem: query.problem, rankings: views.map((view) => view.ranking) }, null, 2)),
  );
  current = drawRuns(byId("results"), views, query.problem, query.qid, { changed, tools, steps: state.steps, picked: state.picked });
  if (!("steps" in state)) say(`Query ${query.qid}: ${queryOf(query.problem)}`);
}

function textsMissing(problem) {
  return problem ? "" : "These traces hold no texts, and so no order as given: view them with --problems FILE.";
}

function stateOf(query) {
  const picked = current.shared && current.shared.picked;
  return { qid: query.qid, left: byId("left").value, right: byId("right").value, steps: stepsNow(), picked };
}
