"""rerankers: a ranker with its one interface, `rank(query, docs)`.

R1Ranker("smol").rank("how long do barn owls live", ["A tractor ...", "A barn owl ..."]).top_k(1)
"""

from __future__ import annotations

from typing import Any

from rerankers.documents import Document
from rerankers.models.ranker import BaseRanker
from rerankers.results import RankedResults, Result
from rerankers.utils import prep_docs

from r1ranker.adapters.common import order, ranker_of
from r1ranker.errors import ConfigError
from r1ranker.ranking.rankers import Ranker
from r1ranker.ranking.spec import RankerSpec


class R1Ranker(BaseRanker):
    """model_name_or_path: one of ours, its spec, or a model's name."""

    def __init__(self, model_name_or_path: Ranker | RankerSpec | str, verbose: int = 0) -> None:
        self.ranker, self.verbose = ranker_of(model_name_or_path), verbose

    def rank(
        self,
        query: str,
        docs: str | list[str] | Document | list[Document],
        doc_ids: list[str] | list[int] | None = None,
        metadata: list[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """Documents best first, ranks from 1."""
        prepared = prep_docs(docs, doc_ids, metadata)
        placed = order(self.ranker, query, [document.text for document in prepared])
        results = [Result(prepared[at], score, rank) for rank, (at, score) in enumerate(placed, start=1)]
        return RankedResults(results, query, has_scores=True)

    def score(self, query: str, doc: str) -> float:
        """Raises ConfigError: a single document has nothing to be compared with."""
        raise ConfigError("a listwise ranker compares documents of one query: call rank with all of them")
