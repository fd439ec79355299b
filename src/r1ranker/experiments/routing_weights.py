"""Routers at the weights of quality and price that a ranker under test was asked with. In: a bench. Out: a `Table`.

    shared = bench.in_shares()                       # costs as gains are made of them
    chosen = weighed(shared, expected, ranker_choices)
    utilities(shared, chosen)["knn"].mean["q7:performance"]     # over the objectives, in the same unit

Each router maximises at each weight the utility it expects; what it reaches is that of what it chose. Utilities of
different weights have different ranges, so what counts is a difference between routers, at one weight or in the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from r1ranker.datasets import llmrouter
from r1ranker.evaluation import routing
from r1ranker.evaluation.results import Comparison, Row
from r1ranker.evaluation.routing import Choices, Outcomes, Point
from r1ranker.experiments.report import Table
from r1ranker.experiments.routing_bench import Bench
from r1ranker.experiments.routing_tables import SINGLE, difference, with_interval

UTILITY = "utility"
RANDOM = "random"


class Useful(NamedTuple):
    """Utility of each question: at each objective, and their mean."""

    at: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]


def weighed(
    bench: Bench, expected: Mapping[str, Outcomes], asked: Mapping[str, Sequence[Choices]]
) -> dict[str, Sequence[Choices]]:
    """Where each router sends each question at each objective; of rankers under test, where they did."""
    learnt: dict[str, Sequence[Choices]] = {
        name: [routing.oracle_choices(of_router, weights) for weights in bench.weights.values()]
        for name, of_router in expected.items()
    }
    return learnt | dict(asked)


def utilities(bench: Bench, chosen: Mapping[str, Sequence[Choices]]) -> dict[str, Useful]:
    """What each router reaches, and a fair draw among the LLMs."""
    known = bench.known["test"]
    found: dict[str, dict[str, Mapping[str, float]]] = {RANDOM: {}, **{name: {} for name in chosen}}
    for place, (objective, weights) in enumerate(bench.weights.items()):
        found[RANDOM][objective] = {
            qid: fmean(map(weights.utility, of_query.values())) for qid, of_query in known.items()
        }
        for name, choices in chosen.items():
            outcomes = routing.chosen_outcomes(choices[place], known)
            found[name][objective] = {qid: weights.utility(outcome) for qid, outcome in outcomes.items()}
    return {
        name: Useful(at, {qid: fmean(one[qid] for one in at.values()) for qid in known}) for name, at in found.items()
    }


def weights_table(
    bench: Bench,
    chosen: Mapping[str, Sequence[Choices]],
    useful: Mapping[str, Useful],
    rows: Sequence[Row],
    tests: Sequence[Comparison],
) -> Table:
    """Utility of each router at each weight, its mean with tests, and the area under the router's points there."""
    known = bench.known["test"]
    low, high = (f(p.cost for p in routing.llm_points(known).values()) for f in (min, max))
    mean = {row.system: row for row in rows if row.measure == UTILITY}
    tested = {(test.system, test.baseline): test for test in tests if test.measure == UTILITY}
    bases = list(dict.fromkeys(test.baseline for test in tests))
    lines = []
    for name, one in useful.items():
        points = [routing.point(choices, known) for choices in chosen[name]] if name in chosen else [_draw(known)]
        lines.append(
            (
                name,
                *(f"{fmean(values.values()):.3f}" for values in one.at.values()),
                with_interval(mean[name]),
                *(difference(tested.get((name, base))) for base in bases),
                f"{routing.aiq(points, low, high):.3f}",
            )
        )
    columns = ("router", *(_said(name) for name in bench.weights), "mean", *(f"above {base}" for base in bases), "AIQ")
    note = (
        "Utility: weight of quality * score - (1 - that weight) * cost, costs as shares of the dearest LLM's on the "
        "question. A router that learns takes the best utility it expects at each weight, a ranker was asked with each "
        "objective. Mean over the weights, its 95 % interval by question, and differences with the tests of the first "
        f"table ({SINGLE}: the LLM that is best at the weight on training questions). AIQ as there, on these points "
        "alone."
    )
    return Table(f"Utility at each weight of quality: {bench.name}", columns, lines, note)


def _said(objective: str) -> str:
    return objective if objective[0].isdigit() else f"{objective} ({llmrouter.objective_for(objective).quality:g})"


def _draw(known: Outcomes) -> Point:
    outcomes = [outcome for of_query in known.values() for outcome in of_query.values()]
    return Point(fmean(one.cost for one in outcomes), fmean(one.score for one in outcomes))
