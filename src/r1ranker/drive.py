"""Answering what plans ask. In: problems, a planner and a backend. Out: rankings, as they are finished.

A backend that answers in batches gets the asks of many queries in one call; a query that is finished
leaves the batch and the next one takes its place. One that answers over a network gets each query's asks
as they come, many queries at a time. Problems are drawn only as there is room for them.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice

from pydantic import TypeAdapter

from r1ranker.backends.base import Ask, AsyncBackend, Backend, CallError, Choice, Completion, Session
from r1ranker.errors import BackendError
from r1ranker.plans import Plan, Planner, Reply
from r1ranker.problem import Problem, Ranking, Usage

Finished = tuple[int, Ranking]
"""A ranking and the place of its problem among those given."""
RANKING = TypeAdapter(Ranking)
"""To JSON and back, for files and other processes."""
AHEAD = 4
"""Queries that may be under way or finished but not yet taken, as a multiple of the concurrency: calls go on while a
ranking is written, but replies never pile up where the calls are faster than who takes them."""


def drive(
    problems: Iterable[Problem], planner: Planner, backend: Backend | AsyncBackend, batch: int
) -> Iterator[Finished]:
    """Rankings in the order they are finished. Raises BackendError when a batch cannot be answered."""

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
    waiting = enumerate(problems)
    active: list[tuple[int, Plan, Ask]] = []
    while (drawn := list(islice(waiting, batch - len(active)))) or active:
        for index, problem in drawn:
            plan = planner(problem)
            try:
                active.append((index, plan, next(plan)))
            except StopIteration as done:  # nothing to ask
                yield index, done.value
        if not active:
            continue
        replies = _answers(backend, [ask for _, _, ask in active])
        going: list[tuple[int, Plan, Ask]] = []
        for (index, plan, _), reply in zip(active, replies, strict=True):
            try:
                going.append((index, plan, plan.send(reply)))
            except StopIteration as done:
                yield index, done.value
        active = going


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
    spent, began = Usage(), time.perf_counter()
    try:
        ask = next(plan)
        while True:
            began = time.perf_counter()
            reply = Reply(await session.answer(ask), time.perf_counter() - began)
            spent += reply.usage
            ask = plan.send(reply)
    except StopIteration as done:
        ranking: Ranking = done.value
        return ranking
    except BackendError as error:
        spent += Usage(seconds=time.perf_counter() - began)
        spent += error.usage if isinstance(error, CallError) else Usage()
        return Ranking(problem.qid, (), (), usage=spent, error=str(error))
