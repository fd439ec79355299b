"""mteb: a listwise search model, for reranking tasks and for retrieval tasks made into such.

mteb.evaluate(R1Ranker("smol", name="r1-ranker/smol"), tasks)
"""

from __future__ import annotations

from typing import Any

from mteb.models import ModelMeta

from r1ranker.adapters.common import orders, ranker_of
from r1ranker.errors import ConfigError
from r1ranker.ranking.rankers import Ranker
from r1ranker.ranking.spec import RankerSpec


class R1Ranker:
    """ranker: one of ours, its spec, or a model's name.

    name: `organisation/model`, under which mteb keeps results and finds them again; another model or another way of
        ranking needs another name or `revision`.
    """

    def __init__(self, ranker: Ranker | RankerSpec | str, name: str, revision: str = "1") -> None:
        self.ranker = ranker_of(ranker)
        self.mteb_model_meta = ModelMeta.create_empty({"name": name, "revision": revision})
        self._texts: dict[str, str] = {}

    def index(self, corpus: Any, **_: Any) -> None:
        """Keep the documents' texts, a title before its text."""
        self._texts = {row["id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in corpus}

    def search(self, queries: Any, *, top_k: int, top_ranked: Any = None, **_: Any) -> dict[str, dict[str, float]]:
        """Scores of the best `top_k` of each query's first stage, by query and document.

        Raises ConfigError without a first stage.
        """
        if top_ranked is None:
            raise ConfigError("there is no first stage to rank: make the task one by its convert_to_reranking()")
        rows = [row for row in queries if top_ranked.get(row["id"])]
        pools = [list(top_ranked[row["id"]]) for row in rows]
        asked = [(_query(row), [self._texts[docid] for docid in pool]) for row, pool in zip(rows, pools, strict=True)]
        found: dict[str, dict[str, float]] = {row["id"]: {} for row in queries}
        for row, pool, places in zip(rows, pools, orders(self.ranker, asked, top_k), strict=True):
            found[row["id"]] = {pool[at]: score for at, score in places}
        return found


def _query(row: Any) -> Any:
    """The query, and its instruction where the task has them."""
    return f"{row['text']} {row['instruction']}" if row.get("instruction") else row["text"]
