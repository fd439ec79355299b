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
from r1ranker.errors import BackendError, ConfigError, DataError
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


def test_bm25_retrieves_as_many_as_are_asked_for(tmp_path: Path) -> None:
    corpus, queries = tmp_path / "corpus.tsv", tmp_path / "queries.tsv"
    corpus.write_text("".join(f"d{n}\towls live {n} years\n" for n in range(1200)))
    queries.write_text("1\towls\n")
    (problem,) = trec.from_files(corpus, queries, depth=1100)
    assert len(problem.candidates) == 1100


def test_files_named_one_by_one_are_measured_alike_whatever_split_their_name_says(tmp_path: Path) -> None:
    folder = small(tmp_path / "x", qrels_txt="1 0 d1 1\n2 0 d1 1\n", queries_tsv="1\towl\n2\tzebra\n", run_txt="")
    (folder / "qrels").mkdir()
    (folder / "qrels.txt").rename(folder / "qrels" / "train.tsv")
    found = trec.from_files(folder / "corpus.tsv", folder / "queries.tsv", qrels=folder / "qrels" / "train.tsv")
    assert {p.qid: len(p.candidates) for p in found} == {"1": 2, "2": 0}, "what BM25 does not find counts 0"


@pytest.mark.parametrize(
    ("queries", "corpus"),
    [
        ("qid\tquery", "doc_id\ttext"),
        ("query_id\tquestion", "docno\tdocument"),
        ("query-id\ttext", "corpus-id\tpassage"),
    ],
)
def test_a_first_line_that_names_its_columns_is_no_text(tmp_path: Path, queries: str, corpus: str) -> None:
    (tmp_path / "queries.tsv").write_text(f"{queries}\n1\towls live\n")
    (tmp_path / "corpus.tsv").write_text(f"{corpus}\nd1\towls live long\nd2\tthis is a query, a question, a text\n")
    (problem,) = load("trec", tmp_path)["test"]
    assert (problem.qid, problem.query, [c.docid for c in problem.candidates]) == ("1", "owls live", ["d1"])


def test_queries_of_json_lines_may_have_their_own_names(tmp_path: Path) -> None:
    folder = small(tmp_path / "x", queries_tsv="", queries_jsonl='{"qid": 1, "query": "an owl lived"}\n')
    assert first_of(folder).query == "an owl lived"


def test_a_record_whose_text_has_an_unknown_name_is_refused(tmp_path: Path) -> None:
    folder = small(tmp_path / "x", corpus_tsv="", corpus_jsonl='{"id": "d1", "topic": "sports", "article": "owls"}\n')
    with pytest.raises(DataError, match="no field 'text'"):
        load("trec", folder)


def test_the_folder_here_has_its_own_name_as_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(beir(tmp_path / "owls"))
    assert {p.task for p in load("trec", Path())["test"]} == {"owls"}


def test_one_query_of_two_tasks_is_refused(tmp_path: Path) -> None:
    path = trec_files(tmp_path / "x")
    (path / "qrels.dl20-passage.txt").write_text("q1 0 d1 1\n")
    with pytest.raises(DataError, match=r"'q1' stands in dl19-passage and in dl20-passage.*option qrels"):
        load("trec", path)
    assert len(load("trec", path, qrels="qrels.dl20-passage.txt")["test"]) == 1


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
        "corpus.jsonl": [{"_id": "own", "title": "Bread", "text": "What is bread  made of"}],
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
        load("trec", requests(tmp_path / "y"))
        with (tmp_path / "y" / "qrels.txt").open("a") as lines:
            lines.write("q9 0 d1 0\nq8 0 d1 1\n")
        assert [p.qid for p in load("trec", tmp_path / "y")["test"]] == ["q1", "q2"]
    assert "x: judged queries left out: 1 without a relevant document\n" in caplog.text
    assert "y: judged queries left out: 1 without a relevant document, 1 without a text\n" in caplog.text


