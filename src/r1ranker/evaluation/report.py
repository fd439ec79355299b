"""One self-contained HTML page about a set of results. In: rows, comparisons, logs, traces. Out: a file.

    write_report(out / "report.html", rows=rows, comparisons=tests, curves={"ppo": read_log(run)},
                 traces=[Trace(problem, ranking, "iranker")], provenance=provenance(), title="Nine tasks")

The page loads nothing from anywhere: styles and charts are in it. `report.html.j2` is its template.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from r1ranker.errors import DataError
from r1ranker.evaluation.charts import (
    Dot,
    Interval,
    Points,
    interval_chart,
    line_chart,
    number,
    scatter_chart,
)
from r1ranker.evaluation.report_traces import Trace, TraceView, view
from r1ranker.evaluation.results import AVERAGE, COSTS, REFERENCES, Comparison, Row, relative_gain
from r1ranker.evaluation.table import (
    CEILING,
    MARK,
    SHOWN,
    caption,
    lines_of,
    percent,
    stars,
    systems_of,
    tasks_of,
    warnings_of,
)
from r1ranker.io.files import write_whole

__all__ = ["Trace", "write_report"]

PRIOR = (
    "prior: each pool by what was known before the query: an item's popularity in the training data, an LLM's average "
    "on training questions, or the first stage's score"
)
PALETTE = 8
"""Colours of the template; systems beyond these get generated hues."""
GOLDEN_ANGLE = 137.508
KEPT = "kept_step"
"""In a log (`training.logs`): the step whose model is the best so far."""
CURVES = {
    "reward": "mean reward of a step",
    "dev_mrr": "MRR on dev problems, mean of tasks",
    "broken": "share of answers that were not valid",
    "kl": "KL to the reference, nats per token",
    "entropy": "of the policy, nats per token",
    "clip_share": "share of tokens whose ratio was clipped",
    "policy_loss": "clipped surrogate",
    "value_loss": "clipped squared error of the critic",
    "explained_variance": "of returns, by the critic",
    "loss": "cross-entropy of the warm start",
    "tokens_per_s": "throughput",
}
"""Values of a training log that the page shows first, and what each is."""
SHARES = ("broken", "clip_share")
"""Those that read as percentages."""
LONGEST_CURVE = 300


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure of the headline and what it is."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart under its title and a note."""

    title: str
    note: str
    svg: Markup


