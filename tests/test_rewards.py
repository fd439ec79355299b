"""Rewards against numbers worked by hand, against ir_measures, and ordered as they should be."""

from __future__ import annotations

import math
from collections.abc import Callable

import ir_measures
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ir_measures import Qrel, ScoredDoc, nDCG

from r1ranker.answers import completed_order, parse_ranking, parse_removal
from r1ranker.errors import ConfigError
from r1ranker.problem import Answer, Candidate, Problem
from r1ranker.rewards import (
    REWARDS,
    Reward,
    exclusion_reward,
    format_reward,
    graded_exclusion_reward,
    graded_ranking_reward,
    ndcg,
    ranking_reward,
    score_ranking,
    score_removal,
    tag_reward,
)
from r1ranker.training.algorithms.moved_up import moved_up

GOOD = "<think>x</think>\n<answer>[1]</answer>"
NO_ANSWER_KINDS = ("missing", "truncated", "malformed")
KINDS = ("paper", "graded")


def problem_of(gains: list[int]) -> Problem:
    return Problem(
        qid="q1",
        task="t",
        scenario="passage",
        query="q",
        candidates=tuple(Candidate(f"d{k}", f"text {k}") for k in range(1, len(gains) + 1)),
        gains={f"d{k}": gain for k, gain in enumerate(gains, 1)},
    )


pool_gains = st.lists(st.integers(0, 4), min_size=2, max_size=20)
gains_and_order = pool_gains.flatmap(lambda gains: st.tuples(st.just(gains), st.permutations(range(len(gains)))))


@pytest.mark.parametrize(
    ("completion", "form", "tags"),
    [
        (GOOD, 0, 0),
        (" \n<think>\n</think><answer></answer>\n", 0, 0),
        ("", -1, -1),
        ("<answer>[1]</answer>", -1, -0.5),
        ("<think>x<answer>[1]</answer>", -1, -0.25),
        ("<think>x</think><answer>[1]", -1, -0.25),
        ("<think>x</think>so <answer>[1]</answer>", -1, 0),
        ("Well: <think>x</think><answer>[1]</answer>", -1, 0),
        ("<think>x</think><answer>[1]</answer> Done.", -1, 0),
        ("<answer>[1]</answer><think>x</think>", -1, 0),
        ("<think><answer>[1]</answer></think>", -1, 0),
        ("<think><think>x</think><answer>[1]</answer>", -1, -0.25),
        ("<think>no <answer>[1]</answer></think><answer>[2]</answer>", -1, -0.5),
        ("<think>x</think><ANSWER>[1]</ANSWER>", -1, -0.5),
        ("<think>x</think><answer>[1]</answer><answer>[1]</answer>", -1, -0.5),
    ],
)
def test_form(completion: str, form: float, tags: float) -> None:
    assert format_reward(completion) == form
    assert tag_reward(completion) == tags


def test_exclusion_as_in_the_papers_table() -> None:
    problem, pool = problem_of([0, 1, 0]), (1, 2, 3)
    assert exclusion_reward(Answer("valid", (3,)), problem, pool) == 1
    assert exclusion_reward(Answer("valid", (2,)), problem, pool) == 0
    assert exclusion_reward(Answer("unknown_id"), problem, pool) == -0.5
    assert [exclusion_reward(Answer(kind), problem, pool) for kind in NO_ANSWER_KINDS] == [-1, -1, -1]


def test_graded_exclusion_by_hand() -> None:
    problem = problem_of([0, 3, 1, 3])
    rewards = [graded_exclusion_reward(Answer("valid", (k,)), problem, (1, 2, 3, 4)) for k in (1, 2, 3, 4)]
    assert rewards == pytest.approx([1, 0, 2 / 3, 0])
    assert graded_exclusion_reward(Answer("valid", (3,)), problem, (2, 3)) == 1
    assert graded_exclusion_reward(Answer("valid", (2,)), problem, (2, 4)) == 1
    assert graded_exclusion_reward(Answer("unknown_id"), problem, (2, 4)) == -0.5
    assert graded_exclusion_reward(Answer("malformed"), problem, (2, 4)) == -1


