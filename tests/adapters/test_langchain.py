"""LangChain's document compressor, by langchain-core itself."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("langchain_core")

from langchain_core.documents import BaseDocumentCompressor, Document

from known_order import BEST_FIRST, QUERY, TEXTS, broken, by_shared_words, falls
from r1ranker import BackendError
from r1ranker.adapters.langchain import R1Ranker

DOCUMENTS = [Document(text, id=f"d{at}", metadata={"at": at}) for at, text in enumerate(TEXTS)]


def test_documents_come_best_first_and_those_given_stay_as_they_are() -> None:
    compressor = R1Ranker(ranker=by_shared_words())
    assert isinstance(compressor, BaseDocumentCompressor)
    found = compressor.compress_documents(DOCUMENTS, QUERY)
    assert [document.metadata["at"] for document in found] == BEST_FIRST
    assert [document.id for document in found] == [f"d{at}" for at in BEST_FIRST]
    assert falls([document.metadata["relevance_score"] for document in found])
    assert all("relevance_score" not in document.metadata for document in DOCUMENTS)


def test_awaited_it_does_the_same_for_many_at_a_time() -> None:
    compressor = R1Ranker(ranker=by_shared_words(), top_n=2)

    async def both() -> list[list[Document]]:
        return await asyncio.gather(
            *(compressor.acompress_documents(DOCUMENTS, query) for query in (QUERY, "tractors"))
        )

    owls, tractors = asyncio.run(both())
    assert owls == compressor.compress_documents(DOCUMENTS, QUERY)
    assert [document.metadata["at"] for document in owls] == BEST_FIRST[:2]
    assert tractors[0].metadata["at"] == 0


def test_nothing_retrieved_is_nothing_ranked() -> None:
    assert R1Ranker(ranker="nano").compress_documents([], QUERY) == []


def test_a_failed_model_raises() -> None:
    with pytest.raises(BackendError):
        R1Ranker(ranker=broken()).compress_documents(DOCUMENTS, QUERY)
