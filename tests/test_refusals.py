"""What a command refuses before it works, and what it says when it cannot go on."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from r1ranker.cli import app
from r1ranker.cli.common import App
from r1ranker.errors import DataError
from r1ranker.io.locks import held
from r1ranker.io.problems import write_jsonl
from r1ranker.problem import Candidate, Problem
from r1ranker.ranking.spec import RankerSpec

MakeProblem = Callable[..., Problem]


def run(*arguments: object, home: Path | None = None) -> Result:
    return CliRunner().invoke(
        app, [str(a) for a in arguments], env={"COLUMNS": "200"} | ({"HOME": str(home)} if home else {})
    )


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "error: " in result.output
    return re.sub(r"\s+", " ", result.output)


@pytest.fixture
def given(tmp_path: Path, make_problem: MakeProblem) -> Path:
    (tmp_path / "own").mkdir()
    write_jsonl([make_problem(3, qid=f"q{i}") for i in range(4)], tmp_path / "own" / "test.jsonl")
    return tmp_path / "own" / "test.jsonl"


@pytest.fixture
def data(given: Path) -> tuple[str, ...]:
    return ("-s", "data.0.source=jsonl", "-s", f"data.0.path={given.parent}")


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file can grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_outputs_are_no_inputs_and_differ_from_each_other(given: Path, data: tuple[str, ...], tmp_path: Path) -> None:
    content, out = given.read_bytes(), tmp_path / "run.trec"
    assert "--json and the problems are the same file" in refused("rank", given, "--out", out, "--json", given)
    assert "--out and the problems are the same file" in refused("rank", given, "--out", given)
    assert "--trace and --out are the same file" in refused("rank", given, "--out", out, "--trace", out)
    assert "--json and the problems are the same file" in refused("data", "validate", given.parent, "--json", given)
    for more in ([], ["-s", "data.0.limit=1"], ["-s", "data.0.splits=[train]"]):
        told = refused("data", "convert", given.parent, *data, *more, "--overwrite")
        assert "test.jsonl and data.0.path are the same file" in told
    journal = out.with_name("run.trec.journal.jsonl")
    assert "are the same file" in refused("rank", given, "--out", out, "--json", journal)
    assert "--json and the problems" in refused("data", "validate", given, "--json", given)
    assert "--json and data.0.path" in refused(
        "data", "stats", "-s", "data.0.source=jsonl", "-s", f"data.0.path={given}", "--json", given
    )
    assert "--json and results.json of --out" in refused(
        "evaluate", *data, "--out", tmp_path / "e", "--json", tmp_path / "e" / "results.json"
    )
    assert given.read_bytes() == content
    assert not out.exists() and not journal.exists()


def test_places_that_cannot_be_written_are_found_before_the_work(
    given: Path, data: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file, not a folder" in refused("rank", given, "--out", file / "run.trec")
    assert "is a folder; name a file in it" in refused("rank", given, "--out", tmp_path / "x", "--json", tmp_path)
    assert "is a file, not a folder" in refused("evaluate", *data, "--out", file)
    assert "is a file, not a folder" in refused("data", "convert", file, *data)
    assert "is a file; name a folder" in refused("train", *data, "-s", f"out={file}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "bm25=RUN"], "the system name 'bm25' is taken"),
        (["--run", "x=RUN", "--run", "x=RUN"], "the system name 'x' is taken"),
        (["--run", "a b=RUN"], "no spaces"),
        (["--run", "../x=RUN"], "no spaces, '/' or leading dot"),
        (["--against", "priro"], "no system 'priro' to test against (--against); there are random, prior, bm25"),
        (["--baselines", "random,magic"], "unknown baseline 'magic'; there are"),
        (["--system", "x=iranker:nano,window=1"], "a window of 1 asks nothing"),
        (["--system", "x=iranker:nano,max_calls=0"], "a budget of 0 calls asks nothing"),
    ],
)
def test_evaluate_refuses_systems_before_it_ranks(
    options: list[str], message: str, data: tuple[str, ...], tmp_path: Path
) -> None:
    run_file = tmp_path / "a.run"
    run_file.write_text("".join(f"q{i} Q0 d1 1 2.0 x\n" for i in range(4)))
    chosen = [option.replace("RUN", str(run_file)) for option in options]
    assert message in refused("evaluate", *data, *chosen, "--out", tmp_path / "e")
    assert not (tmp_path / "e" / "results.json").exists()


def test_what_an_earlier_run_wrote_is_replaced_only_when_that_is_said(
    given: Path, data: tuple[str, ...], tmp_path: Path
) -> None:
    for command in (
        ("evaluate", *data, "--baselines", "random,bm25", "--against", "random", "--out", tmp_path / "e"),
        ("data", "convert", tmp_path / "c", *data),
    ):
        assert run(*command).exit_code == 0, run(*command).output
        assert "give --overwrite" in refused(*command)
        assert run(*command, "--overwrite").exit_code == 0


def test_a_quickstart_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    assert "give --overwrite" in refused("quickstart", "--out", tmp_path)


def test_a_folder_is_written_by_one_job_at_a_time(data: tuple[str, ...], tmp_path: Path) -> None:
    with held(tmp_path / "e" / "results.json"):
        assert "another job is writing" in refused("evaluate", *data, "--baselines", "prior", "--out", tmp_path / "e")
    assert list((tmp_path / "e").iterdir()) == []


def test_commands_that_need_a_run_ask_for_one(tmp_path: Path) -> None:
    for command in (["train"], ["warmstart"], ["evaluate"], ["data", "stats"], ["data", "convert", tmp_path / "x"]):
        asked = run(*command)
        assert asked.exit_code == 2
        assert "error: which run? Give its YAML, or the name of one here: r1ranker config init" in asked.output


def test_an_unknown_measure_and_an_unknown_device_list_those_there_are(
    given: Path, data: tuple[str, ...], tmp_path: Path
) -> None:
    evaluated = run("evaluate", *data, "--baselines", "random,bm25", "--against", "random", "--out", tmp_path / "e")
    assert evaluated.exit_code == 0, evaluated.output
    text = refused("compare", tmp_path / "e", "--measure", "P@5", "--against", "random")
    assert "no measure 'P@5'; there are" in text and "nDCG@10" in text
    assert "there is no device 'gpu' here; there are auto, cpu" in refused(
        "rank", given, "--device", "gpu", "--out", tmp_path / "r"
    )


def test_tilde_is_the_home_folder_in_every_command_and_config(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = given.parent
    settings = ("-s", "data.0.source=jsonl", "-s", "data.0.path=~/../own")
    assert run("data", "convert", "~/copy", *settings, "--json", "~/counts.json", home=home).exit_code == 0
    assert run("data", "validate", "~/copy/test.jsonl", home=home).exit_code == 0
    assert {path.name for path in home.iterdir()} >= {"copy", "counts.json"}
    assert not (tmp_path / "~").exists()
    monkeypatch.setenv("HOME", str(home))
    spec = RankerSpec(model="~/m", thoughts="~/t", cache=Path("~/c"))
    assert (spec.model, spec.thoughts, spec.cache) == (f"{home}/m", f"{home}/t", home / "c")


def test_every_command_takes_paths_from_home() -> None:
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    assert all(isinstance(group, App) for group in groups)


def test_a_full_disk_ends_in_words_and_damages_nothing(
    given: Path, data: tuple[str, ...], tiny_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.trec"
    rank = ("rank", given, "--model", tiny_dir, "--out")
    assert run(*rank, tmp_path / "whole.trec").exit_code == 0
    with small_disk(150):
        assert "--resume" in refused(*rank, tmp_path / "none.trec")  # the journal's first line alone is longer
    with small_disk(1000):
        text = refused(*rank, out)
    assert f"{out}: File too large" in text and "--resume" in text
    assert run(*rank, out, "--resume").exit_code == 0
    assert out.read_bytes() == (tmp_path / "whole.trec").read_bytes()

    evaluate = ("evaluate", *data, "--baselines", "random,bm25", "--against", "random", "--out", tmp_path / "e")
    with small_disk(600):
        assert f"{tmp_path / 'e' / 'results.json'}: File too large" in refused(*evaluate)
    left = [path for path in (tmp_path / "e").rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 600 for path in left) and not (tmp_path / "e" / "results.json").exists()
    assert run(*evaluate).exit_code == 0


def test_training_on_a_full_disk_ends_in_words_and_leaves_no_half_model(
    tiny_dir: Path, tmp_path: Path, make_problem: MakeProblem
) -> None:
    write_jsonl([make_problem(3, qid=f"q{i}") for i in range(4)], tmp_path / "train.jsonl")
    small = (
        "ppo.steps=1",
        "ppo.batch=2",
        "ppo.minibatch=2",
        "ppo.critic=head",
        f"out={tmp_path / 'run'}",
        "device=cpu",
    )
    source = ("data.0.source=jsonl", f"data.0.path={tmp_path}", f"model={tiny_dir}")
    with small_disk(20_000):
        text = refused("train", *(part for setting in (*source, *small) for part in ("-s", setting)))
    assert f"{tmp_path / 'run' / 'model'}: " in text and "--resume" in text
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith("model")]


def test_evaluate_names_queries_that_failed_and_why(
    given: Path, data: tuple[str, ...], tiny_dir: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in given.read_text().splitlines()]
    lines[2]["candidates"][0]["text"] = "good " * 4000
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    baselines = ("--baselines", "random", "--against", "random", "--out", tmp_path / "e")
    done = run("evaluate", *data, "--system", f"x=iranker:{tiny_dir}", *baselines)
    assert done.exit_code == 0 and "failed: x: 1 queries, which count 0" in done.output, done.output
    (failed,) = (tmp_path / "e" / "runs" / "x.trec.failed.jsonl").read_text().splitlines()
    assert json.loads(failed)["qid"] == "q2" and "exceeds the context" in json.loads(failed)["error"]


def test_names_in_python_are_text(make_problem: MakeProblem) -> None:
    with pytest.raises(DataError, match=r"7 is a int; a name is text, such as '7'"):
        make_problem(2, candidates=(Candidate(7, "text"), Candidate("d2", "text")), gains={})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a name is text"):
        make_problem(2, gains={1: 1})


def test_names_that_no_run_file_can_hold_are_refused_before_anything_is_ranked(
    given: Path, data: tuple[str, ...], tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in given.read_text().splitlines()]
    lines[2]["candidates"][0]["docid"] = "GPT 4"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "'GPT 4'" in refused(
        "evaluate", *data, "--baselines", "random", "--against", "random", "--out", tmp_path / "e"
    )
    assert not (tmp_path / "e" / "results.json").exists()
