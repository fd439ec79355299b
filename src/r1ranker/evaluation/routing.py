"""Quality against cost of a router. In: what each LLM scored and cost on each query, and who was chosen. Out: numbers.

    outcomes = {"q1": {"small": Outcome(0.0, 0.1), "large": Outcome(1.0, 0.9)}, ...}
    point(first_choices(rankings), outcomes)        # Point(cost=0.5, quality=0.7): one dot of the router
    aiq([point_a, point_b, point_c], 0.1, 0.9)      # the area under its dots

A router that can be asked to spend more or less has a dot for each such wish: here, one for each objective. All
costs are in one unit, whichever; `own_costs` brings the router's own into it. Definitions are RouterBench's (Hu et
al., 2024, section 3): dots are joined by sending queries to one router or the other at random, a router that answers
nothing costs and scores 0, and money may be wasted; so what can be had for a cost is the non-decreasing convex hull.
Pure functions; next in the data flow are tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from r1ranker.errors import DataError
from r1ranker.problem import Ranking


class Outcome(NamedTuple):
    """What one LLM did on one query."""

    score: float
    cost: float


class Point(NamedTuple):
    """Means over queries."""

    cost: float
    quality: float


class Weights(NamedTuple):
    """What the asker cares for (the paper's w_p and w_c)."""

    quality: float = 1.0
    cost: float = 0.0

    def utility(self, outcome: Outcome) -> float:
        """Weighed score less weighed cost."""
        return self.quality * outcome.score - self.cost * outcome.cost


Outcomes = Mapping[str, Mapping[str, Outcome]]
"""By query, then by LLM."""
Choices = Mapping[str, str]
"""The LLM that each query is sent to; empty where none is."""
NOTHING = Outcome(0.0, 0.0)
QUALITY_ALONE = Weights()
SOLVED = 0.5
"""Score from which on a query counts as solved."""
FEW = 3
"""LLMs that solve a query, up to which few do."""
TIE = 1e-9


def first_choices(rankings: Iterable[Ranking]) -> dict[str, str]:
    """The LLM each ranking puts first; none where the router failed."""
    return {ranking.qid: ranking.docids[0] if ranking.docids else "" for ranking in rankings}


def affordable_choices(rankings: Iterable[Ranking], outcomes: Outcomes, most: float) -> dict[str, str]:
    """The best-ranked LLM that costs at most `most` on the query; none where all cost more."""
    return {
        ranking.qid: next((llm for llm in ranking.docids if outcomes[ranking.qid][llm].cost <= most), "")
        for ranking in rankings
    }


def own_costs(rankings: Iterable[Ranking], unit: float = 1.0) -> dict[str, float]:
    """What the router itself cost on each query, known where its prices were given (`Usage.cost`).

    unit: what one unit of the outcomes' costs is in that money. Where outcomes are prices per million tokens and an
    answer has t tokens, it is t / 1 000 000.
    """
    return {ranking.qid: ranking.usage.cost / unit for ranking in rankings}


def chosen_outcomes(chosen: Choices, outcomes: Outcomes, own: Mapping[str, float] | None = None) -> dict[str, Outcome]:
    """Score and cost of each query as routed, the router's own cost included. DataError for an unknown query or LLM."""
    found: dict[str, Outcome] = {}
    for qid, llm in chosen.items():
        if llm and llm not in outcomes.get(qid, {}):
            raise DataError(f"query {qid!r}: no outcome of {llm!r} is known; give the scores of every LLM in the pool")
        score, cost = outcomes[qid][llm] if llm else NOTHING
        found[qid] = Outcome(score, cost + (own or {}).get(qid, 0.0))
    return found


def point(chosen: Choices, outcomes: Outcomes, own: Mapping[str, float] | None = None) -> Point:
    """Mean cost and quality of a router over the queries it was given."""
    done = chosen_outcomes(chosen, outcomes, own).values()
    return Point(fmean(one.cost for one in done), fmean(one.score for one in done))


def llm_points(outcomes: Outcomes) -> dict[str, Point]:
    """Each LLM as a router that sends it everything. Only LLMs that answered every query have a place here."""
    everywhere = set.intersection(*(set(of_query) for of_query in outcomes.values()))
    return {llm: point(dict.fromkeys(outcomes, llm), outcomes) for llm in sorted(everywhere)}


def expected_by_kind(known: Outcomes, kinds: Mapping[str, str], asked: Iterable[str]) -> dict[str, dict[str, Outcome]]:
    """What each LLM is expected to do on each query asked: its means over the known queries of the same kind.

    kinds: of the queries, known and asked; where none is said or none is known, the means are over all. Without kinds
    `oracle_choices` of it are the best single LLM, with data sets as kinds the best LLM of each (the dataset oracle).
    """
    members: dict[str, list[str]] = {"": list(known)}
    for qid in known:
        if kinds.get(qid):
            members.setdefault(kinds[qid], []).append(qid)
    means = {
        kind: {
            llm: Outcome(fmean(known[qid][llm].score for qid in qids), fmean(known[qid][llm].cost for qid in qids))
            for llm in known[qids[0]]
        }
        for kind, qids in members.items()
    }
    return {qid: means[kind if (kind := kinds.get(qid, "")) in means else ""] for qid in asked}


def choices_by_price(expected: Outcomes, prices: Iterable[float]) -> list[dict[str, str]]:
    """Where a router sends each query that looks for the best score less price * cost it expects, for each price.

    Price 0 asks for quality alone. Expected ties go to the LLM that is expected to cost less. The same as
    `oracle_choices` at each price, for all queries at once.
    """
    llms = sorted({llm for of_query in expected.values() for llm in of_query})
    absent = Outcome(-np.inf, np.inf)
    known_Q_L_2 = np.array([[of_query.get(llm, absent) for llm in llms] for of_query in expected.values()])
    scores_Q_L, costs_Q_L = known_Q_L_2[..., 0], known_Q_L_2[..., 1]
    chosen: list[dict[str, str]] = []
    for price in prices:
        worth_Q_L = scores_Q_L - (price * costs_Q_L if price else 0.0)
        tied_Q_L = worth_Q_L >= worth_Q_L.max(axis=1, keepdims=True) - TIE
        best_Q = np.where(tied_Q_L, costs_Q_L, np.inf).argmin(axis=1)
        chosen.append(dict(zip(expected, (llms[k] for k in best_Q), strict=True)))
    return chosen


def gap_parts(single: Choices, level: Choices, known: Outcomes) -> dict[str, dict[str, float]]:
    """The quality that the oracle has above `single`, query by query, in parts that add up to it.

    level: what `level` (the dataset oracle) has above `single`, which may be below 0. few: what the oracle has above
    `level` on queries that one to `FEW` LLMs solve. rest: the same on all others.
    """
    parts: dict[str, dict[str, float]] = {"level": {}, "few": {}, "rest": {}}
    for qid, of_query in known.items():
        reached = of_query[level[qid]].score
        above = max(outcome.score for outcome in of_query.values()) - reached
        few = 1 <= solvers(of_query) <= FEW
        parts["level"][qid] = reached - of_query[single[qid]].score
        parts["few"][qid], parts["rest"][qid] = (above, 0.0) if few else (0.0, above)
    return parts


def solvers(of_query: Mapping[str, Outcome]) -> int:
    """Number of LLMs that score at least `SOLVED`."""
    return sum(outcome.score >= SOLVED for outcome in of_query.values())


def tied(of_query: Mapping[str, Outcome]) -> int:
    """Number of LLMs that score what the best one does."""
    best = max(outcome.score for outcome in of_query.values())
    return sum(best - outcome.score <= TIE for outcome in of_query.values())


def oracle_choices(outcomes: Outcomes, weights: Weights = QUALITY_ALONE) -> dict[str, str]:
    """The LLM of the best utility on each query, the cheapest of several."""

    def worth(outcome: Outcome) -> tuple[float, float]:
        return round(weights.utility(outcome), 9), -outcome.cost

    return {qid: max(of_query, key=lambda llm: worth(of_query[llm])) for qid, of_query in outcomes.items()}


def regret(
    chosen: Choices, outcomes: Outcomes, weights: Weights = QUALITY_ALONE, own: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Utility lost to the oracle on each query; what the router itself cost is lost too."""
    best = oracle_choices({qid: outcomes[qid] for qid in chosen}, weights)
    return {
        qid: weights.utility(outcomes[qid][best[qid]]) - weights.utility(outcome)
        for qid, outcome in chosen_outcomes(chosen, outcomes, own).items()
    }


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in one respect without being worse in the other, by rising cost."""
    kept: list[Point] = []
    for candidate in sorted(set(points), key=lambda p: (p.cost, -p.quality)):
        if not kept or candidate.quality > kept[-1].quality:
            kept.append(candidate)
    return kept


def hull(points: Iterable[Point]) -> list[Point]:
    """Corners of the non-decreasing convex hull, from the router that answers nothing, by rising cost."""
    corners: list[Point] = []
    for corner in pareto([Point(0.0, 0.0), *points]):
        while len(corners) > 1 and _rise(corners[-2], corners[-1]) <= _rise(corners[-1], corner):
            corners.pop()
        corners.append(corner)
    return corners


def quality_within(points: Iterable[Point], budget: float) -> float:
    """Best quality that a mix of the points reaches at a mean cost of at most `budget`."""
    corners = hull(points)
    return float(np.interp(budget, [c.cost for c in corners], [c.quality for c in corners]))


def aiq(points: Sequence[Point], low: float, high: float) -> float:
    """Average quality over all budgets between `low` and `high` (RouterBench's AIQ): area under the hull, per width.

    Routers can be compared when they have the same bounds; usual are those of the cheapest and the dearest LLM. Where
    all LLMs cost the same it is the quality at that cost.
    """
    if not 0 <= low <= high:
        raise DataError(f"AIQ needs bounds with 0 <= low <= high, not {low} and {high}")
    corners = hull(points)
    if low == high:
        return quality_within(points, low)
    costs = [low, *(corner.cost for corner in corners if low < corner.cost < high), high]
    values = np.interp(costs, [corner.cost for corner in corners], [corner.quality for corner in corners])
    area = np.diff(costs) @ (values[:-1] + values[1:]) / 2
    return float(area) / (high - low)


def _rise(a: Point, b: Point) -> float:
    """Slope from one point to a dearer one."""
    return (b.quality - a.quality) / (b.cost - a.cost)
