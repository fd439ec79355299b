"""From files to a run by one command: the same job as `rank`, measured where there are judgements."""

from __future__ import annotations

import gzip
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from r1ranker.cli import app
from r1ranker.cli.rank import rank
from r1ranker.cli.rerank import rerank
from r1ranker.io.problems import read_jsonl
from r1ranker.io.runs import read_run

WORDS = ["owls", "hunt", "at", "night", "and", "barns", "hold", "hay", "while", "bread", "is", "baked", "from", "flour"]
DOCS = {f"d{i}": " ".join(WORDS[(i + k) % len(WORDS)] for k in range(4)) for i in range(9)}
QUERIES = {"q1": "owls at night", "q2": "bread from flour", "q3": "never judged owls"}
GRADES = {"q1": {"d1": 2, "d8": 1}, "q2": {"d8": 1, "d0": 0}}
RUN = {"q1": ["d7", "d1", "d2", "d3", "d4"], "q2": ["d0", "d8", "d6"], "q3": ["d5", "d0"]}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A corpus and queries of each format, a run and judgements."""
    corpus = "".join(json.dumps({"_id": docid, "title": "", "text": text}) + "\n" for docid, text in DOCS.items())
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.encode()))
    (tmp_path / "c.tsv").write_text("".join(f"{docid}\t{text}\n" for docid, text in DOCS.items()))
    (tmp_path / "q.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in QUERIES.items()))
    lines = [f"{qid} Q0 {docid} {i + 1} {9 - i} x\n" for qid, docids in RUN.items() for i, docid in enumerate(docids)]
    (tmp_path / "first.run").write_text("".join(lines))
    rows = [f"{qid} 0 {docid} {grade}\n" for qid, grades in GRADES.items() for docid, grade in grades.items()]
    (tmp_path / "qrels.txt").write_text("".join(rows))
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def of(files: Path, model: Path, *more: object, corpus: str = "corpus.jsonl.gz") -> tuple[object, ...]:
    given = ("--corpus", files / corpus, "--queries", files / "q.tsv")
    return ("rerank", *given, "--model", model, "--out", files / "out.trec", *more)


def succeed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return re.sub(r"\s+", " ", result.output)


def pools(path: Path) -> dict[str, set[str]]:
    return {ranking.qid: set(ranking.docids) for ranking in read_run(path)}


def result_of(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_is_reranked_without_judgements(files: Path, tiny_dir: Path) -> None:
    text = succeed(*of(files, tiny_dir, "--run", files / "first.run", "--json", files / "r.json"))
    assert pools(files / "out.trec") == {qid: set(docids) for qid, docids in RUN.items()}
    assert "nDCG" not in text and "measures" not in result_of(files / "r.json")
    problems = read_jsonl(files / "out.trec.problems.jsonl")
    assert [p.query for p in problems] == list(QUERIES.values())
    assert [c.text for c in problems[0].candidates] == [DOCS[docid] for docid in RUN["q1"]]
    ranked = succeed("rank", files / "out.trec.problems.jsonl", "--model", tiny_dir, "--out", files / "again.trec")
    assert "queries 3" in ranked
    assert (files / "again.trec").read_text() == (files / "out.trec").read_text()


def test_both_formats_give_the_same_run(files: Path, tiny_dir: Path) -> None:
    succeed(*of(files, tiny_dir, "--run", files / "first.run"))
    ours = (files / "out.trec").rename(files / "jsonl.trec").read_text()
    succeed(*of(files, tiny_dir, "--run", files / "first.run", corpus="c.tsv"))
    assert (files / "out.trec").read_text() == ours


def test_judged_queries_are_measured_before_and_after(files: Path, tiny_dir: Path) -> None:
    judged = ("--run", files / "first.run", "--qrels", files / "qrels.txt", "--json", files / "r.json")
    text = succeed(*of(files, tiny_dir, *judged))
    assert set(pools(files / "out.trec")) == {"q1", "q2"}
    assert "1 of 3 queries are not judged, and left out" in text
    found = result_of(files / "r.json")
    assert found["judged"] == 2
    assert found["measures"]["first_stage"]["MRR"] == 0.5
    first = {ranking.qid: ranking.docids for ranking in read_run(files / "out.trec")}
    mrr = sum(
        max((1 / (i + 1) for i, d in enumerate(docids) if GRADES[qid].get(d, 0) > 0), default=0)
        for qid, docids in first.items()
    )
    assert found["measures"]["reranked"]["MRR"] == pytest.approx(mrr / 2)
    assert f"MRR 0.5000 -> {mrr / 2:.4f}" in text
    assert re.search(r"nDCG@10 0\.\d{4} -> 0\.\d{4}", text)


def test_without_a_run_bm25_finds_depth_documents(files: Path, tiny_dir: Path) -> None:
    text = succeed(*of(files, tiny_dir, "--depth", 3))
    assert "the first stage is the first 3 of BM25 over" in text
    found = pools(files / "out.trec")
    assert set(found) == set(QUERIES) and max(map(len, found.values())) == 3
    assert all(set(QUERIES[qid].split()) & set(DOCS[d].split()) for qid, docids in found.items() for d in docids)


def test_what_is_beyond_depth_keeps_its_order_behind(files: Path, tiny_dir: Path) -> None:
    succeed(*of(files, tiny_dir, "--run", files / "first.run", "--depth", 2))
    for ranking in read_run(files / "out.trec"):
        assert set(ranking.docids[:2]) == set(RUN[ranking.qid][:2])
        assert list(ranking.docids[2:]) == RUN[ranking.qid][2:]


def test_long_passages_are_cut_to_the_models_context_and_it_is_said_how_often(files: Path, tiny_dir: Path) -> None:
    (files / "c.tsv").write_text("".join(f"{docid}\t{text * 200}\n" for docid, text in DOCS.items()))
    text = succeed(*of(files, tiny_dir, "--run", files / "first.run", "--json", files / "r.json", corpus="c.tsv"))
    assert "texts were cut in 3 lists to fit the model's context" in text
    assert result_of(files / "r.json")["usage"]["cut"] == 3
    assert result_of(files / "r.json")["spec"]["truncate"] == "context"
    (files / "out.trec").unlink()
    text = succeed(*of(files, tiny_dir, "--run", files / "first.run", "--truncate", 700, corpus="c.tsv"))
    assert "texts were cut in 3 lists to fit 700 tokens" in text


def test_a_job_goes_on_where_it_was_and_is_refused_with_other_files(files: Path, tiny_dir: Path) -> None:
    command = of(files, tiny_dir, "--run", files / "first.run")
    succeed(*command)
    whole = (files / "out.trec").read_text()
    journal = files / "out.trec.journal.jsonl"
    journal.write_text("".join(line + "\n" for line in journal.read_text().splitlines()[:2]))  # the first query alone
    assert "exists; go on with that job by --resume" in run(*command).output
    assert "queries 3 kept 1" in succeed(*command, "--resume")
    assert (files / "out.trec").read_text() == whole
    (files / "q.tsv").write_text((files / "q.tsv").read_text().replace("owls at", "foxes at"))
    done = run(*command, "--resume")
    assert done.exit_code == 1 and "begun with other problems" in re.sub(r"\s+", " ", done.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--corpus", "{}/gone.tsv"), "--corpus: no such file"),
        (("--qrels", "{}/gone.txt"), "--qrels: no such file"),
        (("--run", "{}/qrels.txt"), "qrels.txt, line 1: expected 6 fields"),
        (("--run", "{}/first.run", "--out", "{}/first.run"), "--out and --run are the same file"),
        (("--json", "{}/q.tsv"), "--json and --queries are the same file"),
        (("--window", "20", "--tournament", "20"), "either a window or a tournament"),
    ],
)
def test_refusals_come_before_the_work(files: Path, tiny_dir: Path, arguments: tuple[str, ...], message: str) -> None:
    before = {path.name for path in files.iterdir()}
    done = run(*of(files, tiny_dir, *(text.format(files) for text in arguments)))
    assert done.exit_code == 1
    assert message in re.sub(r"\s+", " ", done.output)
    assert {path.name for path in files.iterdir()} == before


def test_files_that_do_not_belong_together_are_told(files: Path, tiny_dir: Path) -> None:
    (files / "other.tsv").write_text("x1\tother words\n")
    done = run(*of(files, tiny_dir, "--run", files / "first.run", corpus="other.tsv"))
    assert done.exit_code == 1 and "the corpus lacks document" in done.output


def test_every_option_of_rank_is_one_of_rerank() -> None:
    of_rank, ours = inspect.signature(rank).parameters, inspect.signature(rerank).parameters
    assert of_rank.keys() - {"problems"} <= ours.keys()
    assert ours["model"].default is inspect.Parameter.empty  # a toy is no default for the files of a user


def test_a_refused_resume_leaves_the_problems_that_were_ranked(files: Path, tiny_dir: Path) -> None:
    succeed(*of(files, tiny_dir))
    made = files / "out.trec.problems.jsonl"
    before = made.read_bytes()
    (files / "other.tsv").write_text("".join(f"{docid}\tother {text}\n" for docid, text in DOCS.items()))
    refused = run(*of(files, tiny_dir, "--resume", corpus="other.tsv"))
    assert refused.exit_code == 1 and "was begun with other problems" in refused.output
    assert made.read_bytes() == before


def test_queries_that_the_run_does_not_hold_are_told(files: Path, tiny_dir: Path) -> None:
    (files / "q.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in (QUERIES | {"q4": "hay"}).items()))
    assert "1 queries are not in the run, and left out" in succeed(*of(files, tiny_dir, "--run", files / "first.run"))
