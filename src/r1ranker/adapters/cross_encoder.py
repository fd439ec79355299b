"""sentence-transformers: what a `CrossEncoder` is asked, for its evaluators, BEIR's `Rerank` and code written for it.

    R1Ranker("smol").rank("how long do barn owls live", ["A tractor ...", "A barn owl ..."], top_k=1)

Needs neither library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from r1ranker.adapters.common import order, orders, ranker_of
from r1ranker.ranking.rankers import Ranker
from r1ranker.ranking.spec import RankerSpec


class _NoCard:
    """Evaluators write what they measured on a model's card, and there is none here."""

    def set_evaluation_metrics(self, *_: Any) -> None:
        """Nothing."""


class R1Ranker:
    """ranker: one of ours, its spec, or a model's name.

    What says how a cross-encoder computes, such as batch_size, is accepted and not used, by name or by place: versions
    of the library have these in different places.
    """

    model_card_data = _NoCard()

    def __init__(self, ranker: Ranker | RankerSpec | str) -> None:
        self.ranker = ranker_of(ranker)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *_: Any,
        **__: Any,
    ) -> list[dict[str, Any]]:
        """`corpus_id` and `score` best first, with `return_documents` also `text`."""
        placed = order(self.ranker, query, documents, top_k)
        return [
            {"corpus_id": at, "score": score} | ({"text": documents[at]} if return_documents else {})
            for at, score in placed
        ]

    def predict(self, inputs: Sequence[Any], *_: Any, convert_to_tensor: bool = False, **__: Any) -> Any:
        """A score for each (query, text), float32; for a single pair a number.

        Pairs of one query are ranked together, wherever they stand, so scores compare texts of one query alone.
        """
        if len(inputs) and isinstance(inputs[0], str):
            return self.predict([inputs], convert_to_tensor=convert_to_tensor)[0]
        pools: dict[str, list[int]] = {}
        for at, (query, _text) in enumerate(inputs):
            pools.setdefault(query, []).append(at)
        placed = orders(self.ranker, [(query, [inputs[at][1] for at in pool]) for query, pool in pools.items()])
        found = np.zeros(len(inputs), dtype=np.float32)
        for pool, places in zip(pools.values(), placed, strict=True):
            for at, score in places:
                found[pool[at]] = score
        if convert_to_tensor:
            import torch

            return torch.from_numpy(found)
        return found
