"""PyTerrier: a transformer behind a retriever and what fetches its texts.

pipeline = bm25 % 50 >> pt.text.get_text(index, "text") >> R1Ranker("smol")
"""

from __future__ import annotations

import pandas as pd
import pyterrier as pt

from r1ranker.adapters.common import orders, ranker_of
from r1ranker.ranking.rankers import Ranker
from r1ranker.ranking.spec import RankerSpec


class R1Ranker(pt.Transformer):
    """ranker: one of ours, its spec, or a model's name."""

    def __init__(self, ranker: Ranker | RankerSpec | str) -> None:
        super().__init__()
        self.ranker = ranker_of(ranker)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """A frame with qid, query, docno and text gets score and rank (from 0); all its queries are ranked at once."""
        pt.validate.result_frame(inp, extra_columns=["query", "text"], context=self)
        queries = [rows for _, rows in inp.groupby("qid", sort=False)]
        placed = orders(self.ranker, [(rows["query"].iloc[0], rows["text"].tolist()) for rows in queries])
        ranked = [
            rows.iloc[[at for at, _ in places]].assign(score=[score for _, score in places], rank=range(len(places)))
            for rows, places in zip(queries, placed, strict=True)
        ]
        if not ranked:
            return inp.assign(score=pd.Series(dtype=float), rank=pd.Series(dtype=int))
        return pd.concat(ranked, ignore_index=True)
