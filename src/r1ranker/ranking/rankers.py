"""The rankers. In: `Problem`s and a backend. Out: `Ranking`s.

    ranker = IRanker(TransformersBackend.load("nano"))
    ranking = ranker.rank(problem)

`DRanker` and `IRanker` are the two designs. The others make one of them cheaper or steadier, or reach lists
longer than a context: each ranks parts of the pool with the ranker it holds. All run the same `plans`,
answered by `drive`; training and evaluation run the same code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from r1ranker.backends.base import Ask, AsyncBackend, Backend
from r1ranker.errors import ConfigError
from r1ranker.io.progress import track
from r1ranker.problem import Problem, Ranking
from r1ranker.prompts import Layout, QueryPlace, Readout, Wanted
from r1ranker.ranking import fitting, plans
from r1ranker.ranking.drive import Finished, drive
from r1ranker.ranking.fusing import Fusion
from r1ranker.ranking.fusing import check as check_fusion
from r1ranker.ranking.plans import Budget, Plan


class Ranker(ABC):
    """A plan for a problem, and a backend to carry it out."""

    backend: Backend | AsyncBackend
    batch_size: int

    @abstractmethod
    def plan(self, problem: Problem) -> Plan:
        """What is asked for one problem."""

    def rank(self, problem: Problem) -> Ranking:
        """The ranking of one problem."""
        return self.rank_many([problem])[0]

    def rank_many(self, problems: Sequence[Problem], *, progress: str = "") -> list[Ranking]:
        """The rankings of many, in order; `progress` names a progress bar (none when empty).

        A prompt that cannot be read, and a call to an endpoint that fails for good, leave that query without
        docids, and its `error` says why. A model in this process that answers nothing raises BackendError.
        """
        rankings: dict[int, Ranking] = {}
        with track(len(problems), progress) as advance:
            for place, ranking in self.rank_each(problems):
                rankings[place] = ranking
                advance(1)
        return [rankings[place] for place in range(len(problems))]

    def rank_each(self, problems: Iterable[Problem]) -> Iterator[Finished]:
        """(place of the problem, its ranking) as they are finished; problems are drawn as there is room."""
        return drive(problems, self.plan, self.backend, self.batch_size)


@dataclass
class DRanker(Ranker):
    """Direct: one completion holds the whole ranking.

    think: a free thought before the list. Off, each identifier is chosen by the model's probabilities over those
        not named yet, so the list cannot be malformed. What is written freely, with a thought or by an endpoint,
        may leave candidates out; they follow in pool order.
    """

    backend: Backend | AsyncBackend
    think: bool = False
    layout: Layout = "relist"
    readout: Readout = "judge"
    query: QueryPlace = "first"
    max_new_tokens: int = 1024
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_layout(self.layout, self.query)
        if self.layout == "blocks":
            check_blocks(self.backend, self.think)

    def plan(self, problem: Problem) -> Plan:
        """See `plans.direct`, `plans.listed` and `plans.judged`."""
        if self.layout == "blocks":
            if self.readout == "judge":
                return plans.judged(problem, None, query=self.query)
            return plans.listed(problem, "blocks", self.query)
        if not self.think and not isinstance(self.backend, AsyncBackend):  # over a network each choice is a call
            return plans.listed(problem)
        return plans.direct(problem, think=self.think, max_new_tokens=self.max_new_tokens)


@dataclass
class IRanker(Ranker):
    """Iterative: each call removes the worst candidates left, until `top_k` are left.

    think: a free thought before each answer; off, the identifier is chosen by the model's
        probabilities over the pool (one forward pass, cannot be malformed).
    layout: `relist`, `append` or `blocks`, see `prompts`; with the last two a pool is read once per query.
    readout: of layout `blocks`: a judge at each candidate's end, one pass for all steps, or an identifier each step.
    ask: remove the worst (the paper), or select the best, from the front.
    query: of layout `blocks`: before the candidates, or behind them, so that what was read of them serves any query.
    top_k: stop when this many are left; they are ordered by the last known removal probabilities
        (think off) or in pool order. 1 gives the whole order.
    drop: how many leave in one step (think off).
    """

    backend: Backend | AsyncBackend
    think: bool = False
    layout: Layout = "relist"
    readout: Readout = "judge"
    ask: Wanted = "worst"
    query: QueryPlace = "first"
    top_k: int = 1
    drop: int = 1
    max_new_tokens: int = 1024
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_layout(self.layout, self.query)
        if self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, not {self.top_k}; 1 gives the whole order")
        if self.drop < 1:
            raise ConfigError(f"drop must be at least 1, not {self.drop}")
        if self.drop > 1 and self.think:
            raise ConfigError(f"drop={self.drop} needs think=False: a thought ends in one answer")
        if self.layout == "blocks":
            check_blocks(self.backend, self.think)

    def plan(self, problem: Problem) -> Plan:
        """See `plans.eliminate` and `plans.judged`."""
        if self.layout == "blocks" and self.readout == "judge":
            return plans.judged(problem, self.ask, self.top_k, self.query)
        return plans.eliminate(
            problem,
            think=self.think,
            layout=self.layout,
            max_new_tokens=self.max_new_tokens,
            top_k=self.top_k,
            drop=self.drop,
            ask=self.ask,
            query=self.query,
        )


def check_layout(layout: Layout, query: QueryPlace = "first") -> None:
    """ConfigError for a layout that does not exist, and for a query behind candidates that are read for it."""
    if layout not in get_args(Layout):
        raise ConfigError(f"layout {layout!r} is not one of {', '.join(get_args(Layout))}")
    if query not in get_args(QueryPlace):
        raise ConfigError(f"query {query!r} is not one of {', '.join(get_args(QueryPlace))}: where it stands")
    if query == "last" and layout != "blocks":
        raise ConfigError(f"query last is of layout blocks, not of {layout}: give layout=blocks, or leave query out")


def check_blocks(backend: Backend | AsyncBackend, think: bool) -> None:
    """Refuse layout `blocks` where it cannot be: behind an endpoint or in another engine, and with thoughts."""
    if think:
        raise ConfigError("layout blocks has no thoughts: set think=False, or use another layout")
    if not backend.masks_blocks:
        raise ConfigError(f"layout blocks needs the model in this process (engine transformers); {backend.name} is not")


class _Composed(Ranker):
    """Ranks parts of the pool with `inner`, and asks the same backend."""

    inner: Ranker

    @property
    def backend(self) -> Backend | AsyncBackend:  # type: ignore[override]
        """That of the inner ranker."""
        return self.inner.backend

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """That of the inner ranker."""
        return self.inner.batch_size


@dataclass
class Depth(_Composed):
    """The first `size` of the order given are ranked; the others keep their places behind them."""

    inner: Ranker
    size: int

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ConfigError(f"a depth of {self.size} asks nothing; give 2 or more")

    def plan(self, problem: Problem) -> Plan:
        """See `plans.depth`."""
        return plans.depth(problem, self.inner.plan, self.size)


def reads(backend: Backend | AsyncBackend, ask: Ask, candidates: int) -> bool:
    """Whether the context has room for a query's first ask, and for what is added to it until all are ranked.

    True where the context is not known, as at an endpoint: a prompt that is too long fails by itself.
    """
    added = plans.EMPTY_THOUGHT_TOKENS + plans.TOKENS_PER_CANDIDATE * candidates if ask.prompt.stays else 0
    most = backend.context
    return most is None or backend.length(ask.prompt) + max(added, ask.max_new_tokens) <= most


@dataclass
class Fitted(_Composed):
    """Texts of candidates are cut to one length where a query's first prompt would have more than `tokens`.

    tokens: as the backend counts them (`length`). None is the model's context, less `written`, what a thought may have,
    and room for identifiers. Where the context is not known, as at an endpoint, nothing is cut: a prompt that is too
    long fails by itself.
    """

    inner: Ranker
    tokens: int | None
    written: int = 0

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"truncate must be at least 1 token, not {self.tokens}")

    def plan(self, problem: Problem) -> Plan:
        """See `fitting.fitted`."""
        most = self.tokens or self._room(len(problem.candidates))
        return fitting.fitted(problem, self.inner.plan, self.backend.length, most) if most else self.inner.plan(problem)

    def _room(self, candidates: int) -> int | None:
        beside = self.written + plans.EMPTY_THOUGHT_TOKENS + plans.TOKENS_PER_CANDIDATE * candidates
        return self.backend.context and max(1, self.backend.context - beside)


@dataclass
class Hybrid(_Composed):
    """`first` ranks all, `inner` ranks the best (head) or worst (tail) `size` of that again; both ask one backend."""

    inner: Ranker
    first: Ranker
    size: int
    part: Literal["head", "tail"] = "head"

    def __post_init__(self) -> None:
        if self.first.backend is not self.inner.backend:
            raise ConfigError("a Hybrid asks one model: give both rankers the same backend")

    def plan(self, problem: Problem) -> Plan:
        """See `plans.part_again`."""
        return plans.part_again(problem, self.first.plan, self.inner.plan, self.size, self.part)


@dataclass
class Windows(_Composed):
    """For lists longer than a context: a window of `size` slides from the end to the head by `stride`."""

    inner: Ranker
    size: int = 20
    stride: int = 10

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ConfigError(f"a window of {self.size} asks nothing; give 2 or more")
        if not 1 <= self.stride <= self.size:
            raise ConfigError(
                f"a window of {self.size} cannot slide by {self.stride}; give a stride of 1 to {self.size}"
            )

    def plan(self, problem: Problem) -> Plan:
        """See `plans.windows`."""
        return plans.windows(problem, self.inner.plan, self.size, self.stride)


@dataclass
class Tournament(_Composed):
    """For lists longer than a context: groups of `size` are ranked, the better half of each goes on."""

    inner: Ranker
    size: int = 20

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ConfigError(f"a tournament needs groups of at least 2, not {self.size}")

    def plan(self, problem: Problem) -> Plan:
        """See `plans.tournament`."""
        return plans.tournament(problem, self.inner.plan, self.size)


@dataclass
class Shuffled(_Composed):
    """Against position bias: `repeats` random orders of the pool, merged by mean place."""

    inner: Ranker
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ConfigError(f"repeats must be at least 1, not {self.repeats}")

    def plan(self, problem: Problem) -> Plan:
        """See `plans.shuffled`."""
        return plans.shuffled(problem, self.inner.plan, self.repeats, self.seed)


@dataclass
class Within(_Composed):
    """A budget of the whole query: calls, tokens or seconds; the rest is ordered by what is known by then."""

    inner: Ranker
    budget: Budget

    def plan(self, problem: Problem) -> Plan:
        """See `plans.within`."""
        return plans.within(problem, self.inner.plan, self.budget)


@dataclass
class First(_Composed):
    """`inner` until the first `size` are known, where that saves calls and loses nothing: where it selects the best.

    Removing the worst would leave the best unordered, so it goes on to the end.
    """

    inner: Ranker
    size: int

    def plan(self, problem: Problem) -> Plan:
        """See `plans.within`."""
        one = self.inner
        while isinstance(one, Fitted | Within):
            one = one.inner
        if not (isinstance(one, IRanker) and one.ask == "best" and one.top_k == 1):
            return self.inner.plan(problem)
        return plans.within(problem, self.inner.plan, Budget(calls=math.ceil(self.size / one.drop)))


@dataclass
class Fused(_Composed):
    """The order of `inner` and the first stage's as one; `how` is rrf, or the weight of `inner` from 0 to 1."""

    inner: Ranker
    how: Fusion = "rrf"

    def __post_init__(self) -> None:
        check_fusion(self.how)

    def plan(self, problem: Problem) -> Plan:
        """See `plans.fused`."""
        return plans.fused(problem, self.inner.plan, self.how)


@dataclass
class Advised(_Composed):
    """Each prompt of `inner` stands behind thoughts recorded on similar queries, as `advise` finds them."""

    inner: Ranker
    advise: Callable[[Problem], Sequence[str]]

    def plan(self, problem: Problem) -> Plan:
        """See `plans.advised`."""
        return plans.advised(problem, self.inner.plan, self.advise(problem))
