// Drawing. In: views. Out: elements. Texts are only ever text nodes and attributes, never markup.

const ROW = 34; // pixels of one row of the order, as --row in the style
const SHOWN = 40; // rows drawn before "show all"

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const byId = (id) => document.getElementById(id);

// One live region for the page: what changed, in a few words.
function say(words) {
  byId("said").textContent = words;
}

// The query and what else the model knew of the asker.
function drawQuery(problem, qid) {
  const more = [];
  if (problem && problem.query && problem.history) more.push(["History", problem.history.join(" · ")]);
  if (problem && problem.objective) more.push(["Objective", problem.objective]);
  if (problem && problem.instruction) more.push(["Instruction", problem.instruction]);
  const label = [problem && problem.task, problem && problem.scenario, qid].filter(Boolean).join(" · ");
  return el(
    "div", { class: "query" },
    label && el("p", { class: "eyebrow" }, label),
    el("p", { class: "question" }, queryOf(problem) || `Query ${qid}`),
    more.map(([name, text]) => el("p", { class: "soft" }, `${name}: ${text}`)),
  );
}

// One ranking: facts, order and steps. `shared` tells its neighbour which candidate is picked.
class RunPanel {
  constructor(view, shared, step) {
    this.view = view;
    this.shared = shared;
    this.at = Math.min(Math.max(0, step || 0), Math.max(0, view.steps.length - 1));
    this.all = view.size <= SHOWN;
    this.node = el("article", { class: "run", "aria-label": `Ranking by ${view.name}` });
    this.draw();
  }

  draw() {
    const { view } = this;
    const alerts = [...view.warnings, ...(view.error ? [`No ranking: ${view.error}`] : [])];
    this.node.replaceChildren(
      el("h2", { class: "name" }, view.name),
      drawFacts(view),
      ...alerts.map((words) => el("p", { class: "alert" }, words)),
      el("div", { class: "panels" }, view.order.length ? this.drawOrder() : "", this.drawSteps()),
    );
    if (view.steps.length) this.show(this.at, true);
    this.mark();
  }

  drawOrder() {
    const { view } = this;
    const known = view.candidates.length > 0;
    const some = view.candidates.some((_, i) => gainOf(view, i + 1) && isRelevant(view, i + 1));
    const rows = this.all ? view.order : view.order.slice(0, SHOWN);
    const given = known ? view.candidates.slice(0, this.all ? undefined : SHOWN) : [];
    const height = Math.max(rows.length, given.length) * ROW;
    this.detail = el("div", { class: "detail", "aria-live": "polite" });
    return el(
      "section", { class: "card order", "aria-label": "Order" },
      el("h3", {}, "Order"),
      el(
        "div", { class: known ? "slopes" : "slopes bare" },
        known && el("p", { class: "head" }, "given"),
        known && el("span"),
        el("p", { class: "head" }, "final", some && el("span", { class: "key" }, el("i", { class: "good" }), "relevant")),
        known && el("ol", { class: "given" }, given.map((_, i) => el("li", {}, this.rowButton(i + 1, "given")))),
        known && this.drawLines(height),
        el("ol", { class: "final" }, rows.map((entry, i) => el("li", {}, this.finalRow(entry, i)))),
      ),
      !this.all && el("button", { type: "button", class: "more", onclick: () => this.showAll() }, `Show all ${view.size}`),
      this.detail,
    );
  }

  showAll() {
    this.all = true;
    this.draw();
  }

  rowButton(id, where, ...more) {
    const label = el("span", { class: "text" }, textOf(this.view, id) || this.view.candidates[id - 1].docid);
    return el(
      "button",
      { type: "button", class: `row ${where}`, "data-id": id, "aria-pressed": "false", onclick: () => this.pick(id) },
      el("span", { class: "id" }, `[${id}]`), label, ...more,
    );
  }

  finalRow(entry, i) {
    const { view } = this;
    const place = el("span", { class: "place" }, `${i + 1}`);
    if (!entry.id) return el("div", { class: "row final" }, place, el("span", { class: "text" }, entry.docid));
    const gain = gainOf(view, entry.id);
    const mark = gain && isRelevant(view, entry.id) ? el("i", { class: "good", role: "img", "aria-label": "relevant" }) : null;
    const row = this.rowButton(entry.id, "final", mark, this.leftTag(entry.id));
    row.prepend(place);
    return row;
  }

  leftTag(id) {
    const { view } = this;
    if (!view.steps.length || view.wanted === "list") return null;
    const step = view.left.get(id);
    if (!view.asked.includes(id)) return el("span", { class: "left" }, "not asked");
    const rest = view.wanted === "best" ? "left over" : "stayed";
    const words = step === undefined ? rest : `${verbOf(view)} at step ${step}`;
    return el("span", { class: "left", title: words, "aria-label": words }, step === undefined ? rest : `step ${step}`);
  }

