"""LambdaMART over other rankers' places: as a specialist, and as the teacher of a supervised start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from conftest import small_problem
from r1ranker.baselines.fusion import lambdamart, places
from r1ranker.errors import ConfigError
from r1ranker.io.config import WarmstartConfig
from r1ranker.problem import Candidate, Problem, rng_for
from r1ranker.training.demonstrations import taught

N = 6


def noted(number: int, task: str = "a", trusted: str = "sharp") -> Problem:
    """Two rankers say where six candidates stand; the one to be trusted puts the relevant one first, mostly."""
    rng = rng_for("noted", task, number)
    orders = {name: rng.sample(range(1, N + 1), N) for name in ("sharp", "dull")}
    pool = [
        Candidate(f"d{k}", f"text {k}", " | ".join(f"{name} {order[k]}" for name, order in orders.items()))
        for k in range(N)
    ]
    wanted = 1 if rng.random() < 0.9 else 2
    relevant = next(k for k in range(N) if orders[trusted][k] == wanted)
    return small_problem(qid=f"{task}{number}", task=task, candidates=tuple(pool), gains={f"d{relevant}": 1})


def order_by(problem: Problem, ranker: str) -> list[str]:
    return [c.docid for c in sorted(problem.candidates, key=lambda c: places(c)[ranker])]


def firsts(problems: Sequence[Problem], train: Sequence[Problem]) -> list[str]:
    return [ranking.docids[0] for ranking in lambdamart(train, problems)]


def test_places_are_read_as_notes_write_them() -> None:
    assert places(Candidate("d", "text", "first stage 3 | bm25 12")) == {"first stage": 3.0, "bm25": 12.0}
    assert places(Candidate("d", "text 7", "no place | 5")) == {}


def test_each_task_learns_whom_to_trust() -> None:
    pytest.importorskip("lightgbm")
    train = [noted(k) for k in range(300)] + [noted(k, "b", "dull") for k in range(300)]
    tests = [noted(1000 + k) for k in range(10)] + [noted(1000 + k, "b", "dull") for k in range(10)]
    trusted = ["sharp"] * 10 + ["dull"] * 10
    assert firsts(tests, train) == [order_by(p, name)[0] for p, name in zip(tests, trusted, strict=True)]


def test_rankings_are_whole_repeatable_and_blind_to_the_order_of_the_pool() -> None:
    pytest.importorskip("lightgbm")
    train, tests = [noted(k) for k in range(200)], [noted(1000 + k) for k in range(5)]
    rankings = lambdamart(train, tests)
    assert all(sorted(r.docids) == sorted(c.docid for c in p.candidates) for r, p in zip(rankings, tests, strict=True))
    turned = [replace(problem, candidates=problem.candidates[::-1]) for problem in tests]
    assert [r.docids for r in lambdamart(train, turned)] == [r.docids for r in rankings]


def test_without_places_it_says_how_to_get_some() -> None:
    plain = [small_problem(qid=f"q{k}") for k in range(3)]
    with pytest.raises(ConfigError, match=r"shows none; name some in data\.show"):
        lambdamart(plain, plain)


def test_taught_problems_have_the_teachers_order_in_place_of_the_gains() -> None:
    pytest.importorskip("lightgbm")
    train = [noted(k) for k in range(200)]
    learnt = taught(train, WarmstartConfig(answers="lambdamart"))
    for before, after, ranking in zip(train, learnt, lambdamart(train, train), strict=True):
        assert [*sorted(after.gains, key=lambda d: -after.gains[d])] == [*ranking.docids]
        assert replace(after, gains=before.gains) == before


def test_nothing_is_taught_where_examples_answer_by_the_gains() -> None:
    plain = [small_problem(qid="q")]
    assert taught(plain, WarmstartConfig()) == plain
