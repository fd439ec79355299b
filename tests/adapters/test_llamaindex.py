"""LlamaIndex' node postprocessor, by llama-index-core itself."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from known_order import BEST_FIRST, QUERY, TEXTS, by_shared_words, falls
from r1ranker import DataError
from r1ranker.adapters.llamaindex import R1Ranker

NODES = [NodeWithScore(node=TextNode(text=text, id_=f"n{at}"), score=0.5) for at, text in enumerate(TEXTS)]


def test_nodes_come_best_first() -> None:
    ranker = R1Ranker(ranker=by_shared_words(), top_n=3)
    found = ranker.postprocess_nodes(NODES, query_str=QUERY)
    assert [node.node.node_id for node in found] == [f"n{at}" for at in BEST_FIRST[:3]]
    assert falls([node.score or 0.0 for node in found])
    assert all(node.score == 0.5 for node in NODES)


def test_awaited_it_does_the_same() -> None:
    ranker = R1Ranker(ranker=by_shared_words())
    assert asyncio.run(ranker.apostprocess_nodes(NODES, QueryBundle(QUERY))) == ranker.postprocess_nodes(
        NODES, QueryBundle(QUERY)
    )


def test_the_model_reads_the_metadata_that_an_embedding_would() -> None:
    titled = TextNode(text="see the title", metadata={"title": QUERY}, id_="read")
    hidden = TextNode(
        text="no title", metadata={"title": QUERY}, excluded_embed_metadata_keys=["title"], id_="not read"
    )
    nodes = [NodeWithScore(node=node) for node in (hidden, titled)]
    found = R1Ranker(ranker=by_shared_words()).postprocess_nodes(nodes, query_str=QUERY)
    assert [node.node.node_id for node in found] == ["read", "not read"]


def test_without_a_query_there_is_no_order() -> None:
    with pytest.raises(DataError, match="query_str"):
        R1Ranker(ranker=by_shared_words()).postprocess_nodes(NODES)