  drawLines(height) {
    const { view } = this;
    const box = svg("svg", { viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", height, "aria-hidden": "true" });
    view.order.forEach((entry, i) => {
      if (!entry.id) return;
      const [from, to] = [(entry.id - 0.5) * ROW, (i + 0.5) * ROW];
      if (Math.min(from, to) > height) return;
      const way = entry.id - 1 > i ? "up" : entry.id - 1 < i ? "down" : "same";
      const good = isRelevant(view, entry.id) ? " good" : "";
      const d = `M0 ${from} C45 ${from} 55 ${to} 100 ${to}`;
      box.append(svg("path", { d, class: `line ${way}${good}`, "data-id": entry.id }));
    });
    return box;
  }

  drawSteps() {
    const { view } = this;
    const count = view.steps.length;
    if (!count) {
      const why = view.error ? "No step was finished." : "Nothing was asked: the order is as it was given.";
      return el("section", { class: "card steps" }, el("h3", {}, "Steps"), el("p", { class: "soft" }, why));
    }
    this.slider = el("input", {
      type: "range", min: 1, max: count, value: this.at + 1, "aria-label": `Step of ${view.name}`,
      oninput: () => this.show(this.slider.value - 1),
    });
    this.back = el("button", { type: "button", "aria-label": "Step back", onclick: () => this.show(this.at - 1) }, "‹");
    this.on = el("button", { type: "button", "aria-label": "Step on", onclick: () => this.show(this.at + 1) }, "›");
    this.play = el("button", { type: "button", class: "play", onclick: () => this.playing() }, "Play");
    this.ticks = el("div", { class: "ticks", "aria-hidden": "true" });
    if (count <= 60) {
      this.ticks.append(...view.steps.map((step) => el("i", { class: step.answer.kind === "valid" ? "" : "broken" })));
    }
    this.step = el("div", { class: "step" });
    return el(
      "section", { class: "card steps", "aria-label": "Steps" },
      el("div", { class: "steps-head" }, el("h3", {}, "Steps"), count > 1 && this.play),
      count > 1 && el("div", { class: "slide" }, this.back, el("div", {}, this.slider, this.ticks), this.on),
      this.step,
    );
  }

  playing() {
    if (this.timer) return this.stop();
    if (this.at === this.view.steps.length - 1) this.show(0);
    this.play.textContent = "Pause";
    this.timer = setInterval(() => (this.show(this.at + 1) ? null : this.stop()), 900);
    return null;
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    if (this.play) this.play.textContent = "Play";
  }

  // Go to a step; false where there is none. `quiet` draws without telling a screen reader or the address.
  show(i, quiet = false) {
    const { view } = this;
    if (i < 0 || i >= view.steps.length || !this.step) return false;
    this.at = i;
    const step = view.steps[i];
    const words = `Step ${i + 1} of ${view.steps.length}: ${stepWords(view, i)}`;
    this.slider.value = i + 1;
    this.slider.setAttribute("aria-valuetext", words);
    this.back.disabled = i === 0;
    this.on.disabled = i === view.steps.length - 1;
    [...this.ticks.children].forEach((tick, n) => tick.classList.toggle("here", n === i));
    const broken = brokenWords(step.answer.kind);
    this.step.replaceChildren(
      el("p", { class: "step-title" }, words, " ", el("span", { class: broken ? "tag bad" : "tag" }, step.answer.kind)),
      broken ? el("p", { class: "alert" }, `${broken}; a rule resolved it.`) : "",
      this.drawPool(step),
      ...drawSaid(step, !!broken),
    );
    this.mark();
    if (!quiet) {
      say(`${view.name}, ${words}${broken ? `, ${broken}` : ""}`);
      this.shared.stepped(this);
    }
    return true;
  }

  drawPool(step) {
    const { view } = this;
    const chances = step.probabilities || {};
    const some = Object.keys(chances).length > 0;
    const inPool = new Set(step.pool);
    const ids = view.asked.length > SHOWN ? view.asked.filter((id) => inPool.has(id)) : view.asked;
    const what = { worst: "removed next", best: "selected next", list: "the best", unknown: "named" }[view.wanted];
    const note = some ? `Bars: the model's probability of being ${what}.` : "This answer has no probabilities.";
    return el(
      "div", {},
      el("p", { class: "soft note" }, note),
      el("ul", { class: "pool" }, ids.map((id) => this.poolRow(id, step, inPool.has(id), chances[id]))),
    );
  }

  poolRow(id, step, inside, chance) {
    const { view } = this;
    const named = step.removed.includes(id);
    const place = step.removed.length ? 0 : step.answer.ids.indexOf(id) + 1;
    const before = view.left.get(id);
    const gone = before !== undefined && before <= this.at;
    const state = inside ? (named ? `named ${view.wanted}` : "") : gone ? "gone" : "outside";
    const words = [];
    if (named) words.push(el("span", { class: "tag verb" }, verbOf(view)));
    if (place) words.push(el("span", { class: "tag" }, `place ${place}`));
    if (inside && chance !== undefined) words.push(el("span", { class: "chance" }, percent(chance)));
    if (gone && !inside) words.push(el("span", { class: "chance" }, `step ${before}`));
    const bar = el("span", { class: "bar", "aria-hidden": "true" });
    bar.style.width = inside && chance >= 0.005 ? `${100 * chance}%` : "0";
    const text = textOf(view, id);
    return el(
      "li", { class: state, "data-id": id }, bar,
      el("span", { class: "id" }, `[${id}]`), el("span", { class: "text", title: text }, text), ...words,
    );
  }

  pick(id) {
    this.shared.picked = this.shared.picked === id ? null : id;
    this.shared.marked();
  }

  // Show which candidate is picked, in rows, lines and in full.
  mark() {
    const id = this.shared.picked;
    for (const node of this.node.querySelectorAll("[data-id]")) {
      const on = Number(node.dataset.id) === id;
      node.classList.toggle("picked", on);
      if (node.tagName === "BUTTON") node.setAttribute("aria-pressed", String(on));
      if (on && node.tagName === "path") node.parentNode.append(node); // the last one drawn is on top
    }
    this.node.classList.toggle("picking", id !== null);
    if (this.detail) this.detail.replaceChildren(...(id && this.view.candidates[id - 1] ? drawDetail(this.view, id) : []));
  }
}

function drawDetail(view, id) {
  const candidate = view.candidates[id - 1];
  const place = view.order.findIndex((entry) => entry.id === id) + 1;
  const step = view.left.get(id);
  const facts = [`[${id}]`, candidate.docid, `given ${id}, final ${place || "none"}`];
  if (step !== undefined) facts.push(`${verbOf(view)} at step ${step}`);
  if (gainOf(view, id)) facts.push(`gain ${gainOf(view, id)}`);
  const prior = view.problem.prior && view.problem.prior[candidate.docid];
  if (prior !== undefined) facts.push(`first stage ${number(prior)}`);
  const note = candidate.note ? [el("p", { class: "soft" }, candidate.note)] : [];
  return [el("p", { class: "soft" }, facts.join(" · ")), el("p", { class: "full" }, candidate.text), ...note];
}

function drawFacts(view) {
  const broken = el("div", { class: view.broken ? "bad" : "" }, el("dt", {}, "broken answers"), el("dd", {}, `${view.broken}`));
  return el(
    "dl", { class: "facts" },
    factsOf(view).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))), broken,
  );
}