def test_ranking_as_in_the_papers_table() -> None:
    problem, pool = problem_of([0, 0, 1, 0]), (1, 2, 3, 4)
    assert ranking_reward(Answer("valid", (3, 1, 2, 4)), problem, pool) == 1
    assert ranking_reward(Answer("valid", (1, 3, 2, 4)), problem, pool) == pytest.approx(1 / math.log2(3))
    assert ranking_reward(Answer("valid", (1, 2, 4, 3)), problem, pool) == pytest.approx(1 / math.log2(5))
    assert ranking_reward(Answer("incomplete", (3,)), problem, pool) == pytest.approx(0.25)
    assert ranking_reward(Answer("incomplete", (1, 2)), problem, pool) == pytest.approx(-0.5)
    assert ranking_reward(Answer("duplicate", (3, 1, 2, 4)), problem, pool) == pytest.approx(0.8)
    assert ranking_reward(Answer("unknown_id", (3, 1)), problem, pool) == -0.5
    assert [ranking_reward(Answer(kind), problem, pool) for kind in NO_ANSWER_KINDS] == [-1, -1, -1]


def test_graded_ranking_by_hand() -> None:
    problem, pool = problem_of([1, 0, 3]), (1, 2, 3)
    best = 3 + 1 / math.log2(3)
    assert graded_ranking_reward(Answer("valid", (3, 1, 2)), problem, pool) == 1
    assert graded_ranking_reward(Answer("valid", (1, 2, 3)), problem, pool) == pytest.approx((1 + 1.5) / best)
    assert graded_ranking_reward(Answer("incomplete", (3,)), problem, pool) == pytest.approx(3 / best - 2 / 3)
    assert graded_ranking_reward(Answer("valid", (2, 1)), problem, (1, 2)) == pytest.approx(1 / math.log2(3))


def test_only_the_first_twenty_places_count() -> None:
    problem = problem_of([0] * 20 + [1])
    assert ranking_reward(Answer("valid", tuple(range(1, 22))), problem, problem.identifiers) == 0


def test_a_pool_without_gains_is_in_perfect_order_whatever_the_order() -> None:
    assert ndcg([0, 0], [0, 0]) == 1
    assert ranking_reward(Answer("valid", (2, 1)), problem_of([0, 0]), (1, 2)) == 1


@settings(deadline=None)
@given(gains_and_order.filter(lambda case: any(case[0])))
def test_ndcg_agrees_with_ir_measures(case: tuple[list[int], list[int]]) -> None:
    gains, order = case
    qrels = [Qrel("q", str(k), gain) for k, gain in enumerate(gains)]
    run = [ScoredDoc("q", str(k), -float(place)) for place, k in enumerate(order)]
    theirs = ir_measures.calc_aggregate([nDCG @ 20], qrels, run)[nDCG @ 20]
    assert ndcg([gains[k] for k in order], gains) == pytest.approx(theirs)


def test_a_total_is_the_sum_of_its_named_parts() -> None:
    problem, pool = problem_of([0, 1, 0]), (1, 2, 3)
    text = "so <think>x</think><answer>[2]</answer><answer>[3]</answer>"
    removal = score_removal(text, parse_removal(text, pool), problem, pool)
    assert removal == Reward(-0.5, {"format": -1.0, "tags": -0.5, "exclusion": 1.0})
    text = "<think>x</think><answer>[2] > [3] > [1]</answer>"
    ranking = score_ranking(text, parse_ranking(text, pool), problem, pool, kind="graded")
    assert ranking == Reward(1.0, {"format": 0.0, "tags": 0.0, "ranking": 1.0})
    assert score_removal("", parse_removal("", pool), problem, pool).total == -3


def test_an_unknown_reward_names_the_known_ones() -> None:
    assert tuple(REWARDS) == KINDS
    with pytest.raises(ConfigError, match="'papr' does not exist; choose one of paper, graded"):
        score_removal(GOOD, Answer("valid", (1,)), problem_of([1, 0]), (1, 2), kind="papr")


