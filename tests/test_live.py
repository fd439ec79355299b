"""Continuous batching: queries that come at any time share one ranker, and each has its own way and its own end."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest

from r1ranker.backends.base import Ask, AsyncBackend, Choice, Completion, PromptError
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import BackendError
from r1ranker.problem import Problem, Ranking
from r1ranker.prompts import Prompt
from r1ranker.ranking.live import Closed, Full, Live
from r1ranker.ranking.rankers import DRanker, IRanker, Ranker, Shuffled, Tournament, Windows
from r1ranker.ranking.scores import falling, scores

MakeProblem = Callable[..., Problem]
WAIT = 30.0


def weigh(prompt: Prompt, identifier: int) -> float:
    """[1] is removed first, so the right order is the pool in reverse, never the order given."""
    return 2.0**-identifier


class Gated(ScriptedBackend):
    """Answers a call only when `gate` is open; `calls` are the queries of each. A query with `poison` in it breaks."""

    masks_blocks = True

    def __init__(self, poison: Exception | None = None, dies: bool = False) -> None:
        super().__init__(weigh=weigh)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.calls: list[list[Prompt]] = []
        self.poison, self.dies = poison, dies

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        self.calls.append(list(prompts))
        self.entered.set()
        assert self.gate.wait(WAIT)
        if self.poison and any("poison" in prompt.text for prompt in prompts):
            raise self.poison
        if self.dies:
            self.dies = False
            raise SystemExit
        return super().choose(prompts, pools)


class Endpoint(AsyncBackend):
    """An `AsyncBackend` whose calls wait for the gate."""

    name = "endpoint"

    def __init__(self, concurrency: int = 4) -> None:
        self.concurrency = concurrency
        self.inner = ScriptedBackend(weigh=weigh)
        self.under_way = self.most = self.sessions = 0
        self.open = True

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Endpoint]:
        self.sessions += 1
        yield self

    async def answer(self, ask: Ask) -> Completion | Choice:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            while not self.open:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.001)
            if "poison" in ask.prompt.text:
                raise RuntimeError("unforeseen")
            assert ask.pool is not None
            return self.inner.choose([ask.prompt], [ask.pool])[0]
        finally:
            self.under_way -= 1


@contextmanager
def running(ranker: Ranker, **settings: int) -> Iterator[Live]:
    live = Live(ranker, **settings)
    live.start()
    try:
        yield live
    finally:
        live.close(WAIT)


def reverse(problem: Problem) -> tuple[str, ...]:
    return tuple(candidate.docid for candidate in reversed(problem.candidates))


def own(make_problem: MakeProblem, name: str, n: int = 4) -> Problem:
    """A problem whose docids say whose they are."""
    problem = make_problem(n, qid=name)

    return replace(
        problem, candidates=tuple(replace(c, docid=f"{name}-{i}") for i, c in enumerate(problem.candidates)), gains={}
    )


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def results(pending: Sequence[Future[Ranking]]) -> list[Ranking]:
    return [one.result(WAIT) for one in pending]


@pytest.mark.parametrize("backend", [Gated, Endpoint])
def test_each_query_gets_its_own_documents_whoever_else_is_asking(
    backend: Callable[[], Gated], make_problem: MakeProblem
) -> None:
    problems = [own(make_problem, f"q{i}", 2 + i % 5) for i in range(60)]
    with running(IRanker(backend()), batch=7) as live, ThreadPoolExecutor(8) as pool:
        rankings = results(list(pool.map(live.submit, problems)))
    assert [ranking.docids for ranking in rankings] == [reverse(problem) for problem in problems]


def test_the_model_says_the_same_in_company_as_alone(tiny: TransformersBackend, problems: list[Problem]) -> None:
    ranker = IRanker(tiny)
    alone = [ranker.rank(problem) for problem in problems]
    with running(ranker, batch=5) as live:
        together = results([live.submit(problem) for problem in problems])
    assert [ranking.docids for ranking in together] == [ranking.docids for ranking in alone]


def test_a_new_query_joins_the_batch_at_its_next_step(make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(IRanker(backend)) as live:
        backend.gate.clear()
        first = live.submit(make_problem(5, qid="first"))
        assert backend.entered.wait(WAIT)
        second = live.submit(make_problem(3, qid="second"))
        backend.gate.set()
        results([first, second])
    assert [len(call) for call in backend.calls] == [1, 2, 2, 1]


def test_an_endpoint_is_asked_many_things_at_a_time_over_one_session(make_problem: MakeProblem) -> None:
    endpoint = Endpoint(concurrency=3)
    with running(IRanker(endpoint)) as live:
        results([live.submit(make_problem(4, qid=f"q{i}")) for i in range(12)])
    assert endpoint.most == 3
    assert endpoint.sessions == 1


def test_each_query_has_its_own_plan(make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(IRanker(backend)) as live:
        short = IRanker(backend, top_k=3).plan
        whole, part = results([live.submit(make_problem(5)), live.submit(make_problem(5), planner=short)])
    assert (len(whole.steps), len(part.steps)) == (4, 2)


@pytest.mark.parametrize("error", [BackendError("broken"), RuntimeError("unforeseen"), MemoryError()])
def test_a_query_that_breaks_a_batch_fails_alone(error: Exception, make_problem: MakeProblem) -> None:
    backend = Gated(poison=error)
    problems = [make_problem(3, qid=f"q{i}", query="poison" if i == 3 else "sound") for i in range(8)]
    with running(IRanker(backend)) as live:
        rankings = results([live.submit(problem) for problem in problems])
        assert live.healthy
    assert [bool(ranking.error) for ranking in rankings] == [i == 3 for i in range(8)]
    assert all(ranking.docids == reverse(problems[0]) for i, ranking in enumerate(rankings) if i != 3)


def test_at_an_endpoint_a_failure_nobody_expected_is_of_one_query(make_problem: MakeProblem) -> None:
    problems = [make_problem(3, qid=f"q{i}", query="poison" if i == 3 else "sound") for i in range(8)]
    with running(IRanker(Endpoint())) as live:
        rankings = results([live.submit(problem) for problem in problems])
    assert [ranking.error for ranking in rankings if ranking.error] == ["RuntimeError: unforeseen"]


def test_a_plan_that_breaks_fails_alone(make_problem: MakeProblem) -> None:
    def broken(problem: Problem) -> Iterator[Ask]:
        raise ValueError("no plan")
        yield

    with running(IRanker(Gated())) as live:
        bad = live.submit(make_problem(3), planner=broken)  # type: ignore[arg-type]
        good = live.submit(make_problem(3))
        assert "no plan" in bad.result(WAIT).error
        assert not good.result(WAIT).error


def test_a_prompt_that_cannot_be_read_says_so_as_its_cause(make_problem: MakeProblem) -> None:
    with running(IRanker(Gated())) as live:
        pending = live.submit(make_problem(3, query="half \ud83d"))
        assert "half a character" in pending.result(WAIT).error
    assert isinstance(pending.cause, PromptError)


RANKERS: list[Callable[[Ranker], Ranker]] = [
    lambda inner: inner,
    lambda inner: Windows(inner, 3, 1),
    lambda inner: Tournament(inner, 2),
    lambda inner: Shuffled(inner, 3),
]


@pytest.mark.parametrize("around", RANKERS)
@pytest.mark.parametrize("backend", [Gated, Endpoint])
def test_what_is_late_is_ordered_by_what_is_known(
    around: Callable[[Ranker], Ranker], backend: Callable[[], Gated | Endpoint], make_problem: MakeProblem
) -> None:
    asked = backend()
    with running(around(IRanker(asked))) as live:
        if isinstance(asked, Gated):
            asked.gate.clear()
        else:
            asked.open = False
        late = live.submit(make_problem(6), deadline=time.monotonic() + 0.05).result(WAIT)
        if isinstance(asked, Gated):
            asked.gate.set()
        else:
            asked.open = True
        assert not live.submit(make_problem(6)).result(WAIT).usage.cut_short
    assert late.usage.cut_short
    assert not late.error
    assert late.docids == ("d1", "d2", "d3", "d4", "d5", "d6"), "nothing is known, so it is the order given"


def test_steps_that_were_taken_before_the_deadline_count(make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(IRanker(backend)) as live:
        deadline = time.monotonic() + 0.5
        pending = live.submit(make_problem(6), deadline=deadline, planner=_stops_after(backend, 2))
        late = pending.result(WAIT)
        backend.gate.set()
    assert len(late.steps) == 2
    assert late.docids[-2:] == ("d2", "d1"), "removed already, the worst first"
    assert late.docids[:4] == ("d6", "d5", "d4", "d3"), "the others by the last probabilities of being removed"


def _stops_after(backend: Gated, steps: int) -> Callable[[Problem], Iterator[Ask]]:
    """A plan whose model hangs after so many steps."""

    def plan(problem: Problem) -> Iterator[Ask]:
        inner = IRanker(backend).plan(problem)
        ask = next(inner)
        taken = 0
        while True:
            if taken == steps:
                backend.gate.clear()
            try:
                reply = yield ask
            except BaseException as over:
                try:
                    ask = inner.throw(over)
                except StopIteration as done:
                    return done.value
                continue
            taken += 1
            ask = inner.send(reply)

    return plan  # type: ignore[return-value]


def test_where_nothing_was_asked_in_time_the_prior_orders(make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(IRanker(backend)) as live:
        backend.gate.clear()  # the model does not answer, however quick the machine is
        late = live.submit(make_problem(3, prior={"d1": 1, "d2": 3, "d3": 2}), deadline=time.monotonic() - 1)
        assert late.result(WAIT).docids == ("d2", "d3", "d1")
        backend.gate.set()


@pytest.mark.parametrize("layout", ["relist", "blocks"])
def test_a_list_in_one_go_can_be_late_too(layout: str, make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(DRanker(backend, layout=layout)) as live:  # type: ignore[arg-type]
        backend.gate.clear()
        late = live.submit(make_problem(4), deadline=time.monotonic() + 0.05).result(WAIT)
        backend.gate.set()
    assert (late.docids, late.usage.cut_short) == (("d1", "d2", "d3", "d4"), 1)


def test_keys_take_turns_however_much_one_of_them_asks(make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(IRanker(backend), batch=1) as live:
        backend.gate.clear()
        many = [live.submit(make_problem(2, qid=f"a{i}", query=f"a{i}"), key="a") for i in range(20)]
        few = [live.submit(make_problem(2, qid=f"b{i}", query=f"b{i}"), key="b") for i in range(3)]
        backend.gate.set()
        results([*many, *few])
    order = [prompts[0].text.split()[1][0] for prompts in backend.calls]
    assert "".join(order[:7]) in ("aababab", "abababa"), "b is served in turn, not behind all of a"


def test_a_full_queue_refuses_and_only_the_key_that_filled_it(make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(IRanker(backend), batch=1, most=2) as live:
        backend.gate.clear()
        taken = [live.submit(make_problem(2), key="a")]
        assert backend.entered.wait(WAIT)
        taken += [live.submit(make_problem(2), key="a") for _ in range(2)]
        with pytest.raises(Full):
            live.submit(make_problem(2), key="a")
        taken.append(live.submit(make_problem(2), key="b"))
        backend.gate.set()
        assert not any(ranking.error for ranking in results(taken))


@pytest.mark.parametrize("ends", ["late", "gone"])
def test_what_waits_no_more_takes_no_place_in_the_queue(ends: str, make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(IRanker(backend), batch=1, most=3) as live:
        backend.gate.clear()
        first = live.submit(make_problem(2))
        assert backend.entered.wait(WAIT)
        deadline = time.monotonic() + 0.05 if ends == "late" else None
        over = [live.submit(make_problem(2), deadline=deadline) for _ in range(3)]
        if ends == "late":
            assert all(ranking.usage.cut_short for ranking in results(over))
        else:
            assert all(one.cancel() for one in over)
        assert live.waiting == 0
        fourth = live.submit(make_problem(2))
        assert live.waiting == 1
        backend.gate.set()
        assert not any(ranking.error for ranking in results([first, fourth]))


@pytest.mark.parametrize("backend", [Gated, Endpoint])
def test_a_prompt_that_takes_long_to_write_holds_up_nobody_s_deadline(
    backend: Callable[[], Gated], make_problem: MakeProblem
) -> None:
    ranker, writing, written = IRanker(backend()), threading.Event(), threading.Event()

    def slow(problem: Problem) -> Iterator[Ask]:
        writing.set()
        assert written.wait(WAIT)
        return ranker.plan(problem)

    with running(ranker) as live:
        long = live.submit(make_problem(3), planner=slow, deadline=time.monotonic() + 0.1)  # type: ignore[arg-type]
        assert writing.wait(WAIT)
        late = live.submit(make_problem(3), deadline=time.monotonic() + 0.05)
        assert [ranking.usage.cut_short for ranking in results([late, long])] == [1, 1]
        written.set()
        assert not live.submit(make_problem(3)).result(WAIT).usage.cut_short


def test_no_prefix_is_shared_between_keys(make_problem: MakeProblem, tiny: TransformersBackend) -> None:
    with running(IRanker(tiny, layout="append")) as live:
        same, costs = make_problem(4), []
        for key in ("a", "b"):
            costs.append(live.submit(same, key=key).result(WAIT).usage.prompt_tokens)
    assert costs[0] == costs[1]
    backend = Gated()
    with running(IRanker(backend)) as live:
        results([live.submit(same, key=key) for key in ("a", "b")])
    assert {prompt.owner for call in backend.calls for prompt in call} == {"a", "b"}


@pytest.mark.parametrize("how", ["exits", "killed"])
def test_a_dead_thread_is_noticed_its_queries_are_answered_and_another_one_goes_on(
    how: str, make_problem: MakeProblem
) -> None:
    backend = Gated(dies=how == "exits")
    with running(IRanker(backend)) as live:
        backend.gate.clear()
        lost = live.submit(make_problem(3))
        assert backend.entered.wait(WAIT)
        waiting = live.submit(make_problem(3), key="other")
        if how == "killed":
            thread = ctypes.c_ulong(live._worker.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(KeyboardInterrupt))
        backend.gate.set()
        assert "thread ended" in lost.result(WAIT).error
        assert waiting.result(WAIT).docids == ("d3", "d2", "d1")
        wait_for(lambda: live.healthy)
        assert live.stats.restarts == 1


def test_an_endpoint_that_cannot_be_opened_is_not_started_over_and_over(make_problem: MakeProblem) -> None:
    class Closed_(Endpoint):
        @asynccontextmanager
        async def session(self) -> AsyncIterator[Endpoint]:
            self.sessions += 1
            raise OSError("no")
            yield self

    endpoint = Closed_()
    with running(IRanker(endpoint)) as live:
        late = live.submit(make_problem(3), deadline=time.monotonic() + 0.2)
        assert late.result(WAIT).usage.cut_short or late.result(WAIT).error
        assert endpoint.sessions < 4


def test_a_query_whom_nobody_waits_for_leaves_the_batch_at_the_next_step(make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(IRanker(backend)) as live:
        backend.gate.clear()
        gone = live.submit(make_problem(5, query="gone"))
        assert backend.entered.wait(WAIT)
        stays = live.submit(make_problem(5, query="stays"))
        assert gone.cancel()
        backend.gate.set()
        results([stays])
    assert [len(call) for call in backend.calls] == [1, 1, 1, 1, 1]
    assert sum("gone" in call[0].text for call in backend.calls) == 1, "the step that was under way"


def test_what_nobody_waits_for_is_not_asked(make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(IRanker(backend), batch=1) as live:
        backend.gate.clear()
        first = live.submit(make_problem(2, query="first"))
        assert backend.entered.wait(WAIT)
        gone = live.submit(make_problem(2, query="gone"))
        last = live.submit(make_problem(2, query="last"))
        assert gone.cancel()
        backend.gate.set()
        results([first, last])
    assert not any("gone" in prompt.text for call in backend.calls for prompt in call)


@pytest.mark.parametrize("backend", [Gated, Endpoint])
def test_closing_finishes_what_runs_and_refuses_what_comes(
    backend: Callable[[], Gated], make_problem: MakeProblem
) -> None:
    live = Live(IRanker(backend()))
    live.start()
    pending = [live.submit(make_problem(5, qid=f"q{i}")) for i in range(20)]
    live.close(WAIT)
    assert all(one.done() and not one.result().error for one in pending)
    with pytest.raises(Closed):
        live.submit(make_problem(3))
    assert not live.healthy


def test_what_does_not_end_in_time_is_answered_with_an_error_at_closing(make_problem: MakeProblem) -> None:
    backend = Gated()
    live = Live(IRanker(backend))
    live.start()
    backend.gate.clear()
    pending = live.submit(make_problem(5))
    assert backend.entered.wait(WAIT)
    live.close(0.05)
    assert "stopped" in pending.result(WAIT).error
    backend.gate.set()


def test_what_was_answered_is_not_kept(make_problem: MakeProblem) -> None:
    gc.disable()  # nothing may wait for it
    try:
        with running(IRanker(Gated())) as live:
            problem = own(make_problem, "q", 3)
            seen = weakref.ref(problem)
            live.submit(problem).result(WAIT)
            del problem
            wait_for(lambda: seen() is None)
    finally:
        gc.enable()


def test_nothing_to_rank_asks_nothing(make_problem: MakeProblem) -> None:
    backend = Gated()
    with running(IRanker(backend)) as live:
        empty = live.submit(make_problem(1, candidates=(), nothing_found=True, gains={}))
        assert empty.result(WAIT).docids == ()
        assert live.submit(make_problem(1)).result(WAIT).docids == ("d1",)
    assert backend.calls == []


@pytest.mark.parametrize("ask", ["worst", "best"])
@pytest.mark.parametrize("around", [*RANKERS, lambda inner: DRanker(inner.backend), None])
def test_scores_fall_strictly_between_0_and_1(
    ask: str, around: Callable[[Ranker], Ranker] | None, make_problem: MakeProblem, tiny: TransformersBackend
) -> None:
    inner = IRanker(tiny, ask=ask)  # type: ignore[arg-type]
    ranker = DRanker(tiny, layout="blocks") if around is None else around(inner)
    for n in (1, 2, 7):
        problem = make_problem(n)
        values = scores(problem, ranker.rank(problem))
        assert len(values) == n
        assert all(0 < value <= 1 for value in values)
        assert all(one > other for one, other in pairwise(values))


def test_scores_say_how_sure_the_model_was(make_problem: MakeProblem) -> None:
    problem = make_problem(3)

    def top(weights: tuple[float, float, float], ask: str) -> tuple[float, ...]:
        backend = ScriptedBackend(weigh=lambda prompt, k: weights[k - 1])
        return scores(problem, IRanker(backend, ask=ask).rank(problem))  # type: ignore[arg-type]

    sure, unsure = top((98, 1, 1), "best"), top((34, 33, 33), "best")
    assert sure[0] > 0.7 > unsure[0] > 0.45
    assert sure[1] < 0.1 < unsure[1]
    worst = top((98, 1, 1), "worst")
    assert worst[0] == pytest.approx(0.6, abs=0.01) == worst[1], "two that are equally likely to be the best of three"
    assert worst[-1] < 0.1, "the last is what was surely removed first"


def test_scores_of_no_steps_are_places(make_problem: MakeProblem) -> None:
    problem = make_problem(4)
    assert scores(problem, Ranking("q1", ("d1", "d2", "d3", "d4"), (4, 3, 2, 1))) == (1.0, 0.75, 0.5, 0.25)
    assert scores(problem, Ranking("q1", (), ())) == ()


def test_falling_is_the_closest_falling_sequence() -> None:
    assert falling([3, 1, 2, 0]) == [3, 1.5, 1.5, 0]
    assert falling([1, 2, 3]) == [2, 2, 2]
