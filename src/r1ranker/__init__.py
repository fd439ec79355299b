"""Train a language model to rank anything by reinforcement learning, and rank with it.

    from r1ranker import rank

    for hit in rank("how long do barn owls live", ["About four years.", "It eats mice.", "Tractors last long."]):
        print(hit.rank, hit.score, hit.text)

The package reads in the order of the data. First the core, at the root and without torch: `scenarios`, `problem`,
`prompts`, `answers`, `elimination`, `rewards`. Then the rooms: `io`, `datasets`, `backends`, `ranking`, `baselines`,
`evaluation`, `training`, `experiments`, `adapters`, `serving`, `api` (the functions below), `cli`; each says at its top
what it holds. None imports one that comes after it. The names below are imported on first use, so that `import
r1ranker` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r1ranker.answers import parse_ranking, parse_removal
    from r1ranker.api import arank, arecommend, aroute, compare, evaluate, rank, recommend, route, train
    from r1ranker.backends.transformers_ import TransformersBackend
    from r1ranker.errors import BackendError, ConfigError, DataError, R1RankerError
    from r1ranker.problem import Answer, Candidate, Problem, Ranking, Step, Usage
    from r1ranker.ranking.ranked import Hit, Ranked
    from r1ranker.ranking.rankers import DRanker, IRanker
    from r1ranker.ranking.scores import scores
    from r1ranker.ranking.spec import RankerSpec
    from r1ranker.ranking.store import CandidateStore

__all__ = [
    "Answer",
    "BackendError",
    "Candidate",
    "CandidateStore",
    "ConfigError",
    "DRanker",
    "DataError",
    "Hit",
    "IRanker",
    "Problem",
    "R1RankerError",
    "Ranked",
    "RankerSpec",
    "Ranking",
    "Step",
    "TransformersBackend",
    "Usage",
    "arank",
    "arecommend",
    "aroute",
    "compare",
    "evaluate",
    "parse_ranking",
    "parse_removal",
    "rank",
    "recommend",
    "route",
    "scores",
    "train",
]

_NAMES = {
    "answers": ("parse_ranking", "parse_removal"),
    "api": ("arank", "arecommend", "aroute", "compare", "evaluate", "rank", "recommend", "route", "train"),
    "backends.transformers_": ("TransformersBackend",),
    "errors": ("BackendError", "ConfigError", "DataError", "R1RankerError"),
    "problem": ("Answer", "Candidate", "Problem", "Ranking", "Step", "Usage"),
    "ranking.ranked": ("Hit", "Ranked"),
    "ranking.rankers": ("DRanker", "IRanker"),
    "ranking.scores": ("scores",),
    "ranking.spec": ("RankerSpec",),
    "ranking.store": ("CandidateStore",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("r1-ranker")
    if name in _MODULES:
        return getattr(import_module(f"r1ranker.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'r1ranker' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