def removal_total(problem: Problem, answer: Answer, kind: str) -> float:
    return score_removal(GOOD, answer, problem, problem.identifiers, kind).total


def ranking_total(problem: Problem, answer: Answer, kind: str) -> float:
    return score_ranking(GOOD, answer, problem, problem.identifiers, kind).total


Total = Callable[[Problem, Answer, str], float]


def check_broken_below(total: Total, problem: Problem, kind: str, low: float) -> None:
    unknown = total(problem, Answer("unknown_id"), kind)
    unparsable = [total(problem, Answer(broken), kind) for broken in NO_ANSWER_KINDS]
    assert low > unknown > max(unparsable)


@settings(deadline=None)
@given(pool_gains, st.sampled_from(KINDS))
def test_removals_order_perfect_wrong_unknown_unparsable(gains: list[int], kind: str) -> None:
    problem = problem_of(gains)
    totals = {k: removal_total(problem, Answer("valid", (k,)), kind) for k in problem.identifiers}
    check_broken_below(removal_total, problem, kind, min(totals.values()))
    worth = [min(g, 1) if kind == "paper" else g for g in gains]
    for k, total in totals.items():
        for other, other_total in totals.items():
            assert (total > other_total) == (worth[k - 1] < worth[other - 1])
    if min(worth) == 0:
        assert totals[1 + worth.index(0)] == 1


@settings(deadline=None)
@given(pool_gains, st.data(), st.sampled_from(KINDS))
def test_rankings_order_perfect_wrong_unknown_unparsable(gains: list[int], data: st.DataObject, kind: str) -> None:
    problem = problem_of(gains)
    worth = [min(g, 1) if kind == "paper" else g for g in gains]
    best = sorted(problem.identifiers, key=lambda k: -worth[k - 1])
    order = data.draw(st.permutations(problem.identifiers))
    perfect = ranking_total(problem, Answer("valid", tuple(best)), kind)
    total = ranking_total(problem, Answer("valid", tuple(order)), kind)
    assert perfect == 1
    assert (total < perfect) == ([worth[k - 1] for k in order] != [worth[k - 1] for k in best])
    check_broken_below(ranking_total, problem, kind, total)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=25), st.data(), st.sampled_from(KINDS))
def test_moving_up_earns_what_the_list_so_ordered_earns(gains: list[int], data: st.DataObject, kind: str) -> None:
    problem = problem_of(gains)
    order = data.draw(st.permutations(problem.identifiers))
    found = moved_up(order, problem, kind)
    assert [set(at) for at in found] == [set(order[i:]) for i in range(len(order) - 1)]
    for i, at in enumerate(found):
        for k, earned in at.items():
            moved = (*order[:i], k, *(j for j in order[i:] if j != k))
            part = score_ranking(GOOD, Answer("valid", moved), problem, problem.identifiers, kind).parts["ranking"]
            assert earned == pytest.approx(part, abs=1e-12)


@settings(deadline=None)
@given(pool_gains, st.data(), st.sampled_from(KINDS))
def test_a_partial_list_stands_between_its_completion_and_no_answer(
    gains: list[int], data: st.DataObject, kind: str
) -> None:
    problem = problem_of(gains)
    order = data.draw(st.permutations(problem.identifiers))
    kept = data.draw(st.integers(1, len(gains)))
    broken = data.draw(st.sampled_from(["incomplete", "duplicate"]))
    assume(broken == "duplicate" or kept < len(gains))
    answer = Answer(broken, tuple(order[:kept]))
    whole = Answer("valid", completed_order(answer, problem.identifiers))
    unparsable = ranking_total(problem, Answer("malformed"), kind)
    assert ranking_total(problem, whole, kind) > ranking_total(problem, answer, kind) > unparsable


@settings(deadline=None)
@given(st.integers(2, 20), st.data())
def test_with_one_positive_the_graded_exclusion_is_the_papers(n: int, data: st.DataObject) -> None:
    problem = problem_of([0] * (n - 1) + [1])
    answer = Answer("valid", (data.draw(st.integers(1, n)),))
    assert removal_total(problem, answer, "graded") == removal_total(problem, answer, "paper")
