"""A ranker as plain values, so that a command line, a results file or another process can name it.

    ranker = RankerSpec(model="runs/x/model", layout="append", top_k=5).build()

In: settings. Out: a `Ranker` with its model loaded or its endpoint named.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from r1ranker.backends.base import AsyncBackend, Backend, NoBackend
from r1ranker.errors import ConfigError
from r1ranker.io.documents import parse_yaml
from r1ranker.io.files import at_home, expanded
from r1ranker.prompts import Design, Layout, QueryPlace, Readout, Wanted
from r1ranker.ranking.fusing import Fusion
from r1ranker.ranking.plans import Budget
from r1ranker.ranking.rankers import (
    Advised,
    Depth,
    DRanker,
    Fitted,
    Fused,
    Hybrid,
    IRanker,
    Ranker,
    Shuffled,
    Tournament,
    Windows,
    Within,
)

Engine = Literal["transformers", "vllm"]
DESIGNS: tuple[Design, ...] = get_args(Design)


@dataclass(frozen=True, slots=True)
class RankerSpec:
    """All that makes a ranker. Zero or None turns a setting off.

    design: None is the cheap one: one list (DRanker), unless the model says how it was trained.
    model: hub name, directory or `nano`; with `base_urls` the name the endpoint knows it by.
    layout, readout, ask, query: see `IRanker`; None is what the model was trained in, else relist, judge, worst, first.
    top_k, drop, max_calls, max_tokens, max_seconds: see `IRanker`; the last three are its budget per query.
    depth: rank the first so many of the order given; the others keep their places behind them.
    head: the direct design ranks first, and the iterative one the best `head` of that again.
    window, stride: slide over lists longer than the context. tournament: group size, instead of windows.
    shuffles: rank in this many random orders and merge.
    truncate: tokens that the first prompt of a query may have; texts are cut evenly where it has more (`Fitted`).
        `context` is as many as the model can read.
    fuse: with the first stage's order, by `rrf` or by the model's weight from 0 to 1, see `fusing`.
    thoughts: file of recorded thoughts, of which those on similar queries stand before each prompt.
    recall: how they are found, see `thoughts.advisor`; None is by BM25.
    dtype: of the weights; auto is bfloat16 on a GPU, and on a CPU where it is faster and the model not small.
    engine: what runs the model here; vllm picks the device itself.
    base_urls: OpenAI-compatible endpoints, such as http://localhost:8000/v1; none loads the model here.
    prices: YAML or JSON file of prices by model, for `cost`. cache: folder that keeps every reply.
    store: file that keeps what was read of candidates for any query, with query last (`store`).
    """

    design: Design | None = "iranker"
    model: str = "nano"
    think: bool = False
    layout: Layout | None = None
    readout: Readout | None = None
    ask: Wanted | None = None
    query: QueryPlace | None = None
    top_k: int = 1
    drop: int = 1
    max_calls: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    depth: int | None = None
    head: int | None = None
    window: int | None = None
    stride: int | None = None
    tournament: int | None = None
    shuffles: int = 1
    truncate: int | Literal["context"] | None = None
    fuse: Fusion | None = None
    thoughts: str | None = None
    recall: str | None = None
    max_new_tokens: int = 1024
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "auto"
    engine: Engine = "transformers"
    base_urls: tuple[str, ...] = ()
    concurrency: int = 32
    prices: Path | None = None
    cache: Path | None = None
    store: Path | None = None

    def __post_init__(self) -> None:
        # `~` is the home folder wherever a path may stand.
        for name in ("model", "thoughts", "recall"):
            value = getattr(self, name)
            object.__setattr__(self, name, expanded(os.fspath(value)) if value else value)
        for name in ("prices", "cache", "store"):
            value = getattr(self, name)
            object.__setattr__(self, name, at_home(value) if value else value)

    def check(self) -> None:
        """ConfigError for settings that cannot go together or under which nothing is asked; loads no model."""
        if self.store and self.thoughts:
            raise ConfigError("thoughts of other queries stand before the candidates: leave them out, or the store")
        if self.recall and not self.thoughts:
            raise ConfigError("recall says how thoughts are chosen: give thoughts too, or leave it out")
        where = self.base_urls[0] if self.base_urls else self.engine
        backend = NoBackend(where, masks_blocks=where == "transformers")
        dataclasses.replace(self, thoughts=None).around(backend)
        if self.thoughts:
            from r1ranker.ranking.thoughts import read_thoughts

            read_thoughts(Path(self.thoughts))

    def build(self) -> Ranker:
        """The ranker, its model loaded. Raises BackendError or ConfigError with the remedy."""
        self.check()
        return self.around(self.backend())

    def backend(self) -> Backend | AsyncBackend:
        """The model in this process or the endpoints, behind the replies on disk where there is a cache."""
        from r1ranker.backends.cached import cached

        if self.engine == "vllm" and (self.base_urls or self.device != "auto"):
            raise ConfigError(
                "engine vllm runs the model here on a device of its own choice: give no base URL or device"
            )
        backend = self._endpoints() if self.base_urls else self._model()
        return cached(backend, self.cache) if self.cache else backend

    def _endpoints(self) -> AsyncBackend:
        from r1ranker.backends.openai_ import OpenAIBackend
        from r1ranker.backends.prices import read_prices

        prices = read_prices(self.prices) if self.prices else None
        return OpenAIBackend(self.model, self.base_urls, concurrency=self.concurrency, prices=prices)

    def _model(self) -> Backend:
        if self.engine == "vllm":
            from r1ranker.backends.vllm_ import VLLMBackend

            return VLLMBackend.load(self.model, dtype=self.dtype)
        from r1ranker.backends.transformers_ import TransformersBackend

        backend = TransformersBackend.load(self.model, device=self.device, dtype=self.dtype)
        if self.store:
            from r1ranker.ranking.store import CandidateStore

            CandidateStore.open(self.store, backend)
        return backend

    def around(self, backend: Backend | AsyncBackend) -> Ranker:
        """The ranker around a backend that exists."""
        if self.design is None:
            design: Design = "iranker" if backend.trained_in else "dranker"
            return dataclasses.replace(self, design=design)._around(backend)
        if self.design == "dranker":
            self._check_list()
        return self._around(backend)

    def _around(self, backend: Backend | AsyncBackend) -> Ranker:
        self._check_together()
        self._check_store(backend)
        ranker = self._fitted(self._direct(backend) if self.design == "dranker" else self._iterative(backend))
        if self._budget and not self._in_parts:
            ranker = Within(ranker, self._budget)
        if self.head:
            ranker = Hybrid(ranker, first=self._fitted(self._direct(backend)), size=self.head)
        if self.window:
            ranker = Windows(ranker, self.window, self.stride or max(1, self.window // 2))
        if self.tournament:
            ranker = Tournament(ranker, self.tournament)
        if self.shuffles > 1:
            ranker = Shuffled(ranker, self.shuffles)
        if self._budget and self._in_parts:
            ranker = Within(ranker, self._budget)
        if self.fuse is not None:
            ranker = Fused(ranker, self.fuse)
        if self.depth:  # around the fusion too: what nobody read keeps its place
            ranker = Depth(ranker, self.depth)
        self._check_asks(backend)
        return self._advised(ranker) if self.thoughts else ranker

    def _advised(self, ranker: Ranker) -> Ranker:
        from r1ranker.ranking.thoughts import advisor, read_thoughts

        return Advised(ranker, advisor(read_thoughts(Path(str(self.thoughts))), self.recall))

    def _check_together(self) -> None:
        if self.window and self.tournament:
            raise ConfigError("give either a window or a tournament, not both")
        if self.stride and not self.window:
            raise ConfigError(f"a stride of {self.stride} needs a window; give one, such as window=20")
        if self.head and self.design == "dranker":
            raise ConfigError("head needs the design iranker: the direct ranking is made first in any case")
        if self.prices and not self.base_urls:
            raise ConfigError("prices are of endpoints: give base_urls too, or leave them out")
        if self.readout == "identifier" and self.layout not in (None, "blocks"):
            raise ConfigError(f"readout=identifier is of layout blocks, not of {self.layout}: leave it out")
        for name in ("batch_size", "max_new_tokens", "shuffles"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} ranks nothing; give 1 or more")
        if self.design not in DESIGNS:
            raise ConfigError(f"design {self.design!r} is not one of {', '.join(DESIGNS)}")

    def _check_list(self) -> None:
        """A whole list is one answer, of which nothing can be left out or saved."""
        given = {"top_k": self.top_k > 1, "drop": self.drop > 1, "a budget": self._budget and not self._in_parts}
        if idle := [name for name, there in given.items() if there]:
            raise ConfigError(f"{' and '.join(idle)} means nothing to the design dranker: leave it out")

    def _check_store(self, backend: Backend | AsyncBackend) -> None:
        known = not isinstance(backend, NoBackend)  # a model may have been trained so, and says it when it is loaded
        if self.store and (known or self.query) and self._way(backend)[-1] != "last":
            raise ConfigError(
                "a store keeps what any query can use, and this ranker reads its candidates for each query: take a "
                "model trained with query=last, or set layout=blocks and query=last; or leave the store out"
            )

    def _check_asks(self, backend: Backend | AsyncBackend) -> None:
        if self._way(backend)[2] == "best" or (self.ask is None and isinstance(backend, NoBackend)):
            return  # then a part is asked for all of its best; or a model may have been trained so, and is not loaded
        for name in ("window", "tournament", "head", "depth"):
            part = getattr(self, name)
            if part and self.design == "iranker" and part <= self.top_k:
                raise ConfigError(
                    f"{name}={part} with top_k={self.top_k} asks nothing, since of {part} candidates {self.top_k} may "
                    f"stay: raise {name} or lower top_k; depth=N ranks the first N of a list"
                )

    def _fitted(self, ranker: Ranker) -> Ranker:
        if not self.truncate:
            return ranker
        written = self.max_new_tokens if self.think else 0
        return Fitted(ranker, None if self.truncate == "context" else self.truncate, written)

    def _direct(self, backend: Backend | AsyncBackend) -> DRanker:
        layout, readout, _, query = self._way(backend)
        return DRanker(
            backend,
            think=self.think,
            layout="blocks" if layout == "blocks" else "relist",
            readout=readout,
            query=query,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )

    def _way(self, backend: Backend | AsyncBackend) -> tuple[Layout, Readout, Wanted, QueryPlace]:
        """Layout, read-out, what is asked, and where the query stands: as set, else as the model was trained."""
        way = backend.trained_in
        layout: Layout = self.layout or way.get("layout", "relist")
        return (
            layout,
            self.readout or way.get("readout", "judge"),
            self.ask or way.get("ask", "worst"),
            self.query or (way.get("query", "first") if layout == "blocks" else "first"),
        )

    @property
    def _budget(self) -> Budget | None:
        limits = (self.max_calls, self.max_tokens, self.max_seconds)
        return Budget(*limits) if any(limit is not None for limit in limits) else None

    @property
    def _in_parts(self) -> bool:
        """Whether a query is ranked in parts, or several times."""
        return bool(self.window or self.tournament or self.shuffles > 1)

    def _iterative(self, backend: Backend | AsyncBackend) -> IRanker:
        layout, readout, ask, query = self._way(backend)
        # Places that are merged with others have to be known whole.
        merged = ask == "best" and (self.fuse is not None or self.shuffles > 1)
        return IRanker(
            backend,
            think=self.think,
            layout=layout,
            readout=readout,
            ask=ask,
            query=query,
            top_k=1 if merged else self.top_k,
            drop=self.drop,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )


def parse_spec(base: RankerSpec, pairs: Sequence[str]) -> RankerSpec:
    """`base` with settings given as `key=value`, values in YAML. Raises ConfigError with the nearest name."""
    changes = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r}: settings of a ranker are given as key=value, such as top_k=5")
        try:
            changes[key] = parse_yaml(value)
        except ValueError as error:
            raise ConfigError(f"{pair!r}: {value!r} is not a YAML value: {error}") from error
    return changed(base, changes)


def unknown_setting(names: Iterable[Any]) -> str:
    """What to say of the first that is no setting of a ranker, with the nearest one; empty where all are."""
    known = [field.name for field in dataclasses.fields(RankerSpec)]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            return f"a ranker has no setting {name!r}; " + (f"did you mean {near[0]!r}?" if near else str(known))
    return ""


def changed(base: RankerSpec, changes: Mapping[str, Any]) -> RankerSpec:
    """`base` with settings by name, their types checked. Raises ConfigError with the nearest name."""
    if wrong := unknown_setting(changes):
        raise ConfigError(wrong)
    try:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in changes.items()}
        return TypeAdapter(RankerSpec).validate_python(dataclasses.asdict(base) | given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
