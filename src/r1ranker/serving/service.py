"""What all routes share: settings and rankers. In: problems. Out: rankings with scores and warnings."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from r1ranker.problem import Problem, Ranking
from r1ranker.ranking.live import Full, Live
from r1ranker.ranking.scores import scores
from r1ranker.serving.errors import HttpError
from r1ranker.serving.settings import ServeSettings


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

    def start(self) -> None:
        """Load the models. Raises BackendError or ConfigError with the remedy."""
        for name, spec in self.settings.rankers.items():
            live = Live(spec.build(), most=self.settings.limits.queue)
            live.start()
            self.rankers[name] = live

    def close(self, grace_s: float) -> None:
        """Finish what runs."""
        for live in self.rankers.values():
            live.close(grace_s)

    async def rank(
        self,
        problem: Problem,
        *,
        ranker: str | None = None,
        top_n: int | None = None,
        deadline_s: float | None = None,
        key: str = "",
        explain: bool = False,
    ) -> Served:
        """Rank by the named ranker, or the default one. Raises HttpError."""
        name = ranker or self.settings.default_ranker
        if name not in self.rankers:
            raise HttpError(404, f"there is no model {name!r} here; there are {', '.join(self.rankers)}", "model")
        began = time.monotonic()
        try:
            deadline = began + (deadline_s or self.settings.limits.deadline_s)
            answer = self.rankers[name].submit(problem, deadline=deadline, key=key)
        except Full as error:
            raise HttpError(429, str(error), headers={"Retry-After": "1"}) from error
        ranking = await asyncio.wrap_future(answer)
        if ranking.error:
            raise HttpError(502, "the model could not answer", code="model_failed")
        return Served(ranking, scores(problem, ranking), (), name, time.monotonic() - began)
