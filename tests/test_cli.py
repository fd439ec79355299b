"""The command line from the outside: files in, files out, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from r1ranker.cli import app
from r1ranker.cli.config import config_app
from r1ranker.cli.data import data_app
from r1ranker.datasets import SOURCES
from r1ranker.io.config import load_config
from r1ranker.io.problems import read_jsonl, write_jsonl
from r1ranker.io.runs import read_run
from r1ranker.problem import Problem

MakeProblem = Callable[..., Problem]
MINI = ["-s", "data.0.source=mini", "-s", "data.0.limit=1"]
COMMANDS = ["quickstart", "demo", "warmstart", "train", "rank", "rerank", "evaluate", "compare", "reproduce", "push"]
COMMANDS += ["data list", "data validate", "data convert", "data stats", "config init", "config reference"]
COMMANDS += ["serve", "route", "view", "mcp"]
UNTIL_STOPPED = {"serve", "mcp"}
"""Commands without a result to write."""
PPO = {"steps": 2, "batch": 6, "minibatch": 6, "validate_every": 1, "validate_problems": 1, "largest_pool": 4}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def succeed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


def fail(*arguments: object) -> str:
    """The one message of a command that stops with exit code 1."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return re.sub(r"\s+", " ", result.output)


def parsed(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def own(tmp_path: Path, make_problem: MakeProblem) -> Path:
    """A folder with problems of one's own."""
    folder = tmp_path / "own"
    folder.mkdir()
    for split, n in (("train", 4), ("dev", 2), ("test", 5)):
        problems = [make_problem(4, positive=1 + i % 4, qid=f"{split}{i}") for i in range(n)]
        write_jsonl(problems, folder / f"{split}.jsonl")
    return folder


@pytest.fixture
def own_config(own: Path, tiny_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    settings = {
        "model": str(tiny_dir),
        "think": False,
        "out": str(tmp_path / "trained"),
        "data": [{"source": "jsonl", "path": str(own)}],
        "ppo": PPO,
    }
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_shows_an_example(command: str) -> None:
    text = succeed(*command.split(), "--help")
    assert f"Example: r1ranker {command}" in re.sub(r"[`\s]+", " ", text)
    assert ("--json" in text) != (command in UNTIL_STOPPED)


def test_no_command_is_missing_from_these_tests() -> None:
    commands = [("", command) for command in app.registered_commands]
    commands += [("data ", command) for command in data_app.registered_commands]
    commands += [("config ", command) for command in config_app.registered_commands]
    assert {f"{group}{c.name or c.callback.__name__}" for group, c in commands if c.callback} == set(COMMANDS)


def test_without_a_command_the_help_is_shown() -> None:
    assert "Usage" in run().output


def test_the_version_is_that_of_the_distribution() -> None:
    assert succeed("--version").strip() == version("r1-ranker")


def test_a_settings_key_or_option_that_does_not_exist_is_a_usage_error() -> None:
    assert run("train", "--no-such-option").exit_code == 2
    assert run("no-such-command").exit_code == 2
    assert run("rank", "x.jsonl", "--top-k", 0).exit_code == 2


def test_data_list_names_every_source(tmp_path: Path) -> None:
    text = succeed("data", "list", "--json", tmp_path / "list.json")
    assert all(name in text for name in SOURCES)
    assert parsed(tmp_path / "list.json").keys() == SOURCES.keys()


def test_data_convert_stats_and_validate_agree(tmp_path: Path) -> None:
    counts = tmp_path / "counts.json"
    succeed("data", "convert", tmp_path / "mini", *MINI, "--json", counts)
    assert parsed(counts) == {"train": 9, "dev": 9, "test": 9}
    assert len(read_jsonl(tmp_path / "mini" / "test.jsonl")) == 9

    succeed("data", "validate", tmp_path / "mini", "--json", tmp_path / "faults.json")
    assert parsed(tmp_path / "faults.json")["faults"] == []

    settings = ["-s", "data.0.source=jsonl", "-s", f"data.0.path={tmp_path / 'mini'}"]
    table = succeed("data", "stats", *settings, "--json", tmp_path / "stats.json")
    rows = parsed(tmp_path / "stats.json")
    assert len(rows) == 27
    assert sum(row["problems"] for row in rows) == 27
    assert "passage-5" in table and "rec-movie" in table


def test_data_convert_says_what_serves_as_first_stage_and_writes_no_empty_file(tmp_path: Path) -> None:
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    out.mkdir()
    (out / "train.jsonl").write_text("of another conversion")
    (given / "corpus.tsv").write_text("d1\towls live\nd2\ttractors\n")
    (given / "queries.tsv").write_text("1\towls\n2\tmice\n")
    (given / "qrels.txt").write_text("1 0 d1 1\n2 0 d1 1\n")
    convert = ("data", "convert", out, "-s", "data.0.source=trec", "-s", f"data.0.path={given}")
    assert "train.jsonl exists" in fail(*convert) and (out / "train.jsonl").read_text() == "of another conversion"
    text = succeed(*convert, "--overwrite")
    assert "note: " in text and "the first stage is BM25" in text
    assert "warning: given: the first stage found nothing for 1 queries, which count 0" in text
    assert sorted(file.name for file in out.iterdir()) == ["test.jsonl"]
    (out / "test.jsonl").write_text("")
    assert "test.jsonl: is empty" in fail("data", "validate", out)


def test_data_validate_names_the_line_and_exits_with_1(own: Path, tmp_path: Path) -> None:
    with (own / "test.jsonl").open("a") as lines:
        lines.write('{"qid": "x", "task": "toy"}\n')
    text = fail("data", "validate", own, "--json", tmp_path / "faults.json")
    assert "test.jsonl:6: field 'scenario' is missing" in text
    assert len(parsed(tmp_path / "faults.json")["faults"]) == 2


@pytest.mark.parametrize(
    "options", [[], ["--layout", "append"], ["--top-k", "2"], ["--design", "dranker", "--max-new-tokens", "8"]]
)
def test_rank_writes_a_run_of_every_candidate(options: list[str], own: Path, tiny_dir: Path, tmp_path: Path) -> None:
    out, as_json, trace = (tmp_path / "deep" / f"run.{kind}" for kind in ("trec", "json", "trace"))
    files = ("--out", out, "--json", as_json, "--trace", trace)
    text = succeed("rank", own / "test.jsonl", "--model", tiny_dir, *files, *options)
    assert "queries 5" in text
    rankings = {ranking.qid: ranking for ranking in read_run(out)}
    for problem in read_jsonl(own / "test.jsonl"):
        assert sorted(rankings[problem.qid].docids) == sorted(c.docid for c in problem.candidates)
    written = parsed(as_json)
    assert (written["queries"], written["failed"], written["spec"]["model"]) == (5, 0, str(tiny_dir))
    traced = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [tuple(r["docids"]) for r in traced] == [r.docids for r in rankings.values()]
    assert all(step["answer"]["kind"] for r in traced for step in r["steps"])


def test_evaluate_accepts_the_run_that_rank_wrote_and_compare_reads_its_folder(
    own: Path, own_config: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    succeed("rank", own / "test.jsonl", "--model", tiny_dir, "--out", tmp_path / "run.trec")
    out = tmp_path / "eval"
    text = succeed(
        *("evaluate", own_config, "--run", f"file={tmp_path / 'run.trec'}", "--system", f"model=iranker:{tiny_dir}"),
        *("--baselines", "random,bm25", "--against", "random", "--out", out, "--json", tmp_path / "rows.json"),
    )
    assert "file" in text and "bm25" in text
    values = {(r["system"], r["measure"]): r["value"] for r in parsed(tmp_path / "rows.json") if r["task"] == "toy"}
    assert {system for system, _ in values} >= {"file", "model", "random", "bm25"}
    assert values["file", "MRR"] == values["model", "MRR"]
    assert {p.name for p in out.iterdir()} >= {"results.json", "results.csv", "per_query.json", "report.html", "runs"}
    assert "<html" in (out / "report.html").read_text()
    assert [r.docids for r in read_run(out / "runs" / "file.trec")] == [
        r.docids for r in read_run(tmp_path / "run.trec")
    ]

    table = succeed("compare", out, "--against", "bm25", "--json", tmp_path / "tests.json")
    tests = parsed(tmp_path / "tests.json")
    assert {test["system"] for test in tests} == {"file", "model", "random"}
    assert {test["baseline"] for test in tests} == {"bm25"}
    assert all(0 <= test["p_value"] <= test["p_holm"] <= 1 for test in tests if "p_value" in test)
    assert "model" in table


def test_train_goes_on_from_its_checkpoint_and_its_model_ranks(own: Path, own_config: Path, tmp_path: Path) -> None:
    text = succeed("train", own_config, "--json", tmp_path / "train.json")
    assert "step 2" in text and "dev MRR" in text
    result = parsed(tmp_path / "train.json")
    assert result["last"]["step"] == 2
    assert "holds a run already" in fail("train", own_config) and Path(result["model"]).is_dir()
    succeed("train", own_config, "-s", "ppo.steps=3", "--resume", "--json", tmp_path / "train.json")
    assert parsed(tmp_path / "train.json")["last"]["step"] == 3
    assert load_config(tmp_path / "trained" / "config.yaml").ppo.steps == 3
    succeed("rank", own / "dev.jsonl", "--model", result["model"], "--out", tmp_path / "run.trec")


def test_train_takes_everything_from_the_command_line(tiny_dir: Path, tmp_path: Path) -> None:
    ppo = [part for key, value in PPO.items() for part in ("-s", f"ppo.{key}={value}")]
    out = tmp_path / "run"
    succeed("train", *MINI, "-s", f"model={tiny_dir}", "-s", f"out={out}", "-s", "think=false", *ppo)
    saved = load_config(out / "config.yaml")
    assert (saved.model, saved.data[0].limit, saved.ppo.steps) == (str(tiny_dir), 1, 2)


def test_warmstart_makes_a_model_from_nothing(own_config: Path, own: Path, tmp_path: Path) -> None:
    scratch = "{vocab: 330, hidden: 16, layers: 1, heads: 2, context: 512}"
    succeed(
        *("warmstart", own_config, "-s", f"warmstart.scratch={scratch}", "-s", "warmstart.steps=2"),
        *("-s", "warmstart.batch=2", "--json", tmp_path / "made.json"),
    )
    model = parsed(tmp_path / "made.json")["model"]
    assert "give --overwrite" in fail("warmstart", own_config)
    succeed("rank", own / "test.jsonl", "--model", model, "--out", tmp_path / "run.trec")


def test_errors_are_one_message_with_the_remedy(own: Path, own_config: Path, tiny_dir: Path, tmp_path: Path) -> None:
    assert "did you mean 'ppo.steps'?" in fail("train", "-s", "ppo.stepz=3")
    assert "cannot read the config" in fail("train", tmp_path / "gone.yaml")
    assert "nothing to resume" in fail("train", own_config, "--resume")
    assert "no model directory" in fail("rank", own / "test.jsonl", "--model", "./gone", "--out", tmp_path / "x")
    assert "gone.jsonl" in fail("rank", tmp_path / "gone.jsonl", "--model", tiny_dir)
    assert "unknown baseline 'magic'" in fail("evaluate", own_config, "--baselines", "magic", "--out", tmp_path / "e")
    assert "NAME=DESIGN:MODEL" in fail("evaluate", own_config, "--system", "iranker", "--out", tmp_path / "e")
    assert "give NAME=VALUE" in fail("evaluate", own_config, "--run", "file.trec", "--out", tmp_path / "e")
    assert "no 'extra' problems" in fail("evaluate", own_config, "--split", "extra", "--out", tmp_path / "e")
    assert "holds no per_query.json" in fail("compare", tmp_path)


def test_a_run_file_that_does_not_exist_is_named(own_config: Path, tmp_path: Path) -> None:
    text = fail("evaluate", own_config, "--run", f"file={tmp_path / 'gone.trec'}", "--out", tmp_path / "e")
    assert "gone.trec" in text


def test_a_message_with_brackets_is_shown_whole(own: Path) -> None:
    text = fail("rank", own / "test.jsonl", "--model", "./models/[bold]x[/bold]")
    assert "./models/[bold]x[/bold]" in text


def test_the_package_runs_as_a_module(own: Path) -> None:
    paths = os.pathsep.join(
        [str(Path(sys.modules["r1ranker"].__file__ or "").parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "r1ranker", "data", "validate", str(own)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    assert "0 faults" in done.stdout