def test_a_judged_query_without_a_request_counts_0_as_one_that_a_run_does_not_name(tmp_path: Path) -> None:
    found = {}
    for kind, folder in (("run", trec_files(tmp_path / "run")), ("requests", requests(tmp_path / "requests"))):
        (qrels,) = folder.glob("qrels*")
        with qrels.open("a") as lines:
            lines.write("q3 0 d1 1\n")
        (folder / "queries.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in QUERIES.items()))
        found[kind] = load("trec", folder)["test"]
    assert stripped(found["requests"]) == stripped(found["run"])
    assert [(p.qid, p.query, p.nothing_found) for p in found["requests"]][2:] == [("q3", "never judged", True)]


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
        assert "x: judged queries left out: 1 without a hit to train on\n" in caplog.text
        return
    assert [(p.qid, p.nothing_found) for p in problems] == [("q1", False), ("q2", False), ("q3", True)]
    assert evaluate(BASELINES["prior"](problems), problems)["nDCG@10"]["q3"] == 0
    assert "x: the first stage found nothing for 1 queries, which count 0" in caplog.text


def test_without_judgements_every_query_can_be_ranked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    judged = {p.qid: p for p in load("trec", beir(tmp_path / "x"))["test"]}
    (tmp_path / "x" / "qrels" / "test.tsv").unlink()
    with caplog.at_level(logging.INFO):
        splits = load("trec", tmp_path / "x")
    assert not splits["train"] and not splits["dev"]
    assert {p.qid: (p.candidates, p.prior, p.gains) for p in splits["test"]} == {
        qid: (p.candidates, p.prior, {}) for qid, p in judged.items()
    }
    assert "without qrels the queries can be ranked, but not trained on or evaluated" in caplog.text
    (tmp_path / "x" / "run.bm25.txt").unlink()
    assert [p.qid for p in load("trec", tmp_path / "x")["test"]] == ["q1", "q2", "q3"]
    requests(tmp_path / "r")
    (tmp_path / "r" / "qrels.txt").unlink()
    assert pools(load("trec", tmp_path / "r")["test"]) == pools(list(judged.values()))


def test_files_named_one_by_one_are_what_their_folder_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    of_beir, of_trec = beir(tmp_path / "x"), trec_files(tmp_path / "t")
    judged = load("trec", of_beir)["test"]
    bm25_, names = of_beir / "run.bm25.txt", ("corpus.jsonl", "queries.jsonl")
    corpus, queries = (of_beir / name for name in names)
    assert stripped(trec.from_files(corpus, queries, bm25_, of_beir / "qrels" / "test.tsv")) == stripped(judged)
    ours = trec.from_files(of_trec / "collection.tsv.gz", of_trec / "queries.tsv", bm25_)
    assert pools(ours) == pools(judged)
    assert all(p.gains == {} for p in ours)
    found = trec.from_files(corpus, queries, depth=2)
    assert {qid: len(pool) for qid, pool in pools(found).items()} == {"q1": 2, "q2": 1, "q3": 0}
    assert "the first stage found nothing for 1 queries" in caplog.text
    queries.write_text(json.dumps({"_id": "q1", "text": QUERIES["q1"]}) + "\n" + json.dumps({"_id": "q2", "text": " "}))
    assert list(pools(trec.from_files(corpus, queries, bm25_))) == ["q1"]
    assert "queries.jsonl: 1 queries are not there, or have no text, and are left out" in caplog.text


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"source 'trec': .*give a folder.*expected: corpus\.jsonl.*https://ir-datasets"
    ):
        load("trec")
    with pytest.raises(DataError, match=r"has neither a corpus \(corpus\.jsonl, collection\.tsv\)"):
        load("trec", tmp_path)
    for option in ("top_k", "max_chars", "relevant_at"):
        with pytest.raises(ConfigError, match=f"{option} must be at least 1"):
            load("trec", tmp_path, **{option: 0})
    path = beir(tmp_path / "x")
    run_file(path / "second.trec")
    with pytest.raises(DataError, match=r"run\.bm25\.txt, second\.trec match 'run\*'; keep one of them"):
        load("trec", path)
    (path / "second.trec").unlink()
    (path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\n")
    with pytest.raises(DataError, match=r"test\.tsv:2: expected 'qid 0 docid grade', found 'q1\\td1'"):
        load("trec", path)
    (path / "qrels" / "test.tsv").write_text("q8\td1\t1\n")
    with pytest.raises(DataError, match="no query has a candidate of a first stage"):
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
    with pytest.raises(BackendError, match=r"beir/scifact/test needs ir_datasets: pip install 'r1-ranker\[ir\]'"):
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
    assert pools(load("trec", datasets=["r1ranker-unscored/test"])["test"]) == {"q1": ["d1", "d3"], "q2": ["d4"]}


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


def small(path: Path, **files: str | bytes) -> Path:
    """A folder with a corpus, queries and judgements, and the files given; `_` in a name stands for a dot."""
    path.mkdir()
    texts = {"corpus_tsv": "d1\towls live\nd2\towls eat mice\nd3\tmice\n", "queries_tsv": "1\towls\n"}
    for name, content in {**texts, "qrels_txt": "1 0 d1 2\n1 0 d2 1\n", **files}.items():
        raw = content.encode() if isinstance(content, str) else content
        if raw:
            (path / name.replace("_", ".")).write_bytes(raw)
    return path


def first_of(path: Path, **options: object) -> Problem:
    return load("trec", path, **options)["test"][0]


BM25_RUN = "1 Q0 d2 1 9 x\n1 Q0 d1 2 8 x\n"


@pytest.mark.parametrize("name", ["bm25_run", "run_bm25_txt", "bm25_trec", "splade_txt", "top100_gz"])
def test_a_run_is_known_by_its_name_or_its_first_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.INFO):
        problem = first_of(small(tmp_path / "x", **{name: gzip.compress(BM25_RUN.encode())}))
    assert [c.docid for c in problem.candidates] == ["d2", "d1"]
    assert f"the first stage is {name.replace('_', '.')}" in caplog.text


