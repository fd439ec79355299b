"""rerankers' one interface, by rerankers itself."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("rerankers")

from rerankers import Document
from rerankers.models.ranker import BaseRanker

from known_order import BEST_FIRST, QUERY, TEXTS, by_shared_words, falls
from r1ranker import ConfigError
from r1ranker.adapters.rerankers import R1Ranker

IDS = [f"d{at}" for at in range(len(TEXTS))]


def test_results_come_best_first_with_ids_ranks_and_metadata() -> None:
    ranker = R1Ranker(by_shared_words())
    assert isinstance(ranker, BaseRanker)
    found = ranker.rank(QUERY, TEXTS, IDS, metadata=[{"at": at} for at in range(len(TEXTS))])
    assert [result.doc_id for result in found] == [f"d{at}" for at in BEST_FIRST]
    assert [result.rank for result in found] == [1, 2, 3, 4]
    assert [result.metadata["at"] for result in found] == BEST_FIRST
    assert falls([result.score for result in found])
    assert found.has_scores
    assert [result.doc_id for result in found.top_k(2)] == [f"d{at}" for at in BEST_FIRST[:2]]


def test_documents_and_a_call_that_is_awaited() -> None:
    ranker = R1Ranker(by_shared_words())
    documents = [Document(text, doc_id=doc_id) for text, doc_id in zip(TEXTS, IDS, strict=True)]

    async def found() -> list[str]:
        return [result.doc_id for result in await ranker.rank_async(QUERY, documents)]

    assert asyncio.run(found()) == [f"d{at}" for at in BEST_FIRST]


def test_a_single_document_has_no_score() -> None:
    with pytest.raises(ConfigError, match="call rank"):
        R1Ranker(by_shared_words()).score(QUERY, TEXTS[0])
