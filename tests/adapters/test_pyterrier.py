"""PyTerrier's transformer, in its pipelines; no Java is started."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pytest

pytest.importorskip("pyterrier")

import pyterrier as pt

from known_order import BEST_FIRST, QUERY, TEXTS, by_shared_words, falls
from r1ranker.adapters.pyterrier import R1Ranker
from r1ranker.problem import Problem, Ranking

FRAME = pd.DataFrame(
    [
        {"qid": qid, "query": query, "docno": f"d{at}", "text": text, "score": 0.0, "rank": at}
        for at, text in enumerate(TEXTS)
        for qid, query in (("q1", QUERY), ("q2", "tractors"))
    ]
)


def test_each_query_of_a_frame_is_ranked_and_all_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, calls = by_shared_words(), list[int]()
    many = ranker.rank_many

    def counted(problems: Sequence[Problem]) -> list[Ranking]:
        calls.append(len(problems))
        return many(problems)

    monkeypatch.setattr(ranker, "rank_many", counted)
    found = R1Ranker(ranker).transform(FRAME)
    assert calls == [2]
    pt.validate.result_frame(found, extra_columns=["query", "text", "score", "rank"])
    of_first = found[found.qid == "q1"]
    assert of_first.docno.tolist() == [f"d{at}" for at in BEST_FIRST]
    assert of_first["rank"].tolist() == [0, 1, 2, 3]
    assert falls(of_first.score.tolist())
    assert found[found.qid == "q2"].docno.tolist()[0] == "d0"


@pytest.mark.filterwarnings("ignore:There are shared pipeline components")
def test_it_stands_in_a_pipeline_and_an_experiment() -> None:
    first = pt.Transformer.from_df(FRAME)
    pipeline = first % 3 >> R1Ranker(by_shared_words()) % 1
    topics = FRAME[["qid", "query"]].drop_duplicates()
    assert pipeline.transform(topics).docno.tolist() == ["d1", "d0"]
    qrels = pd.DataFrame([["q1", "d3", 1], ["q2", "d0", 1]], columns=["qid", "docno", "label"])
    table = pt.Experiment([first, first >> R1Ranker(by_shared_words())], topics, qrels, ["recip_rank"])
    assert table["recip_rank"].tolist() == [pytest.approx((0.25 + 1) / 2), 1.0]
    assert not pt.java.started()


def test_an_empty_frame_gets_the_columns() -> None:
    found = R1Ranker(by_shared_words()).transform(FRAME.iloc[:0].drop(columns=["score", "rank"]))
    assert len(found) == 0
    assert {"score", "rank"} <= set(found.columns)


def test_a_frame_without_texts_is_refused() -> None:
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        R1Ranker(by_shared_words()).transform(FRAME.drop(columns="text"))
