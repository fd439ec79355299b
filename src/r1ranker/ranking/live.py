"""Rankings on demand: queries that come at any time share the batches of one ranker.

    live = Live(ranker)
    live.start()
    ranking = live.submit(problem, deadline=time.monotonic() + 5).result()

In: problems, from any thread. Out: futures of rankings. A new query joins the batch at its next step; each has its own
plan. One that fails fails alone. What its deadline passes is ordered by what is known. Keys take turns.

One thread asks the model: in batches, or, of an endpoint, with many calls at a time. A second one watches it: ends what
is late, and where the first has died, answers its queries with an error and starts another.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass

from r1ranker.backends.base import AsyncBackend, Session
from r1ranker.elimination import ranking_from
from r1ranker.errors import BackendError
from r1ranker.problem import Problem, Ranking, Usage
from r1ranker.ranking.drive import Active, cost_of, halved, unforeseen_error
from r1ranker.ranking.plans import Planner, Reply
from r1ranker.ranking.rankers import Ranker
from r1ranker.ranking.waiting import Closed, Full, Pending, Query, Waiting

__all__ = ["Closed", "Full", "Live", "Pending", "Stats"]

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
"""How often the watcher looks at the thread that asks the model, at least."""
DIED = "the model's thread ended while it was asked; ask again"
STUCK_SECONDS = 60.0
"""A single call to the model in this process that takes longer is no good sign."""


@dataclass(slots=True)
class Stats:
    """What was seen so far. batch: queries under way at the last step; restarts: of the thread that asks the model."""

    steps: int = 0
    batch: int = 0
    restarts: int = 0


class Live:
    """Continuous batching over one ranker. `start` it, `submit` from any thread, `close` it.

    most: queries of one key that may wait. batch: queries under way at a time; None: the ranker's batch size, or the
    endpoint's concurrency.
    """

    def __init__(self, ranker: Ranker, *, most: int = 64, batch: int | None = None) -> None:
        backend = ranker.backend
        self.ranker = ranker
        self.remote = isinstance(backend, AsyncBackend)
        self.stats = Stats()
        self._batch = batch or (backend.concurrency if isinstance(backend, AsyncBackend) else ranker.batch_size)
        self._waiting = Waiting(most)
        self._running: list[Query] = []
        self._known: set[Query] = set()  # all that may have no answer yet
        lock = threading.Lock()  # over what waits and what is known
        self._turn, self._look = threading.Condition(lock), threading.Condition(lock)
        self._plans = threading.RLock()  # over every plan that is under way
        self._calling_since = float("inf")
        self._look_at, self._replace_at = 0.0, 0.0
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._worker = self._new_worker()
        self._watcher = threading.Thread(target=self._watch, name="r1ranker-watch", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._worker.start()
        self._watcher.start()

    def close(self, grace_s: float) -> None:
        """Take nothing more and finish what runs, for at most so many seconds; then the rest ends with an error."""
        with self._turn:
            self._closing = True
        self._wake()
        self._worker.join(grace_s)
        self._end_all("the server stopped before it was answered")
        self._wake()
        self._watcher.join(LOOK_SECONDS)

    @property
    def ended(self) -> bool:
        """Whether the model is not being asked any more; after `close`, False where a call outlasted the grace."""
        return not self._worker.is_alive()

    @property
    def healthy(self) -> bool:
        """Whether queries are being answered: both threads live, and no call has been under way for a minute."""
        stuck = time.monotonic() - self._calling_since > STUCK_SECONDS
        return self._worker.is_alive() and self._watcher.is_alive() and not stuck

    @property
    def waiting(self) -> int:
        """Queries that have not begun."""
        with self._turn:
            return len(self._waiting)

    def submit(
        self, problem: Problem, *, planner: Planner | None = None, deadline: float | None = None, key: str = ""
    ) -> Pending:
        """The ranking to be; one that failed has an `error`, and one that was late says so in `usage.cut_short`.

        planner: how this query is ranked; None: as the ranker does. deadline: of `time.monotonic`. key: who asks.
        Raises Full, or Closed.
        """
        pending = Pending()
        planner = planner or self.ranker.plan
        query = Query(problem, planner, float("inf") if deadline is None else deadline, key, pending)
        if not problem.candidates:
            query.finish(Ranking(problem.qid, (), ()))
            return pending
        known = weakref.ref(query)  # else both would hold each other, and their texts, until garbage is collected
        pending.add_done_callback(lambda _: self._stop_calls(known()))
        with self._turn:
            if self._closing:
                raise Closed("nothing more is taken: it is stopping")
            self._waiting.put(query)
            self._known.add(query)
            self._turn.notify()
            if query.deadline < self._look_at:
                self._look.notify()
        self._tell_loop()
        return pending

    # The thread that asks a model in this process.

    def _new_worker(self) -> threading.Thread:
        return threading.Thread(target=self._work, name="r1ranker-live", daemon=True)

    def _work(self) -> None:
        try:
            if self.remote:
                asyncio.run(self._call_out())
            else:
                self._run_batches()
        except BaseException as error:  # also a SystemExit, of which a thread ends in silence
            log.error("the thread that asks the model has ended: %s", type(error).__name__, exc_info=error)
        finally:
            self._wake()

    def _run_batches(self) -> None:
        while True:
            with self._turn:
                while not (self._running or len(self._waiting) or self._closing):
                    self._turn.wait()
                if not (self._running or len(self._waiting)):
                    return
            self._join()
            self._step()

    def _join(self) -> None:
        """Let new queries join what runs, as many as there is room for."""
        new: list[Query] = []
        with self._turn:
            while len(self._running) + len(new) < self._batch and (query := self._waiting.take()):
                new.append(query)
        for query in new:
            self._begin(query)
        with self._plans:
            self._running = [query for query in (*self._running, *new) if not query.over]

    def _step(self) -> None:
        """One call for what all of them ask."""
        with self._plans:
            asking = [(query, query.active) for query in self._running if query.active and query.active.ask]
            asks = [active.ask for _, active in asking if active.ask]
        self._calling_since = time.monotonic()
        replies = halved(self.ranker.backend, asks, unforeseen=True) if asks else []  # type: ignore[arg-type]
        self._calling_since = float("inf")
        self.stats.steps += bool(asks)
        self.stats.batch = len(asks)
        with self._plans:
            for (query, active), reply in zip(asking, replies, strict=True):
                if not query.over:
                    self._advance(query, active, reply)
            self._running = [query for query in self._running if not query.over]

    def _begin(self, query: Query) -> None:
        """Its first ask, which may take long to write: the lock is taken behind it, so that others end in time."""
        if query.over:
            return
        active, failure = None, None
        try:
            active = query.first()
        except Exception as error:
            failure = error
        with self._plans:
            if query.over:  # its deadline came meanwhile
                return
            query.active = active
            if failure is not None:
                query.finish(_failed(query, failure), failure)
            else:
                self._settle(query)

    def _advance(self, query: Query, active: Active, outcome: Reply | BackendError) -> None:
        try:
            if isinstance(outcome, BackendError):
                active.fail(outcome, cost_of(outcome))
            else:
                active.go_on(outcome)
        except Exception as error:
            active.fail(unforeseen_error(error))
        self._settle(query)

    def _settle(self, query: Query) -> None:
        """Answer the query where it has its ranking."""
        active = query.active
        assert active is not None, "a query that is under way has begun"
        if active.ranking is None:
            query.own()
        else:
            query.finish(active.ranking, active.cause)

    # The event loop that asks an endpoint.

    async def _call_out(self) -> None:
        assert isinstance(self.ranker.backend, AsyncBackend)
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        room = asyncio.Semaphore(self._batch)
        async with self.ranker.backend.session() as session:
            while True:
                await room.acquire()
                with self._turn:
                    query = self._waiting.take()
                    if query:
                        self._running = [*(one for one in self._running if not one.over), query]
                    self.stats.batch, closing = len(self._running), self._closing
                if query:
                    query.task = self._loop.create_task(self._ask(query, session))
                    query.task.add_done_callback(lambda _: room.release())
                    continue
                room.release()
                if closing:
                    break
                await self._news.wait()
                self._news.clear()
            tasks = [query.task for query in self._running if query.task]
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, query: Query, session: Session) -> None:
        self._begin(query)
        while not query.over and (active := query.active) and active.ask:
            began = time.perf_counter()
            outcome: Reply | BackendError
            try:
                outcome = Reply(await session.answer(active.ask), time.perf_counter() - began)
            except Exception as error:
                outcome = error if isinstance(error, BackendError) else unforeseen_error(error)
            self.stats.steps += 1
            with self._plans:
                if not query.over:
                    self._advance(query, active, outcome)

    def _tell_loop(self) -> None:
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self._news.set)

    # The watcher.

    def _wake(self) -> None:
        with self._turn:
            self._turn.notify_all()
            self._look.notify_all()
        self._tell_loop()

    def _watch(self) -> None:
        while not self._closing or self._worker.is_alive():
            with self._turn:
                self._known = {query for query in self._known if not query.over}
                now, alive = time.monotonic(), self._worker.is_alive()
                self._look_at = min([now + LOOK_SECONDS, *(query.deadline for query in self._known)])
                if self._look_at > now and (alive or now < self._replace_at):
                    self._look.wait(self._look_at - now)
                self._look_at = 0.0
            self._see()

    def _see(self) -> None:
        """End what is late, and replace the other thread where it has died."""
        with self._turn:
            late = [query for query in self._known if query.deadline <= time.monotonic() and not query.over]
        if not (self._closing or self._worker.is_alive()) and time.monotonic() >= self._replace_at:
            self._replace()
        for query in late:
            self._end(query)

    def _replace(self) -> None:
        with self._turn:
            dead = self._known - self._waiting.all()
        for query in dead:
            if not query.over:
                query.finish(_failed(query, DIED), BackendError(DIED))
        self.stats.restarts += 1
        self._running, self._calling_since = [], float("inf")
        self._replace_at = time.monotonic() + LOOK_SECONDS  # one that cannot live is not started over and over
        self._worker = self._new_worker()
        self._worker.start()

    def _end(self, query: Query) -> None:
        """Past its deadline: the ranking by what is known, also while the model is being asked."""
        with self._plans:
            if query.over:
                return
            active, ranking = query.active, None
            try:
                if active is not None:  # else nothing was asked, and to write what would be takes time
                    active.cut_short()
                    ranking = active.ranking
            except Exception as error:
                log.debug("a plan did not end when it was told to", exc_info=error)
            query.finish(_known(query.problem, ranking), active.cause if active else None)

    def _stop_calls(self, query: Query | None) -> None:
        """What is asked for a query that has its answer, or whom nobody waits for, is asked in vain."""
        task, loop = query.task if query else None, self._loop
        ours = threading.current_thread() is self._worker
        if task is not None and loop is not None and not ours:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(task.cancel)

    def _end_all(self, why: str) -> None:
        with self._turn:
            left = list(self._known)
        with self._plans:
            for query in left:
                if not query.over:
                    query.finish(_failed(query, why), BackendError(why))


def _failed(query: Query, why: object) -> Ranking:
    spent = query.active.spent if query.active else Usage()
    return Ranking(query.problem.qid, (), (), usage=spent, error=str(why))


def _known(problem: Problem, ranking: Ranking | None) -> Ranking:
    """What a plan that was ended made of its steps. Without any, the order of the prior, or else the order given."""
    if ranking is not None and (ranking.error or ranking.steps or not ranking.usage.cut_short):
        return ranking
    ids, prior = problem.identifiers, problem.prior
    if all(candidate.docid in prior for candidate in problem.candidates):
        ids = tuple(sorted(ids, key=lambda k: -prior[problem.candidate(k).docid]))
    spent = ranking.usage if ranking else Usage(cut_short=1)
    return ranking_from(problem, ids, (), spent)
