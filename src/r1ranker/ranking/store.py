"""What a model read of candidates, kept for every query. In: a ranker whose query stands last. Out: a file, or memory.

    ranker = RankerSpec(model="runs/last/model").build()          # trained with query=last
    store = CandidateStore.build(ranker, problems)                # LLMs, a catalogue, a corpus: read once
    store.save(Path("llms.safetensors"))
    RankerSpec(model="runs/last/model", store=Path("llms.safetensors")).build()       # memory-mapped from now on

A ranker with a store reads of a query what is new, the query, and candidates that the store does not have yet, which it
adds. Keys and values are found by the text that was read, so a text that has changed is a new one. They are of one
model: a file of other weights, another tokenizer or dtype is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from r1ranker.backends.models import resolve
from r1ranker.errors import ConfigError
from r1ranker.io.files import replacing
from r1ranker.io.fingerprint import differing, fingerprint_model
from r1ranker.io.locks import held
from r1ranker.problem import Problem

if TYPE_CHECKING:
    from r1ranker.backends.kept import Kept
    from r1ranker.ranking.rankers import Ranker

MODEL = "r1ranker model"
"""Where a file says whose keys and values it holds."""


@dataclass(frozen=True)
class CandidateStore:
    """The keys and values that a backend in this process keeps of candidates."""

    backend: Any

    def __post_init__(self) -> None:
        from r1ranker.backends.kept import Kept

        if getattr(self.backend, "kept", None) is None:
            self.backend.kept = Kept(_network(self.backend))

    @classmethod
    def build(cls, ranker: Ranker, problems: Iterable[Problem]) -> CandidateStore:
        """In memory, of the candidates of these problems, as the ranker shows them; it finds them from now on.

        Raises ConfigError for a ranker whose candidates are read for each query anew.
        """
        if getattr(ranker, "query", "first") != "last":
            raise ConfigError("a store needs a ranker of layout blocks with query last, see RankerSpec.query")
        _network(ranker.backend)
        store = cls(ranker.backend)
        for problem in problems:
            for ask in ranker.plan(problem):
                store.kept.read(store.backend.block_ids(ask.prompt), store.backend.max_row)
                break  # a pool is read for its first question
        return store

    @classmethod
    def open(cls, path: Path, backend: Any) -> CandidateStore:
        """A file for this backend, memory-mapped; an empty store where there is none yet.

        Raises ConfigError for a file of another model, and for one that is no store.
        """
        store = cls(backend)
        if not path.exists():
            return store
        from r1ranker.backends.kept import said_of

        try:
            was = json.loads(said_of(path)[MODEL])
            if parts := differing(was, store._model()):
                raise ConfigError(
                    f"{path} holds what another model read: {', '.join(parts)} differ; delete it to begin anew, or "
                    "name another store"
                )
            store.kept.map(path)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ConfigError(f"{path} is no store of candidates ({error}); delete it, or name another one") from error
        return store

    @property
    def kept(self) -> Kept:
        """The keys and values."""
        kept: Kept = self.backend.kept
        return kept

    def __len__(self) -> int:
        """Candidates that are known, once for each head they were read behind."""
        return len(self.kept)

    def save(self, path: Path) -> None:
        """Write all of it where something was added since it was opened. Raises ConfigError where another job does."""
        if not self.kept.added:
            return
        said = {MODEL: json.dumps(self._model(), sort_keys=True)}
        with held(path), replacing(path) as fresh:
            self.kept.write(fresh, said)
        self.kept.added = 0

    def _model(self) -> dict[str, str]:
        name = self.backend.name
        known = fingerprint_model(resolve(name))
        if not known:
            raise ConfigError(f"a store is a file of one model, and the files of {name} are not here to tell which")
        return known | {"dtype": str(self.kept.network.dtype)}


def _network(backend: Any) -> Any:
    if not hasattr(backend, "network"):
        raise ConfigError(
            f"a store is made with the model in this process, and without a cache; {backend.name} is not so"
        )
    return backend.network
