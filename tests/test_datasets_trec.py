"""Test collections in their official layouts: the same problems from each, all judgements kept, faults named."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest

from r1ranker.baselines import BASELINES
from r1ranker.datasets import load, trec
from r1ranker.errors import ConfigError, DataError
from r1ranker.evaluation.measures import evaluate
from r1ranker.problem import Problem

CORPUS = {
    "d1": ("Owls", "the barn owl lives  four years"),
    "d2": ("Foxes", "the red fox lives three years"),
    "d3": ("", "owls hunt at night"),
    "d4": ("", "bread is baked from flour"),
    "d5": ("", "a barn for hay"),
}
TEXTS = {"d1": "Owls the barn owl lives four years", "d4": "bread is baked from flour"}
QUERIES = {"q1": "how long does the barn owl live", "q2": "what is bread made of", "q3": "never judged"}
RUN = {"q1": {"d5": 3.0, "d1": 2.5, "d3": 2.0, "d2": 0.5}, "q2": {"d4": 9.0, "d2": 1.0}}
GRADES = {"q1": {"d1": 3, "d3": 1, "d9": 2, "d5": 0, "d2": -1}, "q2": {"d4": 1}}
"""d9 is judged and neither retrieved nor in the corpus."""


def run_file(path: Path) -> Path:
    lines = [f"{qid} Q0 {docid} 0 {score} tag\n" for qid, scores in RUN.items() for docid, score in scores.items()]
    path.write_text("".join(lines))
    return path


def beir(path: Path, run: bool = True, split: str = "test") -> Path:
    (path / "qrels").mkdir(parents=True)
    docs = [{"_id": docid, "title": title, "text": text} for docid, (title, text) in CORPUS.items()]
    (path / "corpus.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    queries = [{"_id": qid, "text": text, "metadata": {}} for qid, text in QUERIES.items()]
    (path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    rows = [f"{qid}\t{docid}\t{grade}\n" for qid, grades in GRADES.items() for docid, grade in grades.items()]
    (path / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    if run:
        run_file(path / "run.bm25.txt")
    return path


def trec_files(path: Path) -> Path:
    path.mkdir()
    with gzip.open(path / "collection.tsv.gz", "wt") as lines:
        lines.writelines(f"{docid}\t{title} {text}\n" for docid, (title, text) in CORPUS.items())
    (path / "queries.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in QUERIES.items()))
    rows = [f"{qid} Q0 {docid} {grade}\n" for qid, grades in GRADES.items() for docid, grade in grades.items()]
    (path / "qrels.dl19-passage.txt").write_text("".join(rows))
    run_file(path / "bm25.trec")
    return path


def requests(path: Path) -> Path:
    path.mkdir()
    entries = [
        {
            "query": {"text": QUERIES[qid], "qid": qid},
            "candidates": [
                {"docid": docid, "score": score, "doc": dict(zip(("title", "contents"), CORPUS[docid], strict=True))}
                for docid, score in scores.items()
            ],
        }
        for qid, scores in RUN.items()
    ]
    (path / "requests.json").write_text(json.dumps(entries))
    rows = [f"{qid} 0 {docid} {grade}\n" for qid, grades in GRADES.items() for docid, grade in grades.items()]
    (path / "qrels.txt").write_text("".join(rows))
    return path


def stripped(problems: list[Problem]) -> list[tuple[object, ...]]:
    return [(p.qid, p.query, p.candidates, p.gains, p.prior) for p in problems]


def pools(problems: list[Problem]) -> dict[str, list[str]]:
    return {p.qid: [c.docid for c in p.candidates] for p in problems}


def test_a_problem_is_the_first_stage_with_all_judgements(tmp_path: Path) -> None:
    splits = load("trec", beir(tmp_path / "scifact"), top_k=3, relevant_at=2)
    assert [p.qid for p in splits["test"]] == ["q1", "q2"]
    problem = splits["test"][0]
    assert problem.task == "scifact"
    assert [c.docid for c in problem.candidates] == ["d5", "d1", "d3"]
    assert problem.candidates[1].text == TEXTS["d1"]
    assert problem.gains == {"d1": 3, "d3": 1, "d9": 2, "d5": 0, "d2": 0}
    assert problem.prior == {"d5": 3.0, "d1": 2.5, "d3": 2.0}
    assert problem.relevant_at == 2
    assert problem.query == QUERIES["q1"]


def test_every_layout_gives_the_same_problems(tmp_path: Path) -> None:
    of_beir = load("trec", beir(tmp_path / "beir"))["test"]
    of_trec = load("trec", trec_files(tmp_path / "trec"))["test"]
    of_requests = load("trec", requests(tmp_path / "rank_llm"))["test"]
    assert stripped(of_beir) == stripped(of_trec) == stripped(of_requests)
    assert {p.task for p in of_trec} == {"dl19-passage"}
    assert {p.task for p in of_requests} == {"rank_llm"}


def test_ndcg_counts_relevant_documents_that_were_not_retrieved(tmp_path: Path) -> None:
    problems = load("trec", beir(tmp_path / "x"))["test"][:1]
    value = evaluate(BASELINES["oracle"](problems), problems)["nDCG@10"]["q1"]
    ideal = 3 + 2 / 1.584962500721156 + 1 / 2
    assert value == pytest.approx((3 + 1 / 1.584962500721156) / ideal)
    assert fmean(evaluate(BASELINES["prior"](problems), problems)["nDCG@10"].values()) < value


def test_without_a_run_file_the_first_stage_is_bm25_over_the_corpus(tmp_path: Path) -> None:
    problems = load("trec", beir(tmp_path / "x", run=False))["test"]
    assert [problem.candidates[0].docid for problem in problems] == ["d1", "d4"]
    assert [c.docid for c in problems[1].candidates] == ["d4"], "documents without a word of the query are no result"
    scores = list(problems[0].prior.values())
    assert scores == sorted(scores, reverse=True)


def test_judgements_of_train_and_dev_make_those_splits(tmp_path: Path) -> None:
    path = beir(tmp_path / "x", split="train")
    (path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td2\t1\n")
    with (path / "run.bm25.txt").open("a") as lines:
        lines.write("q3 Q0 d2 1 1.0 tag\n")
    splits = load("trec", path)
    assert {split: [p.qid for p in problems] for split, problems in splits.items()} == {
        "train": ["q1", "q2"], "dev": [], "test": ["q3"],
    }  # fmt: skip
    assert len(load("trec", path, limit=1)["train"]) == 1


def test_several_qrels_files_are_several_tasks(tmp_path: Path) -> None:
    path = trec_files(tmp_path / "x")
    lines = (path / "qrels.dl19-passage.txt").read_text().splitlines(keepends=True)
    (path / "qrels.dl19-passage.txt").write_text("".join(lines[:-1]))
    (path / "qrels.dl20-passage.txt").write_text(lines[-1])
    assert [(p.task, p.qid) for p in load("trec", path)["test"]] == [("dl19-passage", "q1"), ("dl20-passage", "q2")]


def test_long_texts_are_cut_each(tmp_path: Path) -> None:
    problem = load("trec", beir(tmp_path / "x"), max_chars=16)["test"][0]
    assert [c.text for c in problem.candidates] == ["a barn for hay", "Owls the barn", "owls hunt at", "Foxes the red"]


def test_a_document_that_is_the_query_itself_is_left_out_but_a_mere_namesake_is_not(tmp_path: Path) -> None:
    path = beir(tmp_path / "x")
    added = {
        "corpus.jsonl": [{"_id": "own", "text": "what is bread made of, they ask"}],
        "queries.jsonl": [{"_id": "own", "text": QUERIES["q2"]}, {"_id": "d1", "text": "hay"}],
    }
    for name, records in added.items():
        with (path / name).open("a") as lines:
            lines.write("".join(json.dumps(record) + "\n" for record in records))
    with (path / "run.bm25.txt").open("a") as lines:
        lines.write("own Q0 own 1 9 t\nown Q0 d4 2 8 t\nown Q0 d5 3 7 t\nd1 Q0 d5 1 2 t\nd1 Q0 d1 2 1 t\n")
    with (path / "qrels" / "test.tsv").open("a") as lines:
        lines.write("own\td4\t1\nd1\td5\t1\n")
    found = pools(load("trec", path, top_k=2)["test"])
    assert found["own"] == ["d4", "d5"], "the next one takes its place"
    assert found["d1"] == ["d5", "d1"]


def test_judged_queries_that_cannot_count_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = beir(tmp_path / "x")
    with (path / "qrels" / "test.tsv").open("a") as lines:
        lines.write("q9\td1\t0\n")  # q9 has no text
    with caplog.at_level(logging.WARNING):
        assert [p.qid for p in load("trec", path)["test"]] == ["q1", "q2"]
    assert "x: 1 judged queries have no relevant document or no text" in caplog.text


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_judged_query_without_a_hit_has_an_empty_pool_and_counts_0_but_is_not_learnt_from(
    split: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = beir(tmp_path / "x", split=split)
    with (path / "qrels" / f"{split}.tsv").open("a") as lines:
        lines.write("q3\td1\t1\n")  # q3 is not in the run
    with caplog.at_level(logging.WARNING):
        problems = load("trec", path)[split]
    if split == "train":
        assert [p.qid for p in problems] == ["q1", "q2"]
        return
    assert [(p.qid, p.nothing_found) for p in problems] == [("q1", False), ("q2", False), ("q3", True)]
    assert evaluate(BASELINES["prior"](problems), problems)["nDCG@10"]["q3"] == 0
    assert "x: the first stage found nothing for 1 queries, which count 0" in caplog.text


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"source 'trec': .*give a folder.*expected: corpus\.jsonl.*https://ir-datasets"
    ):
        load("trec")
    with pytest.raises(DataError, match=r"has neither qrels/\*\.tsv nor a qrels\* file"):
        load("trec", tmp_path)
    with pytest.raises(ConfigError, match="top_k and max_chars must be at least 1"):
        load("trec", tmp_path, top_k=0)
    path = beir(tmp_path / "x")
    run_file(path / "second.trec")
    with pytest.raises(DataError, match=r"run\.bm25\.txt, second\.trec match 'run\*'; keep one of them"):
        load("trec", path)
    (path / "second.trec").unlink()
    (path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\n")
    with pytest.raises(DataError, match=r"test\.tsv:2: expected 'qid 0 docid grade', found 'q1\\td1'"):
        load("trec", path)
    (path / "qrels" / "test.tsv").write_text("q8\td1\t1\n")
    with pytest.raises(DataError, match="no query has a first stage and a relevant judgement"):
        load("trec", path)
    (path / "corpus.jsonl").write_text(json.dumps({"_id": "d1", "text": "one"}) + "\nnot json\n")
    (path / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: expected an identifier and a text, found 'not json"):
        load("trec", path)
    (path / "corpus.jsonl").write_text(json.dumps({"_id": "d1", "text": "one"}) + "\n")
    with pytest.raises(DataError, match="the corpus lacks document 'd2' of the first stage"):
        load("trec", path)
    (path / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no queries\.jsonl or queries\.tsv"):
        load("trec", path)


def test_without_ir_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ir_datasets", None)
    with pytest.raises(ConfigError, match=r"beir/scifact/test: needs ir_datasets; pip install 'r1-ranker\[ir\]'"):
        load("trec", datasets="beir/scifact/test")


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Path]:
    """Local files under names that ir_datasets knows: with a first stage, with an unscored one, and without."""
    ir_datasets = pytest.importorskip("ir_datasets")
    path = trec_files(tmp_path / "x")
    (path / "docs.tsv").write_text("".join(f"{docid}\t{t} {text}\n" for docid, (t, text) in CORPUS.items()))
    with (path / "qrels.dl19-passage.txt").open("a") as lines:
        lines.write("q2 0 d2 -100\n")
    (path / "unscored.tsv").write_text("q1\td3\nq1\td1\nq2\td4\n")
    download, formats = ir_datasets.util.LocalDownload, ir_datasets.formats
    base = [formats.TsvDocs(download(path / "docs.tsv")), formats.TsvQueries(download(path / "queries.tsv"))]
    base.append(formats.TrecQrels(download(path / "qrels.dl19-passage.txt"), {}))
    for name, file in (("scored", "bm25.trec"), ("unscored", "unscored.tsv"), ("bare", None)):
        more = [formats.TrecScoredDocs(download(path / file))] if file else []
        ir_datasets.registry.register(f"r1ranker-{name}/test", ir_datasets.Dataset(*base, *more))
    yield path
    for name in ("scored", "unscored", "bare"):
        del ir_datasets.registry._registered[f"r1ranker-{name}/test"]


def test_by_name_the_benchmarks_own_first_stage_is_used(registered: Path) -> None:
    problems = load("trec", datasets="r1ranker-scored/test")["test"]
    assert problems[0].task == "r1ranker-scored"
    assert problems[0].candidates[1].text == TEXTS["d1"]
    assert problems[0].gains["d9"] == 2
    assert pools(problems) == {"q1": ["d5", "d1", "d3", "d2"], "q2": ["d4"]}, "d2 is excluded for q2"
    assert "d2" not in problems[1].gains


def test_by_name_an_unscored_first_stage_is_ordered_by_bm25(registered: Path) -> None:
    assert pools(load("trec", datasets=["r1ranker-unscored/test"])["test"]) == {"q1": ["d1"], "q2": ["d4"]}


def test_by_name_a_run_file_or_bm25_stands_in(registered: Path) -> None:
    bare = load("trec", datasets="r1ranker-bare/test")["test"]
    assert [pool[0] for pool in pools(bare).values()] == ["d1", "d4"]
    given = load("trec", registered / "bm25.trec", datasets="r1ranker-bare/test")["test"]
    assert pools(given)["q1"] == ["d5", "d1", "d3", "d2"]


def test_an_unknown_name_is_told(registered: Path) -> None:
    with pytest.raises(ConfigError, match="ir_datasets has no dataset 'beir/scifct'"):
        load("trec", datasets="beir/scifct")


def test_the_name_says_the_split() -> None:
    assert trec._task_and_split("beir/scifact/train") == ("beir-scifact", "train")
    assert trec._task_and_split("msmarco-passage/trec-dl-2019/judged") == (
        "msmarco-passage-trec-dl-2019-judged",
        "test",
    )
    assert trec._task_and_split("bright/biology") == ("bright-biology", "test")