// Thought and raw completion; the completion of a broken answer stands open.
function drawSaid(step, broken) {
  const parts = [];
  const thought = (step.thought || "").trim();
  if (thought) parts.push(el("details", { open: true }, el("summary", {}, "Thought"), el("p", { class: "thought" }, thought)));
  if (step.completion) {
    const raw = el("pre", { class: broken ? "bad" : "", tabindex: 0 }, step.completion);
    parts.push(el("details", { open: broken }, el("summary", {}, "Raw completion"), raw));
  }
  return parts;
}

// One or two rankings side by side, with what they agree on. Returns the panels, for keys.
function drawRuns(target, views, problem, qid, options = {}) {
  const panels = [];
  const shared = {
    picked: options.picked || null,
    marked: () => {
      panels.forEach((panel) => panel.mark());
      if (options.changed) options.changed();
    },
    stepped: () => options.changed && options.changed(),
  };
  panels.push(...views.map((view, i) => new RunPanel(view, shared, options.steps && options.steps[i])));
  const parts = [drawQuery(problem, qid)];
  if (views.length === 2 && views.every((view) => view.order.length)) parts.push(drawAgreement(...views));
  parts.push(el("div", { class: views.length === 2 ? "runs two" : "runs" }, panels.map((panel) => panel.node)));
  if (options.tools) parts.push(options.tools);
  target.replaceChildren(...parts);
  return { panels, shared };
}

function drawAgreement(a, b) {
  const { alike, pairs, first } = agreement(a, b);
  const share = pairs ? ` ${alike} of ${pairs} pairs stand in the same order.` : "";
  return el("p", { class: "agreement" }, `${first ? "Both put the same candidate first." : "They put different candidates first."}${share}`);
}

async function copyText(words, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(words);
  } catch {
    const area = el("textarea", { class: "unseen", "aria-hidden": "true" }); // pages from a file may have no clipboard
    area.value = words;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  say("Copied");
  setTimeout(() => (button.textContent = label), 1500);
}

function copyButton(label, words) {
  const button = el("button", { type: "button" }, label);
  button.addEventListener("click", () => copyText(words(), button));
  return button;
}