def write_report(
    path: Path,
    *,
    rows: Sequence[Row],
    comparisons: Sequence[Comparison] = (),
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    traces: Sequence[Trace] = (),
    provenance: Mapping[str, Any] | None = None,
    title: str = "Ranking results",
    notes: Sequence[str] = (),
) -> None:
    """Write the page. Parts without data are left out; of several splits it shows `test`, or the first.

    `notes` stand above the results, with what is to be said about single systems.
    """
    splits = list(dict.fromkeys(row.split for row in rows))
    split = "test" if "test" in splits else next(iter(splits), "")
    rows = [row for row in rows if row.split == split]
    kinds = kinds_of([*systems_of(rows), *(curves or {})])
    main_curves, more_curves = curve_charts(curves or {}, kinds)
    warned = warnings_of(rows)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            about=_about(rows, split),
            facts=headline(rows, comparisons),
            systems=[f"{system} {MARK}" if system in warned else system for system in systems_of(rows)],
            notes=[*notes, *(text for of_system in warned.values() for text in of_system)],
            prior=PRIOR if "prior" in systems_of(rows) else "",
            colours=colours(kinds),
            lines=lines_of(rows, comparisons),
            caption=caption(comparisons),
            task_charts=task_charts(rows, comparisons, kinds),
            cost_charts=cost_charts(rows, kinds),
            costs=cost_table(rows),
            cost_names=COSTS,
            runs={run: kinds[run] for run in curves or {}},
            curves=main_curves,
            more_curves=more_curves,
            traces=_by_scenario(traces),
            provenance=flat(provenance or {}),
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def headline(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[Fact]:
    """The best system by MRR, the oracle aside, whatever it is; its gain over the baseline, errors and cost."""
    overall = _overall(rows)
    ranked = [row for (system, measure), row in overall.items() if measure == "MRR" and system != CEILING]
    if not ranked:
        return []
    best = max(ranked, key=lambda row: row.value)
    facts = [
        Fact(
            f"{best.value:.3f}",
            f"MRR of {best.system}, the best system; {best.ci_low:.3f} to {best.ci_high:.3f}",
        )
    ]
    facts += _gain_facts(rows, [one for one in comparisons if (one.system, one.measure) == (best.system, "MRR")])
    costs = {name: overall[best.system, name].value for name in COSTS if (best.system, name) in overall}
    if costs.get("calls"):
        facts.append(Fact(percent(costs["broken"]), f"of the steps of {best.system} had a broken answer"))
        tokens = costs["prompt_tokens"] + costs["generated_tokens"]
        facts.append(
            Fact(number(round(tokens)), f"tokens per query of {best.system}, in {number(costs['calls'])} calls")
        )
    return facts


def _gain_facts(rows: Sequence[Row], tests: Sequence[Comparison]) -> list[Fact]:
    if not tests:
        return []
    baseline = tests[0].baseline
    of_tasks = [one for one in tests if one.task != AVERAGE]
    better = sum(one.p_holm < 0.05 and one.difference > 0 for one in of_tasks)
    worse = sum(one.p_holm < 0.05 and one.difference < 0 for one in of_tasks)
    counted = Fact(
        f"{better} of {len(of_tasks)}", f"tasks where it beats {baseline}, {worse} where it loses (p < 0.05, Holm)"
    )
    try:
        gain = relative_gain(rows, tests[0].system, baseline)
    except DataError:  # a baseline at 0 has no relative gain to show
        return [counted]
    return [Fact(f"{100 * gain:+.1f} %", f"MRR over {baseline}, mean of each task's relative gain"), counted]


def task_charts(rows: Sequence[Row], comparisons: Sequence[Comparison], kinds: Mapping[str, str]) -> list[Chart]:
    """Dot and whisker of every system, one chart for each task."""
    tests = {(one.task, one.measure, one.system): one for one in comparisons}
    charts = []
    for task in tasks_of(rows):
        known = {(row.system, row.measure): row for row in rows if row.task == task}
        intervals = [
            Interval(
                name=f"{system} {stars(tests.get((task, SHOWN[0], system)))}".strip(),
                value=row.value,
                low=row.ci_low,
                high=row.ci_high,
                kind=kinds[system],
                hollow=measure != SHOWN[0],
                note=measure,
            )
            for system in systems_of(rows)
            for measure in SHOWN
            if (row := known.get((system, measure)))
        ]
        n = max((row.n for row in known.values()), default=0)
        charts.append(Chart(task, f"{n} queries", interval_chart(intervals, f"MRR and nDCG@10 of {task}")))
    return charts


def cost_charts(rows: Sequence[Row], kinds: Mapping[str, str]) -> list[Chart]:
    """MRR against tokens and against seconds per query, means over tasks. What costs nothing and what has an unknown
    cost, such as a run file, are lines across."""
    overall = {key: row.value for key, row in _overall(rows).items()}
    charts = []
    axes = {"tokens per query": ("prompt_tokens", "generated_tokens"), "seconds per query": ("seconds",)}
    shown = [system for system in systems_of(rows) if (system, "MRR") in overall]
    for x_label, measures in axes.items():
        spent = {
            system: sum(overall[system, m] for m in measures) if all((system, m) in overall for m in measures) else None
            for system in shown
        }
        if any(spent.values()):
            dots = [Dot(system, spent[system], overall[system, "MRR"], kinds[system]) for system in shown]
            note = "further left is cheaper, further up is better"
            charts.append(Chart(f"MRR against {x_label}", note, scatter_chart(dots, x_label, "MRR")))
    return charts


def cost_table(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Costs by system, means over tasks, in the order of `COSTS`; broken answers and failed queries in per cent.

    `–` where a system has not ranked all tasks, so that its mean would be of others.
    """
    overall = {key: row.value for key, row in _overall(rows).items()}
    of_some = {(row.system, row.measure) for row in rows}
    shown = {measure: percent if measure in ("broken", "failed") else number for measure in COSTS}
    return {
        system: [
            show(overall[system, measure])
            if (system, measure) in overall
            else "–"
            if (system, measure) in of_some
            else "unknown"
            for measure, show in shown.items()
        ]
        for system in systems_of(rows)
    }


def curve_charts(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], kinds: Mapping[str, str]
) -> tuple[list[Chart], list[Chart]]:
    """Charts of the values named in `CURVES`, and of all others, each with a line for every run."""
    found = dict.fromkeys(key for log in curves.values() for line in log for key in line if key not in ("step", KEPT))
    about = CURVES | {"dev_mrr": f"{CURVES['dev_mrr']}{_kept(curves)}"}
    first: list[Chart] = []
    others: list[Chart] = []
    for key in sorted(found, key=lambda key: (list(CURVES).index(key) if key in CURVES else len(CURVES), key)):
        series = {run: thinned(_points(log, key)) for run, log in curves.items()}
        svg = line_chart({run: points for run, points in series.items() if points}, kinds, "step", shares=key in SHARES)
        if svg:
            (first if key in CURVES else others).append(Chart(key, about.get(key, ""), svg))
    return first, others


def _kept(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Which step's model each run has kept, where its log says so."""
    last = {run: [line[KEPT] for line in log if KEPT in line][-1:] for run, log in curves.items()}
    said = [f"{run} {f'step {at[0]:.0f}' if at[0] else 'the start'}" for run, at in last.items() if at]
    return f"; kept: {', '.join(said)}" if said else ""


def _points(log: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(line["step"], line[key]) for line in log if "step" in line and isinstance(line.get(key), int | float)]


def thinned(points: Points) -> Points:
    """At most `LONGEST_CURVE` points: means of neighbours where there are more."""
    known = [point for point in points if math.isfinite(point[1])]
    width = math.ceil(len(known) / LONGEST_CURVE)
    if width <= 1:
        return known
    parts = [known[at : at + width] for at in range(0, len(known), width)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested settings as `a.b.c`: text."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{above}{key}.")
        else:
            leaves[f"{above}{key}"] = "none" if value is None else str(value)
    return leaves


def _overall(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """Rows of the average, or of the only task, by system and measure."""
    last = tasks_of(rows)[-1:]
    return {(row.system, row.measure): row for row in rows if [row.task] == last}


def _about(rows: Sequence[Row], split: str) -> str:
    sizes = {row.task: row.n for row in rows if row.task != AVERAGE}
    tasks = f"{len(sizes)} task{'s' if len(sizes) != 1 else ''}"
    return f"{len(systems_of(rows))} systems on {sum(sizes.values())} queries of {tasks}, split {split}" if rows else ""


def kinds_of(names: Sequence[str]) -> dict[str, str]:
    """CSS class of each name on the whole page: references are grey, others have a colour each, in order."""
    coloured = list(dict.fromkeys(name for name in names if name not in REFERENCES))
    return {name: f"c{coloured.index(name)}" if name in coloured else "ref" for name in names}


def colours(kinds: Mapping[str, str]) -> dict[str, str]:
    """CSS colour of each class: the template's own first, then hues as far apart as may be."""
    coloured = sum(kind != "ref" for kind in kinds.values())
    hues = {f"c{k}": f"hsl({round(k * GOLDEN_ANGLE) % 360} 55% 50%)" for k in range(PALETTE, coloured)}
    return {f"c{k}": f"var(--c{k})" for k in range(PALETTE)} | hues


def _by_scenario(traces: Sequence[Trace]) -> dict[str, list[TraceView]]:
    scenarios: dict[str, list[TraceView]] = {}
    for trace in traces:
        scenarios.setdefault(trace.problem.scenario, []).append(view(trace))
    return scenarios


def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
