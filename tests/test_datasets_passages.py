"""Passage problems: rank_llm requests with TREC qrels, and MS MARCO QA parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1ranker.datasets import msmarco_qa, rankllm
from r1ranker.datasets.common import check_disjoint
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Problem, Splits

GRADES = {0: 3, 2: 1, 4: 2, 5: 0, 99: 3}
"""Grade by rank of every query; rank 99 is judged but was not retrieved."""


def all_of(splits: Splits) -> list[Problem]:
    return [problem for problems in splits.values() for problem in problems]


def hits(qid: int) -> list[dict[str, Any]]:
    return [
        {"content": f"passage {rank}  of {qid} " + "word " * 100, "qid": qid, "docid": f"{qid}-{rank}",
         "rank": rank + 1, "score": 30.0 - rank}
        for rank in range(20)
    ]  # fmt: skip


def write(path: Path, queries: int = 20, newer: bool = False) -> Path:
    half = queries // 2
    for name, qids in (("dl19", range(half)), ("dl21", range(half, queries))):
        requests: list[dict[str, Any]] = [{"query": f"query {qid}", "hits": hits(qid)} for qid in qids]
        if newer:
            requests = [
                {"query": {"text": f"query {qid}", "qid": str(qid)},
                 "candidates": [{"docid": h["docid"], "score": h["score"], "doc": {"contents": h["content"]}}
                                for h in reversed(hits(qid))]}
                for qid in qids
            ]  # fmt: skip
        (path / f"bm25_{name}.json").write_text(json.dumps(requests))
        lines = [f"{qid} Q0 {qid}-{rank}\t{grade}\n" for qid in qids for rank, grade in GRADES.items()]
        (path / f"qrels.{name}.txt").write_text("".join(lines) + "\n")
    return path


def test_the_first_stage_keeps_its_order_and_all_graded_qrels(tmp_path: Path) -> None:
    splits = rankllm.load(write(tmp_path), tasks=["passage-bm25"], top_k=10)
    assert len(all_of(splits)) == 20
    problem = splits["test"][0]
    assert [c.docid for c in problem.candidates] == [f"{problem.qid}-{rank}" for rank in range(10)]
    assert problem.gains == {f"{problem.qid}-{rank}": grade for rank, grade in GRADES.items()}
    assert problem.prior[f"{problem.qid}-3"] == 27.0
    assert problem.relevant_at == 2


@pytest.mark.parametrize(("task", "size"), [("passage-5", 5), ("passage-7", 7), ("passage-9", 9)])
def test_pools_hold_one_relevant_passage_and_fit(tmp_path: Path, task: str, size: int) -> None:
    splits = rankllm.load(write(tmp_path), tasks=[task], pools_per_query=6, eval_pools_per_query=2)
    for problem in all_of(splits):
        assert len(problem.candidates) == size
        assert sum(map(problem.is_relevant, problem.identifiers)) == 1
        assert 2000 < sum(len(c.text) for c in problem.candidates) <= 2600
        assert problem.qid.startswith(f"{problem.group}:{size}:")
        assert problem.gains.keys() <= {c.docid for c in problem.candidates}
    assert len(splits["train"]) == 14 * 6
    assert len(splits["test"]) == 4 * 2
    grades = {grade for p in all_of(splits) for grade in p.gains.values()}
    assert grades == {0, 1, 2, 3}


def test_pools_of_a_query_use_distinct_positives_first(tmp_path: Path) -> None:
    splits = rankllm.load(write(tmp_path), tasks=["passage-5"], pools_per_query=2)
    first, second = (p for p in splits["train"] if p.group == splits["train"][0].group)
    assert max(first.gains, key=first.gains.__getitem__) != max(second.gains, key=second.gains.__getitem__)


def test_a_query_is_on_one_side_for_all_tasks_and_the_seed_decides(tmp_path: Path) -> None:
    splits = rankllm.load(write(tmp_path))
    check_disjoint(splits)
    assert {p.task for p in splits["test"]} == set(rankllm.TASKS)
    assert splits == rankllm.load(tmp_path)
    assert splits != rankllm.load(tmp_path, seed=1)


def test_relevance_threshold_is_a_parameter(tmp_path: Path) -> None:
    splits = rankllm.load(write(tmp_path), tasks=["passage-5"], relevant_at=3)
    positives = {docid for p in all_of(splits) for docid, gain in p.gains.items() if gain >= 3}
    assert {docid.split("-")[1] for docid in positives} == {"0"}


def test_both_request_forms_give_the_same_problems(tmp_path: Path) -> None:
    older, newer = tmp_path / "older", tmp_path / "newer"
    older.mkdir()
    newer.mkdir()
    assert rankllm.load(write(older)) == rankllm.load(write(newer, newer=True))


def test_unjudged_queries_and_other_json_files_are_left_out(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "more.json").write_text(json.dumps([{"query": "unjudged", "hits": hits(77)}]))
    (tmp_path / "settings.json").write_text('{"k": 1}')
    assert "77" not in {p.group for p in all_of(rankllm.load(tmp_path))}


def test_copies_of_the_positive_are_no_negatives(tmp_path: Path) -> None:
    requests = [
        {"query": f"q{qid}", "hits": [{**h, "content": f"text {i // 2}"} for i, h in enumerate(hits(qid))]}
        for qid in range(5)
    ]
    (tmp_path / "r.json").write_text(json.dumps(requests))
    (tmp_path / "qrels.txt").write_text("".join(f"{qid} 0 {qid}-0 3\n" for qid in range(5)))
    for problem in all_of(rankllm.load(tmp_path, tasks=["passage-9"])):
        assert len({c.text for c in problem.candidates}) == 9


def test_rankllm_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no qrels\* file"):
        rankllm.load(tmp_path)
    (tmp_path / "qrels.txt").write_text("1 0 a 2\n1 0 b\n")
    with pytest.raises(DataError, match=r"qrels\.txt:2: expected 'qid 0 docid grade', found '1 0 b'"):
        rankllm.load(tmp_path)
    (tmp_path / "qrels.txt").write_text("1 0 a 2\n")
    with pytest.raises(DataError, match=r"no \.json file with requests"):
        rankllm.load(tmp_path)
    (tmp_path / "r.json").write_text(json.dumps([{"query": "q", "hits": [{"docid": "a", "qid": 2}]}]))
    with pytest.raises(DataError, match=r"r\.json: request 0: lacks or misplaces 'doc'"):
        rankllm.load(tmp_path)
    (tmp_path / "r.json").write_text(json.dumps([{"query": "q", "hits": hits(2)}]))
    with pytest.raises(DataError, match="no query is judged >= 2"):
        rankllm.load(tmp_path)
    with pytest.raises(ConfigError, match="'passage-6' is not one of passage-5"):
        rankllm.load(tmp_path, tasks=["passage-6"])


def parquet(path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path / f"{name}-00000-of-00001.parquet")


def row(qid: int, passages: int = 10, chars: int = 100, selected: int | None = 3, query: str = "") -> dict[str, Any]:
    texts = [f"{qid} {index} ".ljust(chars, "x") for index in range(passages)]
    return {
        "answers": ["a"], "query": query or f"query {qid}", "query_id": qid, "query_type": "description",
        "passages": {"is_selected": [int(i == selected) for i in range(passages)], "passage_text": texts,
                     "url": ["http://x"] * passages},
    }  # fmt: skip


def test_msmarco_pools_hold_one_selected_passage_and_whole_texts(tmp_path: Path) -> None:
    parquet(tmp_path, "train", [row(n) for n in range(5)])
    parquet(tmp_path, "validation", [row(n) for n in range(10, 13)])
    parquet(tmp_path, "test", [row(n) for n in range(20, 22)])
    splits = msmarco_qa.load(tmp_path)
    assert {split: len(problems) for split, problems in splits.items()} == {"train": 15, "dev": 9, "test": 6}
    for problem in all_of(splits):
        qid, size = problem.qid.split(":")
        assert problem.task == f"passage-{size}"
        assert len(problem.candidates) == int(size)
        assert problem.gains == {f"{qid}-3": 1}
        assert all(len(c.text) == 100 for c in problem.candidates)
        assert problem.prior == {}
    assert splits == msmarco_qa.load(tmp_path)


def test_msmarco_queries_that_give_no_pool_are_left_out(tmp_path: Path) -> None:
    unfit = [row(1, passages=4), row(2, chars=521), row(3, selected=None), row(4, query=" ")]
    parquet(tmp_path, "train", [row(0, chars=520), *unfit])
    splits = msmarco_qa.load(tmp_path, tasks=["passage-5"])
    assert [p.group for p in all_of(splits)] == ["query 0"]


def test_msmarco_queries_on_two_sides_stay_on_the_later_one(tmp_path: Path) -> None:
    parquet(tmp_path, "train", [row(0, query="What is RBA"), row(1)])
    parquet(tmp_path, "test", [row(2, query="what is  rba")])
    splits = msmarco_qa.load(tmp_path, tasks=["passage-5"])
    check_disjoint(splits)
    assert [p.qid for p in splits["train"]] == ["1:5"]
    assert [p.qid for p in splits["test"]] == ["2:5"]


def test_msmarco_single_file_is_split_by_query(tmp_path: Path) -> None:
    parquet(tmp_path, "train", [row(n, query=f"query {n // 2}") for n in range(40)])
    splits = msmarco_qa.load(tmp_path, tasks=["passage-5"], limit=10)
    check_disjoint(splits)
    assert [len(splits[split]) for split in ("train", "dev", "test")] == [10, 4, 8]


def test_msmarco_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no train-\*\.parquet"):
        msmarco_qa.load(tmp_path)
    parquet(tmp_path, "train", [{**row(0), "passages": None}])
    with pytest.raises(DataError, match="row 0: needs query, query_id and passages"):
        msmarco_qa.load(tmp_path)
    parquet(tmp_path, "train", [{"text": "a"}])
    with pytest.raises(DataError, match=r"train-.*parquet"):
        msmarco_qa.load(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a readable parquet file"):
        msmarco_qa.load(tmp_path)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"hits": [{**hits(1)[0], "score": 10**400}]}, r"request 0, hit 1: score: .* is not a finite number"),
        ({"hits": [{**hits(1)[0], "score": "high"}]}, r"request 0, hit 1: score: 'high' is not a finite number"),
        ({"hits": [{**hits(1)[0], "docid": None}]}, r"request 0, hit 1: docid is None, not an identifier"),
        ({"hits": [{**hits(1)[0], "content": ["x"]}]}, r"request 0, hit 1: the text is a list, not a text"),
        ({"query": None}, r"request 0: the query is empty"),
        ({"hits": "x"}, r"request 0: lacks or misplaces"),
        ({"hits": [7]}, r"request 0: lacks or misplaces"),
    ],
)
def test_what_a_request_lacks_is_named_with_its_place(tmp_path: Path, request_: dict[str, Any], message: str) -> None:
    (tmp_path / "qrels.txt").write_text("1 0 1-0 2\n")
    (tmp_path / "r.json").write_text(json.dumps([{"query": "q", "hits": hits(1), **request_}]))
    with pytest.raises(DataError, match=message):
        rankllm.load(tmp_path)


def test_a_null_text_is_empty_and_a_query_that_stands_twice_is_refused(tmp_path: Path) -> None:
    request = {"query": "q", "hits": [{**hit, "content": None} for hit in hits(1)]}
    (tmp_path / "qrels.txt").write_text("1 0 1-0 2\n")
    (tmp_path / "r.json").write_text(json.dumps([request, request]))
    (problem,) = all_of(rankllm.load(tmp_path, tasks=["passage-bm25"]))
    assert {c.text for c in problem.candidates} == {""}
    (tmp_path / "r.json").write_text(json.dumps([request, request | {"query": "other"}]))
    with pytest.raises(DataError, match=r"r\.json: query '1' stands twice, with unequal hits"):
        rankllm.load(tmp_path)
