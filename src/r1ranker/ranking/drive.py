"""Answering what plans ask. In: problems, a planner and a backend. Out: rankings, as they are finished.

A backend that answers in batches gets the asks of many queries in one call; a query that is finished
leaves the batch and the next one takes its place. One that answers over a network gets each query's asks
as they come, many queries at a time. Problems are drawn only as there is room for them.

A query whose prompt cannot be read, or which alone makes a batch fail, fails alone: its ranking is empty and says why.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from r1ranker.backends.base import Ask, AsyncBackend, Backend, CallError, Choice, Completion, PromptError, Session
from r1ranker.errors import BackendError
from r1ranker.problem import Problem, Ranking, Usage
from r1ranker.ranking.plans import OutOfTime, Plan, Planner, Reply

Finished = tuple[int, Ranking]
"""A ranking and the place of its problem among those given."""
AHEAD = 4
"""Queries that may be under way or finished but not yet taken, as a multiple of the concurrency: calls go on while a
ranking is written, but replies never pile up where the calls are faster than who takes them."""
FIRST = 4
"""Queries in the first batch; queries of one batch end together, so the first rankings come soon."""
NOTHING = Usage()
QUICK_SECONDS = 10.0
"""Batches grow while one is finished within this time,"""
GAIN = 0.9
"""or while twice as many queries take less than this share of the time for each."""


def drive(
    problems: Iterable[Problem], planner: Planner, backend: Backend | AsyncBackend, batch: int
) -> Iterator[Finished]:
    """Rankings in the order they are finished; one that failed alone is empty. BackendError: nothing can be asked."""

    def plan(problem: Problem) -> Plan:
        return planner(problem) if problem.candidates else _nothing_to_rank(problem)

    if isinstance(backend, AsyncBackend):
        return _one_by_one(problems, plan, backend)
    return _in_batches(problems, plan, backend, batch)


def _nothing_to_rank(problem: Problem) -> Plan:
    """The plan for an empty pool: nothing is asked."""
    yield from ()
    return Ranking(problem.qid, (), ())


def _in_batches(problems: Iterable[Problem], planner: Planner, backend: Backend, batch: int) -> Iterator[Finished]:
    waiting, room = enumerate(problems), _Room(batch)
    under_way: list[tuple[int, Active]] = []
    while (drawn := list(islice(waiting, room.size - len(under_way)))) or under_way:
        new = [(index, Active(problem.qid, planner(problem))) for index, problem in drawn]
        for _, one in new:
            one.begin()
        under_way += new
        asking = [one for _, one in under_way if one.ask]
        for one, reply in zip(asking, outcomes(backend, [one.ask for one in asking if one.ask]), strict=True):
            one.go_on(reply)
        ended = [(index, one.ranking) for index, one in under_way if one.ranking]
        under_way = [(index, one) for index, one in under_way if not one.ranking]
        for index, ranking in ended:
            room.count()
            yield index, ranking


@dataclass(slots=True)
class Active:
    """A query under way: what it asks now and what it has cost, or its ranking at last."""

    qid: str
    plan: Plan
    ask: Ask | None = None
    ranking: Ranking | None = None
    spent: Usage = field(default_factory=Usage)
    cause: Exception | None = None
    """What it failed of."""

    def begin(self) -> None:
        """Its first ask; its ranking where there is nothing to ask."""
        self._take(lambda: next(self.plan))

    def go_on(self, outcome: Reply | BackendError) -> None:
        """Its next ask, or its ranking: this was the last reply, or the error that ends it."""
        if isinstance(outcome, BackendError):
            self.fail(outcome)
            return
        self.spent += outcome.usage
        self._take(lambda: self.plan.send(outcome))

    def cut_short(self) -> None:
        """Its ranking by what is known; nothing more is asked."""
        while self.ranking is None:
            self._take(lambda: self.plan.throw(OutOfTime()))

    def fail(self, error: Exception, cost: Usage = NOTHING) -> None:
        """It ends without an order, and its ranking says why. cost: of the call that failed."""
        self.plan.close()
        self.ask, self.cause, self.spent = None, error, self.spent + cost
        self.ranking = Ranking(self.qid, (), (), usage=self.spent, error=str(error))

    def _take(self, advance: Callable[[], Ask]) -> None:
        try:
            self.ask = advance()
            check_text(self.ask)
        except StopIteration as done:
            self.ask, self.ranking = None, done.value
        except PromptError as error:
            self.fail(error)


@dataclass(slots=True)
class _Room:
    """How many queries are under way at a time, at most `most`."""

    most: int
    size: int = 0
    began: float = field(default_factory=time.perf_counter)
    done: int = 0
    each: float = float("inf")
    """Seconds a query when half as many were under way."""

    def __post_init__(self) -> None:
        self.size = min(FIRST, self.most)

    def count(self) -> None:
        """A query is finished."""
        self.done += 1
        if self.size < self.most and self.done >= self.size:
            seconds = time.perf_counter() - self.began
            each = seconds / self.done
            if seconds < QUICK_SECONDS or each < GAIN * self.each:
                self.size = min(self.most, 2 * self.size)
            self.began, self.done, self.each = time.perf_counter(), 0, each


def check_text(ask: Ask) -> None:
    """PromptError where a text cannot be written as UTF-8, so that no model can read it."""
    try:
        prompt = ask.prompt
        "".join((prompt.text, prompt.transcript, *prompt.blocks, prompt.prefill)).encode()
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.start]
        what = f"holds half a character ({error.object[error.start]!a} behind {near!r})"
        raise PromptError(f"a text {what}, as of an emoji that was cut; take it out") from error


def outcomes(backend: Backend, asks: Sequence[Ask]) -> list[Reply | BackendError]:
    """Replies, and the errors of those asks that alone cannot be answered. BackendError where none can, unless the
    prompts themselves are the reason."""
    said = halved(backend, asks) if asks else []
    errors = [outcome for outcome in said if isinstance(outcome, BackendError)]
    if errors and len(errors) == len(said) and not any(isinstance(error, PromptError) for error in errors):
        raise errors[0]
    return said


def halved(backend: Backend, asks: Sequence[Ask], unforeseen: bool = False) -> list[Reply | BackendError]:
    """One batch, or its halves where it fails: so what is wrong with one query is found in few calls.

    unforeseen: any exception counts as a failure, not only a BackendError.
    """
    try:
        return list(_answers(backend, asks))
    except Exception as error:
        if not (unforeseen or isinstance(error, BackendError)):
            raise
        if len(asks) == 1:
            return [error if isinstance(error, BackendError) else unforeseen_error(error)]
    half = len(asks) // 2
    return halved(backend, asks[:half], unforeseen) + halved(backend, asks[half:], unforeseen)


def unforeseen_error(error: BaseException) -> BackendError:
    """A failure that nobody expected, as one that ends a single query."""
    wrapped = BackendError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _answers(backend: Backend, asks: Sequence[Ask]) -> list[Reply]:
    """One call for the asks to choose and one for those to write."""
    said: dict[int, Completion | Choice] = {}
    began = time.perf_counter()
    choices = [i for i, ask in enumerate(asks) if ask.pool is not None]
    if choices:
        pools = [asks[i].pool or () for i in choices]
        said |= zip(choices, backend.choose([asks[i].prompt for i in choices], pools), strict=True)
    written = [i for i, ask in enumerate(asks) if ask.pool is None]
    if written:
        limit = max(asks[i].max_new_tokens for i in written)
        completions = backend.generate([asks[i].prompt for i in written], max_new_tokens=limit)
        said |= zip(written, completions, strict=True)
    seconds = (time.perf_counter() - began) / len(asks)
    return [Reply(said[i], seconds) for i in range(len(asks))]


def _one_by_one(problems: Iterable[Problem], planner: Planner, backend: AsyncBackend) -> Iterator[Finished]:
    """The event loop lives in a thread of its own, so that this works inside another one, as in a notebook."""
    finished: queue.SimpleQueue[Finished | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    room = asyncio.Semaphore(AHEAD * backend.concurrency)
    work = loop.create_task(_all(problems, planner, backend, room, finished.put))

    def run() -> None:
        try:
            loop.run_until_complete(work)
            finished.put(None)
        except BaseException as error:  # whatever it was, the caller gets it
            finished.put(error)
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="r1ranker-calls", daemon=True)
    thread.start()
    try:
        while (item := finished.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            with suppress(RuntimeError):  # when all is finished the loop is closed, and nobody waits for room
                loop.call_soon_threadsafe(room.release)
            yield item
    finally:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(work.cancel)
        thread.join()


async def _all(
    problems: Iterable[Problem],
    planner: Planner,
    backend: AsyncBackend,
    room: asyncio.Semaphore,
    finish: Callable[[Finished], None],
) -> None:
    """At most `concurrency` queries at a time, each with one call under way, and none without room for its ranking."""
    waiting = enumerate(problems)

    async def worker(session: Session) -> None:
        await room.acquire()
        for index, problem in waiting:  # shared: each worker takes the next
            finish((index, await _ranked(problem, planner(problem), session)))
            await room.acquire()
        room.release()  # of no use: the problems are at an end

    async with backend.session() as session, asyncio.TaskGroup() as group:
        for _ in range(backend.concurrency):
            group.create_task(worker(session))


async def _ranked(problem: Problem, plan: Plan, session: Session) -> Ranking:
    """The query's ranking; an empty one with the error in it when a call failed for good, whose cost counts too."""
    one = Active(problem.qid, plan)
    one.begin()
    while one.ranking is None:
        assert one.ask is not None, "a query without a ranking asks"
        began = time.perf_counter()
        try:
            said = await session.answer(one.ask)
        except BackendError as error:
            one.fail(error, cost_of(error) + Usage(seconds=time.perf_counter() - began))
        else:
            one.go_on(Reply(said, time.perf_counter() - began))
    return one.ranking


def cost_of(error: Exception) -> Usage:
    """What a call that failed for good has cost, without its time."""
    return error.usage if isinstance(error, CallError) else NOTHING
