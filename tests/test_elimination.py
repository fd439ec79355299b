"""The pool's state machine: nothing is lost, the last one removed is second best."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1ranker.elimination import Elimination, ranking_from, sampled_pool, start
from r1ranker.errors import DataError
from r1ranker.problem import Answer, Candidate, Problem, Step, Usage


def problem_of(gains: list[int], relevant_at: int = 1) -> Problem:
    return Problem(
        qid="q1",
        task="passage-5",
        scenario="passage",
        query="why is the sky blue",
        candidates=tuple(Candidate(f"d{k}", f"text {k}") for k in range(1, len(gains) + 1)),
        gains={f"d{k}": gain for k, gain in enumerate(gains, 1)},
        relevant_at=relevant_at,
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 99), min_size=1, max_size=20, unique=True), st.randoms(), st.integers(1, 5))
def test_an_episode_orders_the_whole_pool(identifiers: list[int], rng: random.Random, top_k: int) -> None:
    state = start(identifiers)
    while not state.done(top_k):
        before = state
        state = state.remove(rng.choice(state.pool))
        assert len(state.pool) == len(before.pool) - 1
        assert sorted((*state.pool, *state.removed)) == sorted(identifiers)
        assert state.pool == tuple(k for k in identifiers if k in state.pool)
    order = state.order(state.pool)
    assert sorted(order) == sorted(identifiers)
    assert order[: len(state.pool)] == state.pool
    assert order[len(state.pool) :] == state.removed[::-1]


def test_the_last_removed_is_second_best() -> None:
    state = start((1, 2, 3, 4)).remove(2).remove(4).remove(1)
    assert state == Elimination((3,), (2, 4, 1))
    assert state.done() and not start((1, 2)).done() and start((1, 2)).done(top_k=2)
    assert state.order((3,)) == (3, 1, 4, 2)


def test_a_state_does_not_change_when_one_is_removed() -> None:
    state = start((1, 2, 3))
    state.remove(2)
    assert state == start((1, 2, 3))


def test_impossible_steps_are_errors() -> None:
    with pytest.raises(ValueError, match=r"cannot remove \[2\]: the pool holds \[1, 3\]"):
        start((1, 2, 3)).remove(2).remove(2)
    with pytest.raises(ValueError, match="twice"):
        start((1, 1))
    for survivors in [(), (1,), (1, 2), (1, 3, 3)]:
        with pytest.raises(ValueError, match="survivors"):
            start((1, 2, 3)).remove(2).order(survivors)


@settings(deadline=None)
@given(st.integers(1, 20).flatmap(lambda n: st.permutations(range(1, n + 1))))
def test_a_ranking_holds_every_docid_with_strictly_falling_scores(order: list[int]) -> None:
    ranking = ranking_from(problem_of([0] * len(order)), order, (), Usage())
    assert ranking.docids == tuple(f"d{k}" for k in order)
    assert len(ranking.scores) == len(order)
    assert all(high > low for high, low in zip(ranking.scores, ranking.scores[1:], strict=False))


def test_a_ranking_keeps_its_steps_and_costs() -> None:
    step, usage = Step((1, 2), Answer("missing"), removed=(2,)), Usage(1, 20, 5, 0.5)
    ranking = ranking_from(problem_of([1, 0]), (1, 2), [step], usage)
    assert (ranking.qid, ranking.steps, ranking.usage, ranking.broken) == ("q1", (step,), usage, 1)


@pytest.mark.parametrize("order", [(), (1, 2), (1, 2, 2), (1, 2, 3, 4), (0, 1, 2)])
def test_an_order_that_is_no_permutation_makes_no_ranking(order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="q1"):
        ranking_from(problem_of([0, 0, 0]), order, (), Usage())


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 9), st.data())
def test_a_sampled_pool_holds_a_relevant_one(gains: list[int], seed: int, data: st.DataObject) -> None:
    problem = problem_of([*gains, 1])
    size = data.draw(st.integers(1, len(gains) + 1))
    pool = sampled_pool(problem, size, random.Random(seed))
    assert len(set(pool)) == size
    assert list(pool) == sorted(pool)
    assert set(pool) <= set(problem.identifiers)
    assert any(problem.is_relevant(k) for k in pool)
    assert pool == sampled_pool(problem, size, random.Random(seed))


def test_sampled_pools_reach_every_relevant_one_and_every_other() -> None:
    problem, rng = problem_of([0, 2, 1, 2], relevant_at=2), random.Random(0)
    assert {sampled_pool(problem, 1, rng) for _ in range(50)} == {(2,), (4,)}
    assert {k for _ in range(50) for k in sampled_pool(problem, 2, rng)} == {1, 2, 3, 4}


def test_sampling_says_what_is_wrong() -> None:
    with pytest.raises(DataError, match="'q1' of task 'passage-5': no candidate is relevant"):
        sampled_pool(problem_of([0, 1], relevant_at=2), 2, random.Random(0))
    for size in (0, 3):
        with pytest.raises(DataError, match="cannot draw a pool"):
            sampled_pool(problem_of([0, 1]), size, random.Random(0))
