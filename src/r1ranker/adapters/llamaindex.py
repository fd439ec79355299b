"""LlamaIndex: a node postprocessor, as query engines take it.

engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[R1Ranker(ranker="smol", top_n=5)])
"""

from __future__ import annotations

from typing import Annotated

from llama_index.core.bridge.pydantic import BeforeValidator, Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from r1ranker.adapters.common import order, ranker_of
from r1ranker.errors import DataError
from r1ranker.ranking.rankers import Ranker


class R1Ranker(BaseNodePostprocessor):
    """ranker: one of ours, its spec, or a model's name. top_n: how many nodes are kept (None: all)."""

    ranker: Annotated[Ranker, BeforeValidator(ranker_of)] = Field(exclude=True)
    top_n: int | None = None

    @classmethod
    def class_name(cls) -> str:
        """As LlamaIndex names it in events."""
        return "R1Ranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Nodes best first, with the score. The model reads what an embedding would: text and metadata."""
        if query_bundle is None:
            raise DataError("there is no query to rank for: give query_bundle or query_str")
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        placed = order(self.ranker, query_bundle.query_str, texts, self.top_n)
        return [NodeWithScore(node=nodes[at].node, score=score) for at, score in placed]
