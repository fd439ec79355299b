"""Tables and the picture of `routing`. In: a bench, curves of routers, rows and tests. Out: `Table`s, SVG text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from r1ranker.evaluation import routing, routing_kinds
from r1ranker.evaluation.charts import Dot, curve_chart
from r1ranker.evaluation.results import Comparison, Row
from r1ranker.evaluation.routing import FEW, Outcome, Outcomes, Point
from r1ranker.evaluation.significance import confidence_interval
from r1ranker.evaluation.table import stars
from r1ranker.experiments.report import Table
from r1ranker.experiments.routing_bench import UNKNOWN, Bench

SINGLE, LEVEL = "best-single", "dataset-oracle"
BUDGETS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Mean costs a question, as shares of the dearest LLM's."""
STYLE = """<style>
svg { font: 11.5px system-ui, sans-serif; color: #8a9199; }
text { fill: #57606a; } .grid { stroke: #8a919955; } .axis { stroke: #8a9199; }
polyline { fill: none; stroke: currentColor; stroke-width: 1.5; } .dot { fill: currentColor; }
.knn { color: #0b6bcb; } .kmeans { color: #1a7f37; } .dataset-oracle { color: #9a6700; } .oracle { color: #cf222e; }
@media (prefers-color-scheme: dark) { text { fill: #b1bac4; } }
</style>"""

Curve = Sequence[Mapping[str, Outcome]]
"""What became of each question at each price of cost, quality alone first."""


def curve_picture(bench: Bench, curves: Mapping[str, Curve]) -> str:
    """SVG text: each router's curve, and a dot for each LLM; costs in decades."""
    alone = routing.llm_points(bench.known["test"])
    dots = [Dot(name, point.cost, point.quality) for name, point in alone.items()]
    most = max(point.cost for point in alone.values())
    lines = {}
    for name, curve in curves.items():
        if len(curve) > 1:
            corners = routing.hull(means(curve))
            lines[name] = [*corners, Point(max(most, corners[-1].cost), corners[-1].quality)]
    unit = re.split("[,:]", bench.unit)[0]
    svg = str(curve_chart(lines, dots, f"cost ({unit})", "quality"))
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{STYLE}", 1) + "\n"


def means(curve: Curve) -> list[Point]:
    """The points of a curve: mean cost and quality at each price."""
    return [
        Point(fmean(one.cost for one in at_price.values()), fmean(one.score for one in at_price.values()))
        for at_price in curve
    ]


def routers_table(
    bench: Bench,
    curves: Mapping[str, Curve],
    rows: Sequence[Row],
    tests: Sequence[Comparison],
    level: str,
    lacking: str,
) -> Table:
    """Quality, cost and area of each router, with intervals and tests."""
    known = bench.known["test"]
    few = [qid for qid, of_query in known.items() if 1 <= routing.solvers(of_query) <= FEW]
    found = {(row.system, row.measure): row for row in rows}
    tested = {(test.system, test.baseline): test for test in tests if test.measure == "quality"}
    lines = []
    for name, curve in curves.items():
        right = fmean(curve[0][qid].score for qid in few) if few else 0.0
        lines.append(
            (
                name,
                with_interval(found[name, "quality"]),
                *(difference(tested.get((name, base))) for base in dict.fromkeys((SINGLE, level))),
                "" if bench.unit == UNKNOWN else f"{found[name, 'cost'].value:.4g}",
                with_interval(found[name, "AIQ"]),
                "" if name == SINGLE else with_interval(found[name, "AIQ above"], sign="+"),
                f"{right:.3f}",
            )
        )
    above = [f"above {base}" for base in dict.fromkeys((SINGLE, level))]
    columns = ("router", "quality", *above, "cost", "AIQ", f"AIQ above {SINGLE}", f"where 1 to {FEW} solve")
    low, high = (f(p.cost for p in routing.llm_points(known).values()) for f in (min, max))
    note = (
        f"{len(known)} test questions, {len(next(iter(known.values())))} LLMs. Quality: mean score where quality alone "
        "counts, its 95 % interval by question; differences on the same questions, * p < 0.05, ** p < 0.01 (paired "
        f"randomisation, Holm, one family for each column), ↓ worse. cost: {bench.unit}. AIQ (RouterBench): mean "
        f"quality over all mean costs from {low:.4g} to {high:.4g}, on the non-decreasing convex hull of the points; "
        f"of {SINGLE}, of the best LLM at each price. The last column: quality on the {len(few)} questions that so few "
        f"LLMs solve. {SINGLE}, {LEVEL}, knn and kmeans know training questions alone. {lacking}"
    )
    return Table(f"Routers: {bench.name}", columns, lines, note.strip())


