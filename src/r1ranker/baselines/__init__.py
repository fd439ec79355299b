"""Rankers to compare with; every table has them. In: `Problem`s. Out: a `Ranking` each, in their order.

    rankings = BASELINES["prior"](problems)

To add one, write a function of this form and name it in `BASELINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r1ranker.baselines.bm25 import bm25
from r1ranker.baselines.simple import oracle, prior, shuffled
from r1ranker.problem import Problem, Ranking

Baseline = Callable[[Sequence[Problem]], list[Ranking]]

BASELINES: dict[str, Baseline] = {
    "random": shuffled,
    "prior": prior,
    "bm25": bm25,
    "oracle": oracle,
}

__all__ = ["BASELINES", "Baseline"]
