"""Queries that wait for a ranker, and whose turn it is. In: problems. Out: futures of rankings. Next: `live`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict, deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from r1ranker.errors import R1RankerError
from r1ranker.problem import Problem, Ranking
from r1ranker.ranking.drive import Active
from r1ranker.ranking.plans import Planner


class Full(R1RankerError):
    """As many queries of this key wait as may; try again in a moment."""


class Closed(R1RankerError):
    """Nothing more is taken: it was closed."""


class Pending(Future[Ranking]):
    """A ranking to be. cause: what the ranking's `error` was, as an exception."""

    cause: Exception | None = None


@dataclass(slots=True, eq=False, weakref_slot=True)
class Query:
    """One that was submitted. active: None until it has begun. task: of the event loop that asks an endpoint."""

    problem: Problem
    planner: Planner
    deadline: float
    key: str
    pending: Pending
    active: Active | None = None
    task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        """Whether it has its answer, or nobody waits for it any more."""
        return self.pending.done()

    def first(self) -> Active:
        """Its plan with what that asks first, or with its ranking."""
        active = Active(self.problem.qid, self.planner(self.problem))
        active.begin()
        return active

    def own(self) -> None:
        """What is asked carries the key, so that no prefix is shared between two."""
        one = self.active
        if self.key and one and one.ask:
            one.ask = dataclasses.replace(one.ask, prompt=dataclasses.replace(one.ask.prompt, owner=self.key))

    def finish(self, ranking: Ranking, cause: Exception | None = None) -> None:
        """Its answer; what it was made of is dropped."""
        self.pending.cause = cause
        with suppress(InvalidStateError):  # whoever waited for it has gone
            self.pending.set_result(ranking)
        self.active = None


class Waiting:
    """Queries by key; keys take turns. At most `most` of each key; those that are over count no more."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._by_key: OrderedDict[str, deque[Query]] = OrderedDict()

    def __len__(self) -> int:
        return sum(not query.over for line in self._by_key.values() for query in line)

    def put(self, query: Query) -> None:
        """Raises Full."""
        self._drop_over()
        line = self._by_key.setdefault(query.key, deque())
        if len(line) >= self.most:
            raise Full(f"{self.most} queries wait already; try again in a moment")
        line.append(query)

    def take(self) -> Query | None:
        """The first of the key whose turn it is."""
        while self._by_key:
            key, line = self._by_key.popitem(last=False)
            query = line.popleft()
            if line:
                self._by_key[key] = line
            if not query.over:
                return query
        return None

    def all(self) -> set[Query]:
        """All that wait."""
        return {query for line in self._by_key.values() for query in line}

    def _drop_over(self) -> None:
        """Those that had their answer at the deadline, or whom nobody waits for, hold no texts and no place."""
        for key, line in list(self._by_key.items()):
            left = deque(query for query in line if not query.over)
            if left:
                self._by_key[key] = left
            else:
                del self._by_key[key]
