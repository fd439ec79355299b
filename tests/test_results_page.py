"""Published results: packed rows, what is expected of them, and the pages that are rendered from them alone."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from r1ranker.cli import app
from r1ranker.errors import DataError
from r1ranker.evaluation.results import Row, read_results
from r1ranker.evaluation.results import write_results as write_rows
from r1ranker.experiments.published import (
    pack,
    publish,
    read_expected,
    summary,
    write_pages,
)
from r1ranker.experiments.report import Table, parts_of, read, save_tables, write_results
from r1ranker.io.documents import read_json
from r1ranker.io.files import write_whole

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
ROWS = [
    *(Row(task, "iranker", "test", "MRR", 0.5, 9, 0.4, 0.6) for task in ("movies", "games")),
    Row("average", "iranker", "test", "MRR", 0.5, 9, 0.4, 0.6),
    Row("average", "iranker", "test", "prompt_tokens", 100.0, 9, 90.0, 110.0),
    Row("average", "iranker", "test", "generated_tokens", 11.0, 9, 9.0, 12.0),
    Row("average", "iranker", "test", "seconds", 0.0712345, 9, 0.06, 0.08),
]
EXPERIMENTS = sorted(path for path in RESULTS.iterdir() if path.is_dir()) if RESULTS.is_dir() else []
needs_checkout = pytest.mark.skipif(not RESULTS.is_dir(), reason="needs a checkout")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of an evaluation and a training."""
    run = tmp_path / "runs" / "one"
    write_rows(run / "results.json", ROWS, {"provenance": {"versions": {"torch": "2"}}})
    (run / "iranker").mkdir()
    (run / "iranker" / "log.jsonl").write_text(
        '{"step": 0, "dev_mrr": 0.2}\n{"step": 5, "tokens": 70, "dev_mrr": 0.4}\n{"step": 6, "tokens": 80}\n'
    )
    (run / "models").mkdir()
    (run / "models" / "log.jsonl").write_text('{"step": 1}\n')
    return run


@needs_checkout
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda p: p.name)
def test_what_is_expected_of_an_experiment_is_what_its_rows_say(experiment: Path) -> None:
    expected = read_expected(experiment)
    found = {"title": expected["title"], "command": expected["command"], **summary(experiment)}
    assert expected == found, "update it with benchmarks/publish.py, or mend the rows"
    assert len(found) > 2, "there are no rows"


@needs_checkout
def test_the_published_pages_are_what_the_command_writes(tmp_path: Path) -> None:
    write_pages(RESULTS, tmp_path)
    again = "run `r1ranker reproduce report --out results --pages docs/results`"
    pages = ROOT / "docs" / "results"
    assert {page.name for page in tmp_path.iterdir()} == {page.name for page in pages.iterdir()}, again
    for page in tmp_path.iterdir():
        assert page.read_text() == (pages / page.name).read_text(), again


