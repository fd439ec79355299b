"""Rankings on demand: queries that come at any time share the batches of one ranker.

In: a `Ranker`. Out: futures of rankings.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from r1ranker.errors import R1RankerError
from r1ranker.problem import Problem, Ranking
from r1ranker.ranking.drive import drive
from r1ranker.ranking.plans import Planner
from r1ranker.ranking.rankers import Ranker


class Full(R1RankerError):
    """As many queries wait as may; try again in a moment."""


@dataclass(slots=True)
class _Query:
    problem: Problem
    planner: Planner
    answer: Future[Ranking]


class Live:
    """`submit` from any thread; one thread asks the model."""

    def __init__(self, ranker: Ranker, *, most: int = 64, batch: int | None = None) -> None:
        self.ranker = ranker
        self._batch = batch or ranker.batch_size
        self._waiting: queue.Queue[_Query | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name="r1ranker-live", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether queries are being answered."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self, grace_s: float) -> None:
        """Finish what runs, for at most so long."""
        self._waiting.put(None)
        self._thread.join(grace_s)

    def submit(
        self, problem: Problem, *, planner: Planner | None = None, deadline: float | None = None, key: str = ""
    ) -> Future[Ranking]:
        """The ranking to be; see `Ranking.error`. Raises Full. deadline: of `time.monotonic`."""
        answer: Future[Ranking] = Future()
        try:
            self._waiting.put_nowait(_Query(problem, planner or self.ranker.plan, answer))
        except queue.Full:
            raise Full("too many queries wait; try again in a second") from None
        return answer

    def _run(self) -> None:
        while (query := self._waiting.get()) is not None:
            try:
                ((_, ranking),) = drive([query.problem], query.planner, self.ranker.backend, 1)
                query.answer.set_result(ranking)
            except Exception as error:
                query.answer.set_result(Ranking(query.problem.qid, (), (), error=str(error)))
