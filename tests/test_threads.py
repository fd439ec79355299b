"""One backend, many threads: the answers are those of one thread, whoever asks when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from r1ranker import DRanker, IRanker
from r1ranker.backends.base import Backend
from r1ranker.backends.cached import cached
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.problem import Problem

MakeProblem = Callable[..., Problem]


@pytest.fixture(scope="module")
def queries(make_problem: MakeProblem) -> list[Problem]:
    """Some of them are equal, and would be one row of what is kept."""
    return [make_problem(4 + i % 3, positive=1 + i % 4, qid=f"q{i // 2}") for i in range(8)]


def rankers(backend: Backend) -> list[IRanker | DRanker]:
    return [
        IRanker(backend, think=False, layout="append"),
        IRanker(backend, think=True, max_new_tokens=4),
        DRanker(backend, think=False),
    ]


@pytest.mark.parametrize("which", range(3))
def test_threads_get_the_orders_of_one_thread(which: int, tiny: TransformersBackend, queries: list[Problem]) -> None:
    ranker = rankers(tiny)[which]
    alone = [ranker.rank(problem).docids for problem in queries]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda problem: ranker.rank(problem).docids, queries)) == alone


def test_coroutines_may_send_their_calls_to_threads(tiny: TransformersBackend, queries: list[Problem]) -> None:
    ranker = rankers(tiny)[0]

    async def together() -> list[tuple[str, ...]]:
        return [r.docids for r in await asyncio.gather(*(asyncio.to_thread(ranker.rank, p) for p in queries))]

    assert asyncio.run(together()) == [ranker.rank(problem).docids for problem in queries]


def test_replies_on_disk_may_be_asked_for_from_threads(
    tiny: TransformersBackend, queries: list[Problem], tmp_path: Path
) -> None:
    backend = cached(tiny, tmp_path)
    assert not hasattr(backend, "session")
    ranker = IRanker(backend, think=False)
    with ThreadPoolExecutor(4) as pool:
        first = list(pool.map(lambda problem: ranker.rank(problem).docids, queries))
    assert first == [IRanker(tiny, think=False).rank(problem).docids for problem in queries]


def test_a_call_that_broke_off_leaves_nothing_half_known(
    tiny: TransformersBackend, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = IRanker(tiny, think=False, layout="append")
    problem = make_problem(5)
    alone = ranker.rank(problem)
    prefixes = tiny._prefixes
    assert prefixes is not None

    def breaks(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prefixes, "_append", breaks)
        ranker.rank(problem)
    assert prefixes.keys == []
    assert ranker.rank(problem).docids == alone.docids