def test_without_a_run_it_is_said_that_bm25_stands_in_and_it_compares_stems(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        problem = first_of(small(tmp_path / "x", queries_tsv="1\tan owl lived\n"))
    assert [c.docid for c in problem.candidates] == ["d1", "d2"]
    assert "the first stage is BM25 over the whole corpus" in caplog.text


def test_what_this_program_ranked_is_never_taken_for_a_first_stage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small(tmp_path / "x", run_trec=BM25_RUN.replace(" x\n", " r1ranker-iranker\n"))
    for beside in ("problems", "journal", "failed", "traces"):
        (path / f"run.trec.{beside}.jsonl").write_text('{"qid": "1"}\n')
    with caplog.at_level(logging.INFO):
        assert [c.docid for c in first_of(path).candidates] == ["d1", "d2"]
    assert "run.trec: is what this program ranked" in caplog.text
    assert [c.docid for c in first_of(path, run="run.trec").candidates] == ["d2", "d1"], "but by the user's word"


@pytest.mark.parametrize(("name", "content"), [("scores_csv", "1,d1,3\n"), ("bm25_json", '{"1": {"d1": 3.0}}')])
def test_a_file_of_unknown_role_is_refused_by_name(tmp_path: Path, name: str, content: str) -> None:
    path = small(tmp_path / "x", **{name: content}, README_md="what this is", run_bm25_txt=BM25_RUN)
    with pytest.raises(DataError, match=rf"{name.replace('_', '.')}: a first stage, .* by the option run"):
        load("trec", path)
    assert [c.docid for c in first_of(path, run="run.bm25.txt").candidates] == ["d2", "d1"]


def test_files_may_have_any_name_by_the_users_word(tmp_path: Path) -> None:
    path = small(
        tmp_path / "x", corpus_tsv="", queries_tsv="", qrels_txt="",
        a="d1\towls live\nd2\towls eat mice\n", b="1\towls\n", c="1 0 d1 2\n", d=BM25_RUN,
    )  # fmt: skip
    problem = first_of(path, corpus="a", topics="b", qrels="c", run="d")
    assert [c.docid for c in problem.candidates] == ["d2", "d1"]
    with pytest.raises(ConfigError, match=r"run=e: no such file in .*x, which holds a, b, c, d"):
        load("trec", path, corpus="a", topics="b", qrels="c", run="e")
    with pytest.raises(ConfigError, match="with datasets give a run as the path"):
        load("trec", datasets="beir/x", run="d")


def test_requests_may_stand_alone_or_one_a_line_and_two_first_stages_are_refused(tmp_path: Path) -> None:
    request = {
        "query": {"text": "owls", "qid": "1"},
        "candidates": [{"docid": f"d{i}", "score": 9 - i, "doc": {"contents": f"owls {i}"}} for i in (2, 1, 2)],
    }
    second = request | {"query": {"text": "mice", "qid": "2"}}
    ways = {"json": json.dumps(request), "jsonl": f"{json.dumps(request)}\n{json.dumps(second)}\n"}
    for number, (end, content) in enumerate({**ways, "json.gz": ways["jsonl"]}.items()):
        path = small(tmp_path / str(number), corpus_tsv="", queries_tsv="")
        (path / f"bm25.{end}").write_bytes(gzip.compress(content.encode()) if end == "json.gz" else content.encode())
        problem = first_of(path)
        assert problem.prior == {"d1": 8.0, "d2": 7.0}, "of a document that was found twice the best place counts"
    (path / "bm25.json").write_text(json.dumps(request | {"candidates": request["candidates"][:1]}))
    with pytest.raises(DataError, match=r"query '1' stands in bm25\.json too|stands in bm25\.json\.gz too"):
        load("trec", path)
    both = small(tmp_path / "both", run_bm25_txt=BM25_RUN, other_json=json.dumps(request))
    with pytest.raises(DataError, match=r"run\.bm25\.txt, other\.json are two first stages"):
        load("trec", both)
    assert [c.docid for c in first_of(both, run="other.json").candidates] == ["d1", "d2"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"corpus_tsv": "d1\towls\nd1\ttractors\n"}, r"corpus\.tsv:2: 'd1' stands twice"),
        ({"queries_tsv": "1\towls\n1\tmice\n"}, r"queries\.tsv:2: '1' stands twice"),
        ({"qrels_txt": "1 0 d1 2\n1 0 d1 1\n"}, r"qrels\.txt:2: query '1' and document 'd1' stand twice"),
        ({"qrels_txt": "1 0 d1 2 x\n"}, r"qrels\.txt:1: expected 'qid 0 docid grade'.*three or four columns"),
        ({"qrels_txt": "1 d1 2\n1 0 d1 2\n"}, r"qrels\.txt:2: expected .*as many on every line"),
        ({"qrels_txt": "1 d1 high\n"}, r"qrels\.txt:1: expected 'qid 0 docid grade'"),
        ({"qrels_txt": "1 0 d1 9999999\n"}, r"qrels\.txt:1: .*a grade is at most 1000000"),
        ({"qrels_txt": "1 0 d1 nan\n"}, r"qrels\.txt:1: expected"),
        ({"qrels_txt": "\n"}, r"qrels\.txt: is empty"),
        ({"corpus_tsv": b"d1\tcaf\xe9 owls\n"}, r"corpus\.tsv:1: not UTF-8"),
        ({"qrels_txt": gzip.compress(b"1 0 d1 2\n" * 9)[:-9]}, r"qrels\.txt: damaged or cut off"),
        ({"run_txt": "1 Q0 d1 1 inf x\n"}, r"run\.txt, line 1: score 'inf' is not a finite"),
        (
            {"corpus_tsv": "", "corpus_jsonl": '{"_id": "d1", "text": ["a"]}\n'},
            r"corpus\.jsonl:1: .*is a list, not a text",
        ),
        ({"corpus_tsv": "", "corpus_jsonl": '{"_id": null, "text": "a"}\n'}, r"corpus\.jsonl:1: .*not an identifier"),
        ({"corpus_tsv": "", "corpus_jsonl": '{"_id": "d1", "text": "\\ud83d"}\n'}, r"corpus\.jsonl:1: .*half an emoji"),
    ],
)
def test_what_cannot_be_read_rightly_is_refused_with_its_line(
    tmp_path: Path, files: dict[str, str | bytes], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load("trec", small(tmp_path / "x", **files))


@pytest.mark.parametrize(
    ("files", "gains"),
    [
        ({"qrels_txt": "\ufeff1 0 d1 2\r\n\r\n1 0 d2 1\r\n1 0 d2 1\r\n"}, {"d1": 2, "d2": 1}),
        ({"qrels_txt": "1\t0\tBarn Owl\t2\n1\t0\td1\t1\n"}, {"Barn Owl": 2, "d1": 1}),
        ({"qrels_txt": "1 d1 2\n1 d2 1\n"}, {"d1": 2, "d2": 1}),
        ({"qrels_txt": "corpus-id\tquery-id\tscore\nd1\t1\t2\nd2\t1\t1\n"}, {"d1": 2, "d2": 1}),
        ({"qrels_txt": "topic iteration docno rel\n1 0 007 2\n1 0 d1 1\n"}, {"007": 2, "d1": 1}),
    ],
)
def test_judgements_are_read_by_column_and_none_is_lost(
    tmp_path: Path, files: dict[str, str | bytes], gains: dict[str, int]
) -> None:
    assert first_of(small(tmp_path / "x", **files)).gains == gains


def test_texts_keep_a_carriage_return_and_null_is_empty(tmp_path: Path) -> None:
    path = small(tmp_path / "x", corpus_tsv="d1\towls\rd9\tno document\nd2\towls\nd3\towls\nd3\towls\n")
    assert {c.docid: c.text for c in first_of(path).candidates}["d1"] == "owls d9 no document"
    (path / "corpus.tsv").unlink()
    docs = [{"_id": "d1", "title": None, "text": "owls"}, {"_id": 2, "title": "owls", "text": None}]
    (path / "corpus.jsonl").write_text("".join(f"{json.dumps(doc)}\n" for doc in docs))
    assert {c.docid: c.text for c in first_of(path).candidates} == {"d1": "owls", "2": "owls"}


def test_a_document_that_shares_the_querys_identifier_stays_unless_it_is_the_query(tmp_path: Path) -> None:
    corpus = "1\towls live four years\n2\tmice\n3\towls and mice\n"
    path = small(
        tmp_path / "x", corpus_tsv=corpus, queries_tsv="1\towls\n2\tMice\n", qrels_txt="1 0 1 2\n2 0 3 1\n",
        run_txt="1 Q0 1 1 9 x\n1 Q0 3 2 8 x\n2 Q0 2 1 9 x\n2 Q0 3 2 8 x\n",
    )  # fmt: skip
    assert pools(load("trec", path)["test"]) == {"1": ["1", "3"], "2": ["3"]}


def test_files_that_lie_beside_are_no_data(tmp_path: Path) -> None:
    path = small(tmp_path / "x", run_txt=BM25_RUN)
    for name in ("._run.txt", "run.txt~", "run.txt.bak", "._qrels.txt", ".DS_Store", "qrels.txt~"):
        (path / name).write_bytes(b"\x00\x05\x16\x07")
    assert [c.docid for c in first_of(path).candidates] == ["d2", "d1"]


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ("id\ttext\nd1\tone\ttwo\n", r"corpus\.tsv:2: .*3 fields, and the header has 2"),
        ("d1 one\n", r"corpus\.tsv:1: .*write JSON Lines, or an identifier, a tab and a text"),
    ],
)
def test_what_a_line_of_a_table_should_be_is_said(corpus: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.tsv").write_text(corpus)
    (tmp_path / "queries.tsv").write_text("q1\tone\n")
    with pytest.raises(DataError, match=said):
        load("trec", tmp_path)


def test_a_json_line_may_begin_with_spaces(tmp_path: Path) -> None:
    folder = small(tmp_path / "x", corpus_tsv="", corpus_jsonl='  {"_id": "d1", "text": "owls live"}\n')
    assert [c.docid for c in first_of(folder).candidates] == ["d1"]
