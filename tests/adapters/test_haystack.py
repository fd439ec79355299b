"""Haystack's component, in its pipelines."""

from __future__ import annotations

import pytest

pytest.importorskip("haystack")

from haystack import Document, Pipeline
from haystack.core.errors import DeserializationError

from known_order import BEST_FIRST, QUERY, TEXTS, by_shared_words, falls
from r1ranker import ConfigError, DataError
from r1ranker.adapters.haystack import R1Ranker
from r1ranker.ranking.spec import RankerSpec

DOCUMENTS = [Document(content=text, meta={"at": at}) for at, text in enumerate(TEXTS)]


def ranked(pipeline: Pipeline, **given: object) -> list[Document]:
    found: list[Document] = pipeline.run({"ranker": {"query": QUERY, "documents": DOCUMENTS, **given}})["ranker"][
        "documents"
    ]
    return found


def pipeline_of(ranker: R1Ranker) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("ranker", ranker)
    return pipeline


def test_documents_come_best_first_and_the_call_says_how_many() -> None:
    pipeline = pipeline_of(R1Ranker(by_shared_words(), top_k=3))
    found = ranked(pipeline)
    assert [document.meta["at"] for document in found] == BEST_FIRST[:3]
    assert falls([document.score or 0.0 for document in found])
    assert [document.meta["at"] for document in ranked(pipeline, top_k=1)] == BEST_FIRST[:1]
    assert all(document.score is None for document in DOCUMENTS)


@pytest.mark.parametrize("ranker", ["nano", RankerSpec(depth=2, top_k=1)])
def test_a_saved_pipeline_ranks_as_before_where_the_module_is_allowed(ranker: str | RankerSpec) -> None:
    pipeline = pipeline_of(R1Ranker(ranker, top_k=3))
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["r1ranker.*"])
    assert again.get_component("ranker").ranker == ranker
    assert ranked(again) == ranked(pipeline)
    with pytest.raises(DeserializationError, match="allowlist"):
        Pipeline.loads(pipeline.dumps())


def test_a_built_ranker_cannot_be_saved() -> None:
    with pytest.raises(ConfigError, match="RankerSpec"):
        pipeline_of(R1Ranker(by_shared_words())).dumps()


def test_a_document_without_text_is_refused() -> None:
    with pytest.raises(DataError, match="text 0"):
        R1Ranker(by_shared_words()).run(QUERY, [Document(content=None, meta={"picture": "owl.png"})])
