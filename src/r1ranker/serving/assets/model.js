// What the page shows, as data. In: a problem and its ranking, as traces hold them. Out: a view that only needs drawing.
// Identifiers are places in `candidates`, from 1; they never change while candidates leave.

const KINDS = {
  unknown_id: "names a candidate that is not in the pool",
  missing: "holds no answer",
  truncated: "was cut by the token limit before it answered",
  malformed: "holds an answer that is not in the stated form",
  incomplete: "leaves some of the pool out",
  duplicate: "names some candidates twice",
};

// What is drawn of one ranking. problem may be null: then only docids of the final order are known, and identifiers have no texts.
function viewOf(name, problem, ranking, extra = {}) {
  const steps = ranking.steps || [];
  const candidates = (problem && problem.candidates) || [];
  const idOf = new Map(candidates.map((candidate, i) => [candidate.docid, i + 1]));
  const order = ranking.docids.map((docid) => ({ docid, id: idOf.get(docid) || null }));
  const view = {
    name,
    problem,
    steps,
    order,
    candidates,
    usage: ranking.usage || {},
    error: ranking.error || "",
    broken: steps.filter((step) => step.answer.kind !== "valid").length,
    asked: [...new Set(steps.flatMap((step) => step.pool))].sort((a, b) => a - b),
    size: Math.max(candidates.length, ranking.docids.length),
    warnings: extra.warnings || [],
    ranking,
  };
  view.wanted = wantedOf(view, extra.ask);
  view.left = leavings(view);
  return view;
}

// Whether steps removed the worst, selected the best, or made one list. A trace does not say so: the final order does.
function wantedOf(view, said) {
  const moves = view.steps.filter((step) => step.removed.length && step.pool.length > step.removed.length);
  if (!moves.length) return "list";
  if (said === "best" || said === "worst") return said;
  const place = new Map(view.order.map((entry, i) => [entry.id, i]));
  if (!place.size || !view.candidates.length) return "unknown";
  let ahead = 0;
  for (const step of moves) {
    const gone = new Set(step.removed);
    const at = place.get(step.removed[0]);
    for (const id of step.pool) if (!gone.has(id)) ahead += place.get(id) > at ? 1 : -1;
  }
  return ahead > 0 ? "best" : "worst";
}

// Step by identifier at which it left for good; one that was in a later pool and stayed there has not left.
function leavings(view) {
  const left = new Map();
  view.steps.forEach((step, i) => {
    for (const id of step.pool) left.delete(id);
    for (const id of step.removed) left.set(id, i + 1);
  });
  return left;
}

function textOf(view, id) {
  const candidate = view.candidates[id - 1];
  return candidate ? candidate.text : "";
}

function gainOf(view, id) {
  const candidate = view.candidates[id - 1];
  return (candidate && view.problem.gains && view.problem.gains[candidate.docid]) || 0;
}

function isRelevant(view, id) {
  return gainOf(view, id) >= ((view.problem && view.problem.relevant_at) || 1);
}

const VERBS = { worst: "removed", best: "selected", list: "listed", unknown: "named" };

function verbOf(view) {
  return VERBS[view.wanted];
}

// One sentence on a step, for the heading, the slider and screen readers.
function stepWords(view, i) {
  const step = view.steps[i];
  const ids = step.removed.length ? step.removed : step.answer.ids;
  const named = ids.slice(0, 4).map((id) => `[${id}]`).join(" ") + (ids.length > 4 ? " …" : "");
  if (!step.removed.length) return `one list of ${step.pool.length}`;
  const chance = step.removed.length === 1 ? step.probabilities && step.probabilities[step.removed[0]] : undefined;
  return `${named} ${verbOf(view)} from ${step.pool.length}` + (chance === undefined ? "" : `, at ${percent(chance)}`);
}

function brokenWords(kind) {
  return kind === "valid" ? "" : `${kind}: the completion ${KINDS[kind] || "holds no valid answer"}`;
}

function percent(share) {
  const hundred = 100 * share;
  if (hundred > 0 && hundred < 0.1) return "<0.1\u00a0%";
  if (hundred > 99.9 && hundred < 100) return ">99.9\u00a0%";
  return `${hundred.toFixed(1)}\u00a0%`;
}

function number(value, digits = 4) {
  if (!value) return "0";
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 8 });
}

// Label and value of what a ranking cost. Money is in the currency of the price file.
function factsOf(view) {
  const u = view.usage;
  const milliseconds = 1000 * (u.seconds || 0);
  const facts = [
    ["calls", number(u.calls, 6)],
    ["tokens read", number(u.prompt_tokens, 9)],
    ["tokens written", number(u.generated_tokens, 9)],
    ["ms", number(milliseconds, milliseconds >= 100 ? Math.ceil(Math.log10(milliseconds + 1)) : 2)],
    ["money", number(u.cost, 3)],
  ];
  if (u.retries) facts.push(["retries", number(u.retries, 6)]);
  return facts;
}

// Pairs of candidates that two orders hold alike, of all pairs that are in both.
function agreement(a, b) {
  const place = new Map(b.order.map((entry, i) => [entry.docid, i]));
  const common = a.order.map((entry) => place.get(entry.docid)).filter((at) => at !== undefined);
  let alike = 0;
  for (let i = 0; i < common.length; i++) for (let j = i + 1; j < common.length; j++) alike += common[i] < common[j];
  return { alike, pairs: (common.length * (common.length - 1)) / 2, first: common[0] === 0 };
}

function queryOf(problem) {
  if (!problem) return "";
  return problem.query || (problem.history || []).join(" · ");
}

// Problems of an uploaded JSON Lines file; an Error names the line.
function readProblems(text) {
  const problems = [];
  text.split(/\r?\n/).forEach((line, i) => {
    if (!line.trim()) return;
    const where = `Line ${i + 1}`;
    let record;
    try {
      record = JSON.parse(line);
    } catch {
      throw new Error(`${where} is not JSON: write one object a line`);
    }
    const ok = record && Array.isArray(record.candidates) && record.candidates.every((c) => typeof c.text === "string");
    if (!ok) throw new Error(`${where} is no problem: it needs "candidates", each with a "text"`);
    problems.push(record);
  });
  if (!problems.length) throw new Error("The file holds no problems");
  return problems;
}

// State in the fragment of the address: base64url of JSON in UTF-8.
function toFragment(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return `#${btoa(binary).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "")}`;
}

function fromFragment(fragment) {
  try {
    const binary = atob(fragment.replace(/^#/, "").replace(/-/g, "+").replace(/_/g, "/"));
    const state = JSON.parse(new TextDecoder().decode(Uint8Array.from(binary, (c) => c.charCodeAt(0))));
    return state && typeof state === "object" ? state : null;
  } catch {
    return null; // a fragment that is none of ours says nothing
  }
}

// A command for a POSIX shell. The key is named, never written.
function curlOf(url, body, keyed) {
  const quoted = (text) => `'${text.replace(/'/g, `'\\''`)}'`;
  const key = keyed ? ' \\\n  -H "Authorization: Bearer $R1RANKER_KEY"' : "";
  return `curl ${quoted(url)} -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body))}`;
}
