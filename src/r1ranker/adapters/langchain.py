"""LangChain: a document compressor, as `ContextualCompressionRetriever` takes it.

retriever = ContextualCompressionRetriever(base_compressor=R1Ranker(ranker="smol", top_n=5), base_retriever=...)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import BeforeValidator, ConfigDict

from r1ranker.adapters.common import order, ranker_of
from r1ranker.ranking.rankers import Ranker


class R1Ranker(BaseDocumentCompressor):
    """ranker: one of ours, its spec, or a model's name. top_n: how many documents are kept (None: all)."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    ranker: Annotated[Ranker, BeforeValidator(ranker_of)]
    top_n: int | None = None

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Documents best first, each with `metadata["relevance_score"]`. Awaited, it runs in a thread."""
        placed = order(self.ranker, query, [document.page_content for document in documents], self.top_n)
        return [
            documents[at].model_copy(update={"metadata": documents[at].metadata | {"relevance_score": score}})
            for at, score in placed
        ]
