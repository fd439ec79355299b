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


def minilm(problems: Sequence[Problem]) -> list[Ranking]:
    """Cosine of embeddings by all-MiniLM-L6-v2, once `r1ranker model get minilm` has fetched it."""
    from r1ranker.baselines.encoders import dense  # with torch, which the others do without

    return dense((), problems, model="minilm")


BASELINES: dict[str, Baseline] = {
    "random": shuffled,
    "prior": prior,
    "bm25": bm25,
    "minilm": minilm,
    "oracle": oracle,
}

__all__ = ["BASELINES", "Baseline"]
