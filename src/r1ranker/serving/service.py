"""What all routes share: settings and rankers. In: problems. Out: rankings with scores and warnings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from r1ranker.backends.base import PromptError
from r1ranker.errors import ConfigError
from r1ranker.problem import Problem, Ranking
from r1ranker.ranking.fitting import reached
from r1ranker.ranking.live import Closed, Full, Live, Pending
from r1ranker.ranking.rankers import First, reads
from r1ranker.ranking.scores import scores
from r1ranker.serving.errors import HttpError
from r1ranker.serving.metrics import Metrics
from r1ranker.serving.settings import ServeSettings

RETRY_SECONDS = "1"
TOO_LATE = (
    "the deadline of {:.3g} s came before the model had said anything; send fewer or shorter documents, allow more "
    "time (deadline_s, and limits.deadline_s of the settings), or ask again when less is under way"
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Served:
    """A ranking as it goes out. scores: one for each docid, in (0, 1], strictly falling; see `ranking.scores`."""

    ranking: Ranking
    scores: tuple[float, ...]
    warnings: tuple[str, ...]
    ranker: str
    seconds: float


@dataclass
class Service:
    """Rankers by name, running. `app.state.service`."""

    settings: ServeSettings
    rankers: dict[str, Live] = field(default_factory=dict)
    stopping: bool = False

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.rankers)

    def start(self) -> None:
        """Load the models and begin to answer, where that was not done before. Raises BackendError or ConfigError."""
        if self.rankers:
            return
        for name, spec in self.settings.rankers.items():
            try:
                live = Live(spec.build(), most=self.settings.limits.queue)
            except ConfigError as error:
                raise ConfigError(f"rankers.{name}: {error}") from error
            live.start()
            self.rankers[name] = live

    def close(self, grace_s: float) -> None:
        """Finish what runs, for at most so many seconds."""
        self.stopping = True
        until = time.monotonic() + grace_s
        for live in self.rankers.values():
            live.close(max(0.0, until - time.monotonic()))

    @property
    def ended(self) -> bool:
        """Whether no ranker is being asked any more."""
        return all(live.ended for live in self.rankers.values())

    def allowed(self, key: str) -> tuple[str, ...]:
        """Names of the rankers that a key may use."""
        mine = self.settings.key(key)
        return tuple(name for name in self.rankers if mine is None or mine.models is None or name in mine.models)

    def named(self, ranker: str | None, key: str) -> str:
        """The ranker's name. HttpError 404 for one that is not there or not this key's."""
        allowed = self.allowed(key)
        name = ranker or (self.settings.default_ranker if self.settings.default_ranker in allowed else None)
        if name is None and allowed:
            name = allowed[0]
        if name not in allowed:
            there = f"there are {', '.join(allowed)}" if allowed else "this key may use none"
            raise HttpError(404, f"there is no model {ranker!r} here; {there}", "model", "model_not_found")
        return name

    async def rank(
        self,
        problem: Problem,
        *,
        ranker: str | None = None,
        top_n: int | None = None,
        deadline_s: float | None = None,
        key: str = "",
        explain: bool = False,
        trusted: bool = False,
        reach: bool = False,
    ) -> Served:
        """Rank by the named ranker, or the default one; the whole pool, of which the first `top_n` are surely ordered.

        deadline_s: at most that of the settings. explain: the whole order is wanted, and how it came about. trusted:
        the ranker is the server's choice, not the request's: the key need not name it, and where the deadline comes
        before its first step the order is the one given, which is else an error. reach: of a pool that the
        model cannot read at once, rank as many of the first as it can; the others keep their places behind them.
        Raises HttpError.
        """
        name = self.named(ranker, "" if trusted else key)
        live, began = self.rankers[name], time.monotonic()
        self.metrics.count.labels(name).inc()
        most = self.settings.limits.deadline_s
        deadline = began + (most if deadline_s is None or not 0 < deadline_s < most else deadline_s)
        planner = First(live.ranker, top_n).plan if top_n and not explain else None
        if reach:
            fits = partial(reads, live.ranker.backend)
            planner = partial(reached, inner=planner or live.ranker.plan, fits=fits)
        try:
            pending = live.submit(problem, planner=planner, deadline=deadline, key=key)
        except Full as error:
            self.metrics.failure.labels(name, "overloaded").inc()
            raise HttpError(429, str(error), code="overloaded", headers={"Retry-After": RETRY_SECONDS}) from error
        except Closed as error:
            self.metrics.failure.labels(name, "stopping").inc()
            raise HttpError(503, str(error), code="stopping", headers={"Retry-After": RETRY_SECONDS}) from error
        try:
            ranking = await asyncio.wrap_future(pending)
        except asyncio.CancelledError:  # whoever asked has gone; the query leaves the batch at its next step
            self.metrics.failure.labels(name, "gone").inc()
            raise
        seconds = time.monotonic() - began
        self.metrics.spent(name, ranking.usage)
        if ranking.error:
            raise self._failed(name, live, pending) from pending.cause
        if ranking.usage.cut_short and not ranking.steps and not trusted:
            self.metrics.failure.labels(name, "late").inc()
            raise HttpError(
                504, TOO_LATE.format(deadline - began), code="deadline", headers={"Retry-After": RETRY_SECONDS}
            )
        self.metrics.success.labels(name).inc()
        self.metrics.seconds.labels(name).observe(seconds)
        if ranking.usage.cut_short:
            self.metrics.late.labels(name).inc()
        return Served(ranking, scores(problem, ranking), warnings_of(ranking, deadline - began), name, seconds)

    def _failed(self, name: str, live: Live, pending: Pending) -> HttpError:
        """What a client is told: its own fault in words, another one not, as that may quote addresses."""
        cause = pending.cause
        if isinstance(cause, PromptError):
            self.metrics.failure.labels(name, "validation").inc()
            return HttpError(422, f"the model cannot read this request: {cause}", "documents", "prompt")
        self.metrics.failure.labels(name, "backend").inc()
        who = "the endpoint behind" if live.remote else "the model of"
        return HttpError(502 if live.remote else 500, f"{who} {name!r} could not answer", code="model_failed")


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives; it is cancelled when the client of a request whose body was read goes: ClientDisconnect."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def warnings_of(ranking: Ranking, seconds: float) -> tuple[str, ...]:
    """What a reader of the order should know."""
    usage, warnings = ranking.usage, list[str]()
    if usage.cut_short:
        rest = "the rest is ordered by what they said" if ranking.steps else "the order is the one given"
        warnings.append(f"the deadline of {seconds:.3g} s came after {len(ranking.steps)} steps; {rest}")
    if not (ranking.steps or usage.cut_short) and len(ranking.docids) > 1:
        warnings.append("the ranker's settings leave nothing to ask of so few candidates; the order is the one given")
    if usage.cut:
        warnings.append("texts were cut to fit the model")
    if ranking.broken:
        warnings.append(f"{ranking.broken} of {len(ranking.steps)} answers of the model were broken")
    return tuple(warnings)
