"""What a judge's one pass says of every step is a view over its numbers: equal to what is written out, and small."""

from __future__ import annotations

import math
import pickle
import random
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1ranker.backends.base import Ask, Choice
from r1ranker.io.runs import RANKING
from r1ranker.problem import Candidate, Problem, Ranking, Step
from r1ranker.prompts import Wanted
from r1ranker.ranking import plans
from r1ranker.ranking.fusing import fuse
from r1ranker.ranking.luce import Left, asked_about, goes_on
from r1ranker.ranking.plans import Plan, Planner, Reply
from r1ranker.ranking.scores import scores

LOGITS = st.lists(st.floats(-40, 40), min_size=2, max_size=12)
ASKS = st.sampled_from(["worst", "best"])
TOP_KS = st.integers(1, 5)
QUICK = settings(deadline=None, max_examples=25)


def problem(n: int) -> Problem:
    candidates = tuple(Candidate(f"d{i}", f"text {i}") for i in range(1, n + 1))
    return Problem("q", "t", "passage", candidates, query="what", prior={"d1": 2.0, "d2": 1.0})


def softmax(values: Mapping[int, float]) -> dict[int, float]:
    highest = max(values.values())
    weights = {k: math.exp(value - highest) for k, value in values.items()}
    return {k: weight / sum(weights.values()) for k, weight in weights.items()}


def near(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    return one.keys() == other.keys() and all(math.isclose(one[k], other[k]) for k in other)


def ranked(plan: Plan, logits: Mapping[str, float], problem: Problem) -> Ranking:
    """A plan whose judge has these logits by text."""

    def said(ask: Ask) -> Reply:
        assert ask.pool is not None
        return Reply(Choice(softmax({k: logits[ask.prompt.blocks[k - 1]] for k in ask.pool}), 1, 0), 0.0)

    try:
        ask = next(plan)
        while True:
            ask = plan.send(said(ask))
    except StopIteration as done:
        ranking: Ranking = done.value
        return ranking


def judged(
    logits: Sequence[float], ask: Wanted, top_k: int = 1, part: Planner | None = None
) -> tuple[Problem, Ranking]:
    whole = problem(len(logits))
    plan = part(whole) if part else plans.judged(whole, ask, top_k)
    return whole, ranked(plan, {f"text {k}": value for k, value in enumerate(logits, start=1)}, whole)


def written_out(ranking: Ranking) -> Ranking:
    steps = (replace(s, pool=tuple(s.pool), probabilities=dict(s.probabilities)) for s in ranking.steps)
    return replace(ranking, steps=tuple(steps))


@QUICK
@given(LOGITS, ASKS, TOP_KS)
def test_every_step_has_the_softmax_over_what_is_left(logits: list[float], ask: Wanted, top_k: int) -> None:
    whole, ranking = judged(logits, ask, top_k)
    left = list(whole.identifiers)
    for step in ranking.steps:
        assert step.pool == tuple(left) and len(step.pool) == len(step.probabilities) == len(left)
        expected = softmax({k: logits[k - 1] if ask == "best" else -logits[k - 1] for k in left})
        assert list(step.probabilities) == left
        assert near(step.probabilities, expected)
        (gone,) = step.removed
        assert step.probabilities[gone] == max(step.probabilities.values())
        left.remove(gone)
        assert all(
            k not in step.pool and step.probabilities.get(k) is None for k in {*whole.identifiers} - {*step.pool}
        )


@QUICK
@given(LOGITS, ASKS, TOP_KS)
def test_files_and_other_processes_get_what_is_written_out(logits: list[float], ask: Wanted, top_k: int) -> None:
    _, ranking = judged(logits, ask, top_k)
    plain = written_out(ranking)
    assert ranking == plain and repr(ranking) == repr(plain)
    assert RANKING.dump_json(ranking) == RANKING.dump_json(plain)
    assert RANKING.dump_python(ranking, mode="json") == RANKING.dump_python(plain, mode="json")
    assert RANKING.validate_json(RANKING.dump_json(ranking)) == pickle.loads(pickle.dumps(ranking)) == plain


@QUICK
@given(LOGITS, ASKS, TOP_KS)
def test_scores_and_what_steps_are_about_are_those_of_what_is_written_out(
    logits: list[float], ask: Wanted, top_k: int
) -> None:
    whole, ranking = judged(logits, ask, top_k)
    plain = written_out(ranking)
    for one, other in ((ranking, plain), (fuse(whole, ranking, 0.3), fuse(whole, plain, 0.3))):
        assert scores(whole, one) == pytest.approx(scores(whole, other), rel=1e-9)
    assert (
        asked_about(ranking.steps) == asked_about(plain.steps) == (set(whole.identifiers) if ranking.steps else set())
    )
    for a, x in zip(ranking.steps, plain.steps, strict=True):
        for b, y in zip(ranking.steps, plain.steps, strict=True):
            assert goes_on(a, b) == goes_on(x, y) == goes_on(a, y)


@QUICK
@given(LOGITS, ASKS, st.integers(2, 4))
def test_steps_of_a_part_are_views_that_name_the_whole(logits: list[float], ask: Wanted, size: int) -> None:
    def backwards(whole: Problem) -> Plan:
        return plans.part_again(whole, named, lambda part: plans.judged(part, ask), size, "tail")

    def named(whole: Problem) -> Plan:
        return plans.windows(whole, lambda part: plans.judged(part, ask), size, 1)

    whole, ranking = judged(logits, ask, part=backwards)
    assert ranking.steps and all(isinstance(step.pool, Left) for step in ranking.steps)
    for step in ranking.steps:
        expected = softmax({k: logits[k - 1] if ask == "best" else -logits[k - 1] for k in step.pool})
        assert near(step.probabilities, expected)
        assert set(step.removed) == set(step.answer.ids) <= set(step.pool)
    assert asked_about(ranking.steps) == set(whole.identifiers)


def test_a_pool_of_thousands_is_as_large_as_its_candidates() -> None:
    rng = random.Random(1)

    def peak(n: int) -> int:
        logits = [rng.gauss(0, 3) for _ in range(n)]
        whole = problem(n)
        texts = {f"text {k}": value for k, value in enumerate(logits, start=1)}
        tracemalloc.start()
        try:
            ranking = ranked(plans.depth(whole, lambda part: plans.judged(part, "worst"), n), texts, whole)
            assert len(scores(whole, ranking)) == n and ranking.broken == 0
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(750), peak(3000)
    assert many < 5 * few  # written out it would be 16 times as much: 4.5 million probabilities


def test_a_view_is_what_it_reads_as() -> None:
    _, ranking = judged([0.0, 2.0, 1.0], "best")
    first, second = ranking.steps
    assert isinstance(second.pool, Left) and second.pool == (1, 3) and second.pool[-1] == 3 and second.pool[:1] == (1,)
    assert {second.pool: "found"}[(1, 3)] == "found" and first.pool != second.pool and second.pool != [1, 3]
    assert isinstance(second, Step) and second.probabilities == {
        1: pytest.approx(0.26894, abs=1e-5),
        3: pytest.approx(0.73106, abs=1e-5),
    }
    with pytest.raises(KeyError):
        second.probabilities[2]