def cost_table(bench: Bench, curves: Mapping[str, Curve]) -> Table:
    """Quality that can be had within a mean cost."""
    dearest = max(point.cost for point in routing.llm_points(bench.known["test"]).values())
    lines = [
        (name, *(f"{routing.quality_within(means(curve), share * dearest):.3f}" for share in BUDGETS))
        for name, curve in curves.items()
    ]
    columns = ("router", *(f"{share * dearest:.3g}" for share in BUDGETS))
    note = f"Quality within a mean cost, on the same hulls; {bench.unit}. The last column is the dearest LLM's cost."
    return Table(f"Quality against cost: {bench.name}", columns, lines, note)


def gap_table(bench: Bench, parts: Mapping[str, Mapping[str, float]], level: str) -> Table:
    """What the oracle has above the best single LLM, in its parts (`routing.gap_parts`)."""
    known = bench.known["test"]
    solved = [routing.solvers(of_query) for of_query in known.values()]
    llms = len(next(iter(known.values())))
    few = sum(1 <= n <= FEW for n in solved)
    whole = sum(fmean(part.values()) for part in parts.values())
    what = {
        "level": f"{level} above {SINGLE}",
        "few": f"oracle above {level}, where 1 to {FEW} of {llms} LLMs solve the question",
        "rest": f"oracle above {level}, on the other questions",
    }
    lines = [
        (what[name], f"{fmean(part.values()):.3f} {_ends(part)}", _share(fmean(part.values()), whole), questions)
        for (name, part), questions in zip(
            parts.items(), (str(len(known)), str(few), str(len(known) - few)), strict=True
        )
    ]
    lines.append((f"oracle above {SINGLE}", f"{whole:.3f}", "100%", str(len(known))))
    best = [routing.tied(of_query) for of_query in known.values()]
    standing_in = "" if bench.datasets else f" The source names no data sets: {level} stands in for them."
    note = (
        f"Quality, its 95 % interval by question. A question is solved from a score of {routing.SOLVED} on. Ties: "
        f"{fmean(best):.1f} of {llms} LLMs share the best score on average, all of them on "
        f"{fmean(n == llms for n in best):.1%} of the questions; {fmean(n == 0 for n in solved):.1%} are solved by "
        f"none.{standing_in}"
    )
    return Table(f"The gap to the oracle: {bench.name}", ("part", "quality", "share", "questions"), lines, note)


def _share(part: float, whole: float) -> str:
    """Of what the oracle has above the best single LLM, which may be nothing."""
    return f"{part / whole:.0%}" if whole else "-"


def luck_table(bench: Bench, curves: Mapping[str, Curve], level: str) -> Table:
    """What one would reach that knew the kind of each question, and what the oracle would have by luck."""
    solved = {split: _solved(of_split) for split, of_split in bench.known.items()}
    kinds = routing_kinds.best_kinds(solved["train"], solved["dev"])
    found = {
        name: [float(one.score >= routing.SOLVED) for one in curves[name][0].values()]
        for name in dict.fromkeys((SINGLE, level, "oracle"))
    }
    by_kind = routing_kinds.reached_by_kind(kinds, solved["test"]).tolist()
    lines = [
        *((name, _mean(values)) for name, values in found.items() if name != "oracle"),
        ("the best LLM of each hidden kind", _mean(by_kind)),
        ("oracle", _mean(found["oracle"])),
        ("oracle, were all but the kinds coins", f"{routing_kinds.lucky_oracle(kinds):.3f}"),
    ]
    note = (
        f"Share of questions solved. Hidden kinds: {len(kinds.shares)}, fitted to who solved which training question, "
        "as many as make dev likeliest; within a kind each LLM solves a question by a coin of its own. The third line "
        "is what one would reach that knew each question's kind, whatever its words say; what the oracle has above it "
        "is luck, or what one LLM knows and no other. The last line says whether coins alone would make such an oracle."
    )
    return Table(f"What no router can know: {bench.name}", ("", "solved"), lines, note)


def _solved(known: Outcomes) -> Any:
    """1 where an LLM solved a question, else 0; LLMs by name, shape (questions, LLMs)."""
    return np.array([[float(q[llm].score >= routing.SOLVED) for llm in sorted(q)] for q in known.values()])


def _mean(values: Sequence[float]) -> str:
    low, high = confidence_interval(values)
    return f"{fmean(values):.3f} [{low:.3f}, {high:.3f}]"


def _ends(part: Mapping[str, float]) -> str:
    low, high = confidence_interval(list(part.values()))
    return f"[{low:.3f}, {high:.3f}]"


def with_interval(row: Row, sign: str = "") -> str:
    return f"{row.value:{sign}.3f} [{row.ci_low:{sign}.3f}, {row.ci_high:{sign}.3f}]"


def difference(test: Comparison | None) -> str:
    return f"{test.difference:+.3f} {stars(test)}".strip() if test else ""
