"""Scores: those of one model are the same whichever way it is asked, and a threshold means the same in any pool."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import small_problem
from r1ranker.backends.base import Choice
from r1ranker.elimination import ranking_from
from r1ranker.problem import Answer, Problem, Ranking, Step, Usage
from r1ranker.ranking.fusing import fuse
from r1ranker.ranking.plans import Plan, Reply, eliminate, judged, listed, windows
from r1ranker.ranking.scores import best_of_pool, scores

STRENGTHS = {1: 0.1, 2: 0.5, 3: 0.25, 4: 0.15}


def ranked(plan: Plan, strengths: dict[int, float]) -> Ranking:
    """By a model that names each in proportion to its strength among what is left."""
    try:
        ask = next(plan)
        while True:
            assert ask.pool
            total = sum(strengths[k] for k in ask.pool)
            ask = plan.send(Reply(Choice({k: strengths[k] / total for k in ask.pool}, 1, 1), 0.0))
    except StopIteration as done:
        ranking: Ranking = done.value
        return ranking


def elimination(problem: Problem, ask: str, **settings: int) -> Ranking:
    strengths = STRENGTHS if ask == "best" else {k: 1 / value for k, value in STRENGTHS.items()}
    plan = eliminate(problem, think=False, layout="relist", max_new_tokens=9, ask=ask, **settings)  # type: ignore[arg-type]
    return ranked(plan, strengths)


WAYS = {
    "worst": lambda p: elimination(p, "worst"),
    "worst, two at once": lambda p: elimination(p, "worst", drop=2),
    "worst, until two are left": lambda p: elimination(p, "worst", top_k=2),
    "best": lambda p: elimination(p, "best"),
    "the best two": lambda p: elimination(p, "best", top_k=2),
    "best, two at once": lambda p: elimination(p, "best", drop=2),
    "judge, worst": lambda p: ranked(judged(p, "worst"), STRENGTHS),
    "judge, best": lambda p: ranked(judged(p, "best"), STRENGTHS),
    "judge, list": lambda p: ranked(judged(p, None), STRENGTHS),
    "list": lambda p: ranked(listed(p), STRENGTHS),
}


@pytest.mark.parametrize("way", WAYS)
def test_scores_of_a_model_are_the_same_whichever_way_it_is_asked(way: str) -> None:
    problem = small_problem(4)
    ranking = WAYS[way](problem)
    assert ranking.docids == ("d2", "d3", "d4", "d1")
    assert best_of_pool(problem, ranking) == pytest.approx(STRENGTHS)
    known = [4 * p / (1 + 4 * p) for p in (0.5, 0.25, 0.15, 0.1)]
    assert scores(problem, ranking) == pytest.approx(known, abs=1e-3)


def test_a_candidate_as_likely_as_chance_has_one_half_in_any_pool() -> None:
    for n in (2, 5, 40):
        problem = small_problem(n)
        found = scores(problem, ranked(listed(problem), dict.fromkeys(range(1, n + 1), 1.0)))
        assert found == pytest.approx([0.5] * n, abs=1e-3)


@given(st.lists(st.floats(1e-300, 1.0), min_size=2, max_size=12))
def test_scores_fall_strictly(strengths: list[float]) -> None:
    problem = small_problem(len(strengths))
    by_identifier = dict(enumerate(strengths, start=1))
    for ranking in (ranked(listed(problem), by_identifier), ranked(judged(problem, "worst"), by_identifier)):
        found = scores(problem, ranking)
        assert len(found) == len(ranking.docids)
        assert all(0 < score <= 1 and math.isfinite(score) for score in found)
        assert all(after < before for before, after in pairwise(found))


def test_where_something_else_made_the_order_too_the_largest_pools_speak_and_scores_still_fall() -> None:
    problem = dataclasses.replace(small_problem(4), prior={"d1": 9.0, "d4": 5.0, "d3": 2.0, "d2": 1.0})
    alone = ranked(listed(problem), STRENGTHS)
    fused = fuse(problem, alone, 0.0)
    assert fused.docids != alone.docids and fused.steps == alone.steps
    for ranking in (fused, ranked(windows(problem, listed, 2, 1), STRENGTHS)):
        assert best_of_pool(problem, ranking) == {}
        found = scores(problem, ranking)
        assert all(after < before for before, after in pairwise(found)) and 0 < found[-1] < found[0] < 1


def test_where_no_model_gave_probabilities_scores_are_by_rank() -> None:
    assert scores(small_problem(4), Ranking("q1", ("d4", "d3", "d2", "d1"), (4.0, 3.0, 2.0, 1.0))) == (
        1,
        0.75,
        0.5,
        0.25,
    )


def test_a_failed_query_has_no_scores() -> None:
    assert scores(small_problem(4), Ranking("q1", (), (), error="no answer")) == ()


def test_a_fused_order_against_the_model_has_scores_that_say_so() -> None:
    problem = small_problem(4, prior={"d1": 9.0, "d4": 5.0, "d3": 2.0, "d2": 1.0})
    step = Step((1, 2, 3, 4), Answer("valid", (2, 3, 4, 1)), probabilities=STRENGTHS)
    fused = fuse(problem, ranking_from(problem, (2, 3, 4, 1), (step,), Usage()), 0.0)
    mean = fmean(4 * p / (1 + 4 * p) for p in STRENGTHS.values())
    assert scores(problem, fused) == pytest.approx([mean] * 4, abs=1e-3)  # the order is the prior's, against the model


def test_scores_are_of_the_largest_pool_that_was_asked_about() -> None:
    problem = small_problem(4)
    whole = Step((1, 2, 3, 4), Answer("valid", (2, 3, 4, 1)), probabilities=STRENGTHS)
    head = Step((2, 3), Answer("valid", (2, 3)), probabilities={2: 0.9, 3: 0.1})
    known = [4 * p / (1 + 4 * p) for p in (0.5, 0.25, 0.15, 0.1)]
    assert scores(problem, ranking_from(problem, (2, 3, 4, 1), (whole, head), Usage())) == pytest.approx(
        known, abs=1e-3
    )


def test_what_was_not_asked_about_stands_with_the_last() -> None:
    problem = small_problem(4)
    head = Step((1, 2), Answer("valid", (1, 2)), probabilities={1: 0.8, 2: 0.2})
    found = scores(problem, ranking_from(problem, (1, 2, 3, 4), (head,), Usage()))
    assert found == pytest.approx([1.6 / 2.6, 0.4 / 1.4, 0.4 / 1.4, 0.4 / 1.4], abs=1e-3)
