"""What a CrossEncoder of sentence-transformers is asked: by its evaluator, by BEIR, and beside a real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from known_order import BEST_FIRST, QUERY, TEXTS, by_shared_words, falls
from r1ranker.adapters.cross_encoder import R1Ranker

pytest.importorskip("sentence_transformers")

from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

from conftest import save_bert

PAIRS = [(QUERY, text) for text in TEXTS]


def test_rank_says_what_a_cross_encoder_says_in_the_same_form(tmp_path: Path) -> None:
    ours, theirs = R1Ranker(by_shared_words()), CrossEncoder(save_bert(tmp_path / "bert", 1))
    for settings in ({}, {"top_k": 2}, {"return_documents": True, "batch_size": 8, "show_progress_bar": False}):
        found, other = ours.rank(QUERY, TEXTS, **settings), theirs.rank(QUERY, TEXTS, **settings)  # type: ignore[arg-type]
        assert [row.keys() for row in found] == [row.keys() for row in other]
        assert [row["corpus_id"] for row in found] == BEST_FIRST[: len(found)]
        assert falls([row["score"] for row in found])
    assert [row["text"] for row in found] == [TEXTS[at] for at in BEST_FIRST]


def test_predict_gives_the_types_of_a_cross_encoder(tmp_path: Path) -> None:
    ours, theirs = R1Ranker(by_shared_words()), CrossEncoder(save_bert(tmp_path / "bert", 1))
    found, other = ours.predict(PAIRS), theirs.predict(PAIRS)
    assert (type(found), found.dtype, found.shape) == (type(other), other.dtype, other.shape)
    assert np.shape(ours.predict(PAIRS[0])) == np.shape(theirs.predict(PAIRS[0])) == ()
    assert torch.is_tensor(ours.predict(PAIRS, convert_to_tensor=True))
    assert len(ours.predict([])) == 0


def test_what_is_given_by_place_as_to_a_cross_encoder_is_taken() -> None:
    ours = R1Ranker(by_shared_words())
    assert ours.predict(PAIRS, 32).tolist() == ours.predict(PAIRS).tolist()
    assert ours.predict(PAIRS[0], 32, False) == ours.predict(PAIRS[0])
    assert ours.rank(QUERY, TEXTS, None, True, 32) == ours.rank(QUERY, TEXTS, return_documents=True)


def test_pairs_of_one_query_are_ranked_together_wherever_they_stand() -> None:
    ours = R1Ranker(by_shared_words())
    others = [("tractors", text) for text in TEXTS]
    mixed = [pair for both in zip(PAIRS, others, strict=True) for pair in both]
    found = ours.predict(mixed)
    assert found[0::2].tolist() == ours.predict(PAIRS).tolist()
    assert np.argsort(-found[0::2]).tolist() == BEST_FIRST
    assert np.argmax(found[1::2]) == 0


def test_the_evaluator_of_sentence_transformers_measures_it() -> None:
    samples = [
        {"query": QUERY, "positive": [TEXTS[3]], "negative": [TEXTS[0], TEXTS[1]]},
        {"query": "tractors", "positive": [TEXTS[2]], "negative": [TEXTS[0]]},
    ]
    evaluator = CrossEncoderRerankingEvaluator(samples, at_k=2, show_progress_bar=False, write_csv=False)
    assert evaluator(R1Ranker(by_shared_words()))["mrr@2"] == pytest.approx((1 + 1 / 2) / 2)


def test_beir_reranks_with_it() -> None:
    Rerank = pytest.importorskip("beir.reranking").Rerank
    corpus = {f"d{at}": {"title": "", "text": text} for at, text in enumerate(TEXTS)}
    first = {"q1": dict.fromkeys(corpus, 1.0), "q2": dict.fromkeys(corpus, 1.0)}
    found = Rerank(R1Ranker(by_shared_words())).rerank(corpus, {"q1": QUERY, "q2": "tractors"}, first, top_k=4)
    assert sorted(found["q1"], key=lambda docid: -found["q1"][docid]) == [f"d{at}" for at in BEST_FIRST]
    assert max(found["q2"], key=found["q2"].__getitem__) == "d0"