@needs_checkout
def test_what_is_expected_of_the_quickstart_before_training_is_what_a_run_gives(tmp_path: Path) -> None:
    model = "base-direct=dranker:nano,layout=relist,ask=worst"
    told = ["evaluate", "mini", "-s", "data.0.limit=15", "--baselines", "random,prior,bm25", "--system", model]
    done = CliRunner().invoke(app, [*told, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    publish(tmp_path / "run", tmp_path / "results" / "run", title="Run", commands=["r1ranker evaluate mini"])
    found, expected = summary(tmp_path / "results" / "run"), read_expected(RESULTS / "quickstart")
    for measure, scores in found["scores"]["all"].items():
        assert scores.keys() == {"random", "prior", "bm25", "base-direct"}
        for system, (value, *_) in scores.items():
            mean, low, high = expected["scores"]["seed0"][measure][system]
            assert abs(value - mean) <= high - low, (measure, system)  # a quarter of the queries: twice as wide
    assert found["tokens"]["all"]["base-direct"] == pytest.approx(expected["tokens"]["seed0"]["base-direct"], rel=0.1)


def test_a_published_run_is_packed_and_summed_up(finished: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "results" / "one"
    publish(finished, experiment, run="seed0", title="One", commands=["r1ranker quickstart"])
    names = {str(path.relative_to(experiment)) for path in experiment.rglob("*") if path.is_file()}
    packed = {"seed0/results.json.gz", "seed0/iranker/log.jsonl.gz"}
    assert names == {"expected.yaml", "seed0/provenance.json", *packed}
    assert read_results(experiment / "seed0" / "results.json.gz") == ROWS
    assert read_expected(experiment) == {
        "title": "One",
        "command": ["r1ranker quickstart"],
        "scores": {"seed0": {"MRR": {"iranker": [0.5, 0.4, 0.6]}}},
        "tokens": {"seed0": {"iranker": 111}},
        "seconds": {"seed0": {"iranker": 0.07123}},
        "training": {
            "seed0/iranker/log.jsonl": {"steps": 6, "tokens": 80, "dev before": 0.2, "dev best": 0.4, "at step": 5}
        },
    }
    publish(finished, experiment, run="seed1", commands=["r1ranker quickstart --seed 1"])
    expected = read_expected(experiment)
    assert (
        expected["title"] == "One" and len(expected["command"]) == 2 and set(expected["scores"]) == {"seed0", "seed1"}
    )


def test_rows_that_change_are_no_longer_what_is_expected(finished: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "results" / "one"
    publish(finished, experiment, title="One", commands=["r1ranker quickstart"])
    before = summary(experiment)
    changed = [replace(row, value=0.51) if row.measure == "MRR" else row for row in ROWS]
    write_rows(tmp_path / "results.json", changed)
    pack(tmp_path / "results.json", experiment / "results.json.gz")
    assert summary(experiment)["scores"] != before["scores"] and summary(experiment)["tokens"] == before["tokens"]


def test_tasks_without_an_average_are_summed_up_one_by_one(tmp_path: Path) -> None:
    rows = [Row(task, "prior", "test", "MRR", 0.5, 9, 0.4, 0.6) for task in ("movies", "games")]
    write_rows(tmp_path / "run" / "results.json", rows)
    publish(tmp_path / "run", tmp_path / "x", title="X", commands=["r1ranker evaluate"])
    assert set(summary(tmp_path / "x")["scores"]["all"]["MRR"]) == {"movies, prior", "games, prior"}


def test_the_records_of_a_benchmark_stand_on_its_page(tmp_path: Path) -> None:
    file = tmp_path / "threads.json"
    write_whole(file, '{"rows": [{"way": "a", "n": 2, "at": {"end": 0.123456}, "curve": [1, 2]}], "note": [1]}')
    experiment = tmp_path / "results" / "threads"
    publish(file, experiment, title="Threads", commands=["python benchmarks/threads.py", f"# {'remark ' * 30}"])
    assert summary(experiment) == {"figures": {"threads.json": {"rows": {"1 a": {"n": 2, "at: end": 0.1235}}}}}
    page = write_pages(tmp_path / "results", tmp_path / "pages").with_name("threads.md").read_text()
    assert page.startswith("# Threads\n") and "python benchmarks/threads.py" in page and "| a | 2 | 0.1235 |" in page
    remarks = [line for line in page.splitlines() if line.startswith("# remark")]
    assert len(remarks) == 2 and all(len(line) <= 120 for line in remarks)


def test_the_same_rows_are_packed_to_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[1, 2]")
    packs = [tmp_path / "a" / "rows.json.gz", tmp_path / "b" / "other.gz"]
    for target in packs:
        pack(tmp_path / "rows.json", target)
    assert packs[0].read_bytes() == packs[1].read_bytes() and read_json(packs[0]) == [1, 2]
    assert gzip.decompress(packs[0].read_bytes()) == b"[1, 2]"


def test_an_experiment_needs_rows_a_title_and_its_commands(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the commands that made it"):
        publish(finished, tmp_path / "x", title="X")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no results to publish"):
        publish(tmp_path / "empty", tmp_path / "x", title="X", commands=["r1ranker"])
    write_whole(tmp_path / "y" / "expected.yaml", "title: Y\n")
    with pytest.raises(DataError, match="`title` and `command` are needed"):
        read_expected(tmp_path / "y")


def test_each_of_several_runs_has_a_page_and_one_run_has_its_own(finished: Path, tmp_path: Path) -> None:
    runs = finished.parent
    save_tables(runs / "first" / "main", [Table("Cost", ("system", "calls"), [("iranker", "11")])])
    (runs / "none").mkdir()
    index = write_pages(runs, tmp_path / "pages")
    assert [line for line in index.read_text().splitlines() if line.startswith("- ")] == [
        "- [first](first.md)",
        "- [one](one.md)",
    ]
    first, one = ((tmp_path / "pages" / name).read_text() for name in ("first.md", "one.md"))
    assert "## main" in first and "### Cost" in first and "0.500" in one and "iranker" in one
    assert parts_of(runs / "first") and not parts_of(runs)
    with pytest.raises(DataError, match="holds no results yet"):
        write_pages(tmp_path / "pages", tmp_path / "other")


def test_the_notes_of_a_table_are_lines_that_begin_no_list(tmp_path: Path) -> None:
    note = (
        "Differences on the same queries, of which there are so many that the line is long; " * 3 + "* p < 0.05 " * 12
    )
    save_tables(tmp_path / "main", [Table("Cost", ("system", "calls"), [("iranker", "11")], note)])
    write_results(tmp_path, tmp_path / "results.md")
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert max(map(len, lines)) <= 118 and not any(line.startswith("* ") for line in lines)
    assert " ".join(note.split()) in " ".join(lines)


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    save_tables(tmp_path / "main", [Table("Cost", ("system", "calls"), [("iranker", "11")])])
    whole = (tmp_path / "main" / "tables.json").read_bytes()
    (tmp_path / "main" / "tables.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"main/tables\.json: not JSON"):
        write_results(tmp_path, tmp_path / "results.md")


@pytest.mark.parametrize("name", ["tables.json", "tables.json.gz"])
def test_a_file_is_read_packed_or_not(tmp_path: Path, name: str) -> None:
    packing: Callable[[bytes], bytes] = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(packing(b"[3]"))
    assert read(tmp_path / "tables.json") == [3] and read(tmp_path / "none.json") is None
