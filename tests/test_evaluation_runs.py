"""Run files: what is written is read again, in order; what cannot be written or read is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1ranker.errors import DataError
from r1ranker.evaluation.systems import evaluate_systems
from r1ranker.io.runs import is_own, looks_like_run, read_run, write_run
from r1ranker.problem import Candidate, Problem, Ranking

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.split() == [text])
SCORES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, unique=True)


@st.composite
def rankings(draw: st.DrawFn) -> Ranking:
    scores = sorted(draw(SCORES), reverse=True)
    docids = draw(st.lists(WORDS, min_size=len(scores), max_size=len(scores), unique=True))
    return Ranking(draw(WORDS), tuple(docids), tuple(scores))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rankings(), unique_by=lambda ranking: ranking.qid, min_size=1, max_size=3))
def test_round_trip(tmp_path: Path, given: list[Ranking]) -> None:
    write_run(given, tmp_path / "run.trec", "tag")
    assert read_run(tmp_path / "run.trec") == given


def test_lines_have_the_six_trec_fields(tmp_path: Path) -> None:
    write_run([Ranking("q1", ("d2", "d1"), (np.float64(2.0), 0.5))], tmp_path / "run", "iranker")
    assert (tmp_path / "run").read_text() == "q1 Q0 d2 1 2.0 r1ranker-iranker\nq1 Q0 d1 2 0.5 r1ranker-iranker\n"


@pytest.mark.parametrize("scores", [(1.0, 1.0), (1.0, 2.0), (1.0, 1.0 - 1e-12), (float("nan"), 0.0), (1e99, 0.0)])
def test_scores_that_do_not_decrease_are_not_written(tmp_path: Path, scores: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="'q1'"):
        write_run([Ranking("q1", ("a", "b"), scores)], tmp_path / "run", "tag")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("qid", "docid", "tag"), [("q 1", "d", "t"), ("q", "d\u2028x", "t"), ("q", "", "t"), ("q", "d", "a b")]
)
def test_names_with_whitespace_are_not_written(tmp_path: Path, qid: str, docid: str, tag: str) -> None:
    with pytest.raises(DataError, match="whitespace"):
        write_run([Ranking(qid, (docid,), (1.0,))], tmp_path / "run", tag)


def test_what_is_written_is_known_as_ours_and_other_runs_are_not(tmp_path: Path) -> None:
    write_run([Ranking("q1", ("d",), (1.0,))], tmp_path / "ours", "bm25")
    (tmp_path / "theirs").write_text("q1 Q0 d 1 2.5 bm25\n")
    (tmp_path / "no run").write_text("six words that are no run\n")
    assert [is_own(tmp_path / name) for name in ("ours", "theirs", "no run")] == [True, False, False]
    assert [looks_like_run(tmp_path / name) for name in ("ours", "theirs", "no run")] == [True, True, False]


@pytest.mark.parametrize("first", ["\ufeff", "\n", ""])
def test_the_first_line_counts_whatever_stands_before_it_and_the_file_may_be_compressed(
    tmp_path: Path, first: str
) -> None:
    (tmp_path / "run").write_bytes(gzip.compress(f"{first}q Q0 a 1 2.0 t\r\nq\tQ0\tb c\t2\t1\tt\r\n".encode()))
    assert read_run(tmp_path / "run") == [Ranking("q", ("a", "b c"), (2.0, 1.0))]


def test_an_empty_run_and_one_that_is_not_there_are_faults(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(DataError, match="run: is empty"):
        read_run(tmp_path / "run")
    with pytest.raises(DataError, match=r"cannot read .*gone: No such file"):
        read_run(tmp_path / "gone")


def test_a_query_is_written_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than one ranking"):
        write_run([Ranking("q", ("d",), (1.0,))] * 2, tmp_path / "run", "t")


def test_order_is_by_score_and_ties_are_broken_as_trec_eval_does(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("q Q0 a 1 0.5 t\n\nq Q0 c 2 7 t\nq Q0 b 3 0.5 t\nq Q0 z 4 0.5 t\n")
    (ranking,) = read_run(path)
    assert ranking.docids == ("c", "z", "b", "a")
    assert (np.diff(np.float32(ranking.scores)) < 0).all()
    write_run([ranking], tmp_path / "again", "t")
    assert read_run(tmp_path / "again") == [ranking]


def test_ties_below_which_there_is_no_number_are_a_fault(tmp_path: Path) -> None:
    lowest = float(np.finfo(np.float32).min)
    (tmp_path / "run").write_text(f"q Q0 a 1 {lowest!r} t\nq Q0 b 2 {lowest!r} t\n")
    with pytest.raises(DataError, match="query 'q': ties at the lowest"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 0.5", "line 2: expected 6 fields .* found 5"),
        ("q Q0 d 1 high t", "line 2: score 'high'"),
        ("q Q0 d 1 nan t", "line 2: score 'nan'"),
        ("q Q0 d 1 1e99 t", "line 2: score '1e99'"),
        ("q Q0 first 1 0.5 t", "line 2: docid 'first' occurs a second time"),
    ],
)
def test_bad_lines_are_named_by_number(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "run").write_text(f"q Q0 first 1 1 t\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(("qid", "docid"), [("a q", "d"), ("q", "GPT 4"), ("q", "\ud83d")])
def test_names_that_a_run_file_cannot_hold_are_refused_before_anything_is_ranked(
    tmp_path: Path, qid: str, docid: str
) -> None:
    problem = Problem(qid, "t", "passage", (Candidate(docid, "x"), Candidate("other", "y")), query="q")
    with pytest.raises(DataError, match=r"cannot hold; rename it"):
        evaluate_systems(["random"], [problem], out=tmp_path / "ev", baseline="random")
    assert not (tmp_path / "ev").exists()


def test_scores_that_tie_as_trec_eval_reads_them_are_a_tie(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 b 1 20.00000002 t\nq Q0 c 2 20.00000001 t\nq Q0 a 3 20.5 t\n")
    (ranking,) = read_run(tmp_path / "run")
    assert ranking.docids == ("a", "c", "b")
    write_run([ranking], tmp_path / "again", "t")
    assert read_run(tmp_path / "again") == [ranking]
