// Ranking by the server that the page came from. In: what stands in the form. Out: one or two requests to /v1/rerank.

const RERANK = new URL("v1/rerank", location.href.split("#")[0]).href;
let uploaded = []; // problems of a file
let loaded = null; // the one whose texts stand in the form, while they are unchanged
let running = null; // stops what runs
let answered = []; // {request, answer} of what is drawn

async function startServing() {
  byId("ask").hidden = false;
  byId("rank").hidden = false;
  byId("about").textContent = "Watch a model rank: what left, when, and how sure it was";
  byId("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  byId("ask").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
  });
  for (const id of ["query", "documents"]) byId(id).addEventListener("input", () => { loaded = null; counted(); });
  byId("file").addEventListener("change", upload);
  byId("problem").addEventListener("change", () => load(uploaded[byId("problem").value]));
  byId("key").addEventListener("change", askModels);
  byId("results").replaceChildren(el("p", { class: "empty" }, "Give a query and candidates: the ranking and its steps stand here."));
  startTabs();
  counted();
  await askModels();
  window.addEventListener("hashchange", restore);
  restore();
}

// Headers of a call. The key stays in its field: it is in no link and in nothing that is copied.
function headers() {
  const key = byId("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

// The server's answer as JSON; an Error in words where it refuses.
async function call(url, body, signal) {
  const response = await fetch(url, {
    method: body ? "POST" : "GET", headers: headers(), signal, ...(body ? { body: JSON.stringify(body) } : {}),
  });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401) byId("key-field").hidden = false;
  const message = (answer.error && answer.error.message) || answer.message || response.statusText;
  throw new Error(`${response.status}: ${message}`);
}

// Rankers and routers that the key may use.
async function askModels() {
  let models = [];
  try {
    models = (await call("v1/models")).data;
    alertOf("");
  } catch (error) {
    alertOf(`The server does not name its rankers. ${error.message}`);
  }
  const named = (kind) => models.filter((model) => model.kind === kind).map((model) => model.id);
  const rankers = named("ranker");
  byId("model").replaceChildren(...rankers.map((name) => el("option", {}, name)));
  byId("model-b").replaceChildren(el("option", { value: "" }, "nothing"), ...rankers.map((name) => el("option", {}, name)));
  byId("model-b").closest(".field").hidden = rankers.length < 2;
  offerRouters(named("router"));
}

function documentsNow() {
  return byId("documents").value.split("\n").map((line) => line.trim()).filter(Boolean);
}

function counted() {
  const count = documentsNow().length;
  byId("count").textContent = count ? `(${count})` : "";
}

// A problem of the form: as uploaded while its texts are unchanged, else query and lines.
function problemNow() {
  if (loaded) return loaded;
  const candidates = documentsNow().map((text, i) => ({ docid: String(i), text }));
  return { query: byId("query").value.trim(), candidates };
}

async function upload() {
  const file = byId("file").files[0];
  byId("file").value = "";
  if (!file) return;
  try {
    uploaded = readProblems(await file.text());
  } catch (error) {
    alertOf(`${file.name}: ${error.message}`);
    return;
  }
  const labels = uploaded.map((problem, i) => `${problem.qid || i + 1}: ${queryOf(problem).slice(0, 80)}`);
  byId("problem").replaceChildren(...labels.map((label, i) => el("option", { value: i }, label)));
  byId("loaded").hidden = false;
  load(uploaded[0]);
  say(`${uploaded.length} problems of ${file.name}`);
}

function load(problem) {
  byId("query").value = queryOf(problem);
  byId("documents").value = problem.candidates.map((candidate) => candidate.text.replace(/\s+/g, " ")).join("\n");
  loaded = problem;
  counted();
  alertOf("");
}

// What a problem has beside its texts. Where it has a history, its titles are no query, though they stand in its field.
function besideTexts(problem) {
  const beside = { query: (problem.history || []).length ? problem.query || "" : queryOf(problem) };
  for (const name of ["scenario", "history", "objective", "instruction"]) {
    if (problem[name] && problem[name].length) beside[name] = problem[name];
  }
  return beside;
}

// A candidate as a model reads it, with its note.
function readOf(candidate) {
  return [candidate.text, candidate.note].filter(Boolean).join(" | ");
}

// The body for one ranker.
function bodyOf(problem, model) {
  const body = { model, ...besideTexts(problem), documents: problem.candidates.map(readOf) };
  const most = Number(byId("top_n").value);
  return { ...body, ...(most ? { top_n: most } : {}), explain: true };
}

async function submit() {
  if (running) {
    running.abort();
    return;
  }
  const problem = problemNow();
  if (!queryOf(problem) || !problem.candidates.length) {
    alertOf("A ranking needs a query and at least one candidate.");
    byId(queryOf(problem) ? "documents" : "query").focus();
    return;
  }
  const beside = byId("model-b").value;
  const models = [byId("model").value, ...(beside ? [beside] : [])];
  running = new AbortController();
  busy(true);
  try {
    answered = [];
    for (const model of models) { // one after the other, so that neither waits for the other's pass
      const request = bodyOf(problem, model || undefined);
      answered.push({ request, answer: await call(RERANK, request, running.signal) });
    }
    alertOf("");
    drawAnswers(problem);
  } catch (error) {
    alertOf(error.name === "AbortError" ? "Stopped." : `No ranking. ${error.message}`);
  } finally {
    running = null;
    busy(false);
  }
}

function busy(on) {
  byId("go").textContent = on ? "Stop" : "Rank";
  byId("results").setAttribute("aria-busy", String(on));
  if (on) say("Ranking");
}

function drawAnswers(problem, state = {}) {
  stopAll();
  const views = answered.map(({ answer }) => explained(answer, problem));
  const changed = () => history.replaceState(null, "", toFragment(stateNow()));
  const tools = el(
    "div", { class: "tools" },
    copyButton("Copy permalink", () => { changed(); return location.href; }),
    copyButton("Copy as curl", () => answered.map(({ request }) => curlOf(RERANK, request, !!byId("key").value)).join("\n\n")),
    copyButton("Copy as JSON", () => JSON.stringify(answered.length === 1 ? answered[0].answer : answered.map((a) => a.answer), null, 2)),
  );
  current = drawRuns(byId("results"), views, problem, problem.qid || "", { changed, tools, ...state });
  changed();
  const first = views[0].order[0];
  say(first ? `Ranked. First: ${first.id ? textOf(views[0], first.id) : first.docid}` : "No ranking");
}

// The answer's trace as a view; gains and priors of an uploaded problem are shown beside it, by place.
function explained(answer, problem) {
  const trace = answer.explain;
  if (!trace) throw new Error("The answer holds no trace.");
  const docids = trace.candidates.map((candidate) => candidate.docid);
  const renamed = (scores = {}) => {
    const known = problem.candidates.map((candidate, i) => [docids[i], scores[candidate.docid]]);
    return Object.fromEntries(known.filter(([, score]) => score !== undefined));
  };
  const candidates = problem.candidates.map((candidate, i) => ({ ...candidate, docid: docids[i] }));
  const shown = { ...problem, candidates, gains: renamed(problem.gains), prior: renamed(problem.prior) };
  return viewOf(answer.model, shown, trace, { warnings: answer.meta.warnings || [], ask: trace.ask });
}

function stateNow() {
  const state = { query: byId("query").value, documents: documentsNow() };
  if (loaded) Object.assign(state, { documents: loaded.candidates.map(readOf), problem: besideTexts(loaded) });
  for (const id of ["model", "model-b", "top_n"]) if (byId(id).value) state[id] = byId(id).value;
  return { ...state, steps: stepsNow(), picked: current.shared && current.shared.picked };
}

// Fill the form from the address. Nothing is sent: a link never spends anything by itself.
function restore() {
  const state = fromFragment(location.hash);
  if (!state || typeof state.query !== "string" || !Array.isArray(state.documents)) return;
  byId("query").value = state.query;
  byId("documents").value = state.documents.join("\n");
  for (const id of ["model", "model-b", "top_n"]) if (state[id]) byId(id).value = state[id];
  const candidates = state.documents.map((text, i) => ({ docid: String(i), text }));
  loaded = state.problem ? { ...state.problem, candidates } : null;
  counted();
  byId("go").focus();
}
