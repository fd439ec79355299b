"""Train a language model to rank anything by reinforcement learning, and rank with it.

The package reads in the order of the data. First the core, at the root and without torch: `scenarios`, `problem`,
`prompts`, `answers`, `elimination`, `rewards`. Then the rooms: `io`, `datasets`, `backends`, `ranking`, `baselines`,
`evaluation`, `training`, `experiments`, `adapters`, `serving`, `cli`; each says at its top what it holds. None imports
one that comes after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r1ranker.answers import parse_ranking, parse_removal
from r1ranker.errors import BackendError, ConfigError, DataError, R1RankerError
from r1ranker.problem import Answer, Candidate, Problem, Ranking, Step, Usage
from r1ranker.ranking.rankers import DRanker, IRanker

if TYPE_CHECKING:
    from r1ranker.backends.transformers_ import TransformersBackend

__all__ = [
    "Answer",
    "BackendError",
    "Candidate",
    "ConfigError",
    "DRanker",
    "DataError",
    "IRanker",
    "Problem",
    "R1RankerError",
    "Ranking",
    "Step",
    "TransformersBackend",
    "Usage",
    "parse_ranking",
    "parse_removal",
]


def __getattr__(name: str) -> Any:
    """`TransformersBackend` on first use: the rest needs no torch."""
    if name == "TransformersBackend":
        from r1ranker.backends.transformers_ import TransformersBackend

        return TransformersBackend
    raise AttributeError(f"module 'r1ranker' has no attribute {name!r}")
