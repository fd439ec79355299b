"""Scale smol with the toy model: what its settings need is there in every experiment, and what is held out stays out.

The data are embedded problems written as a user's files: three tasks to train on, one and a collection held out.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from r1ranker.cli.reproduce import reproduce
from r1ranker.datasets import SPLIT_NAMES, mini
from r1ranker.errors import ConfigError
from r1ranker.evaluation.results import read_results
from r1ranker.experiments import EXPERIMENTS, ablations, ir
from r1ranker.experiments.scales import SCALES
from r1ranker.experiments.study import Study
from r1ranker.io.config import load_config
from r1ranker.io.problems import write_jsonl

APP = typer.Typer()
APP.command()(reproduce)
TRAINED, UNSEEN = ("rec-movie", "route-performance", "passage-5"), "passage-7"
FEW = [
    *("model=nano", "device=cpu", "dtype=float32", "ppo.token_budget=2400", "ppo.batch=4", "ppo.minibatch=4"),
    *("ppo.validate_problems=0", "ppo.largest_pool=4", "ppo.warmup=0", "ppo.max_new_tokens=8", "warmstart.batch=2"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, in which everything ran that needs no library of its own."""
    folder = tmp_path_factory.mktemp("smol")
    splits = mini.load(limit=2)
    sources: list[dict[str, Any]] = []
    for task in (*TRAINED, UNSEEN):
        for split in SPLIT_NAMES:
            (folder / task).mkdir(exist_ok=True)
            write_jsonl([p for p in splits[split] if p.task == task], folder / task / f"{split}.jsonl")
        sources.append({"source": "jsonl", "path": str(folder / task)})
    ir.write_collection([p for p in splits["test"] if p.task == UNSEEN], folder / "collection")
    sources.append({"source": "trec", "path": str(folder / "collection"), "options": {"relevant_at": 3}})
    for held_out in sources[len(TRAINED) :]:
        held_out["splits"] = ["test"]
    (folder / "data.json").write_text(json.dumps(sources))
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(APP, [str(a) for a in arguments], env={"COLUMNS": "200"})


def done(run: Path, name: str) -> Any:
    """The settings beside the results of an experiment, which is run to the end."""
    settings = [f"data={(run / 'data.json').read_text()}", *FEW]
    overrides = [part for setting in settings for part in ("-s", setting)]
    result = call(name, "--scale", "smol", "--limit", 1, "--out", run / "out", *overrides)
    assert result.exit_code == 0, result.output
    return json.loads((run / "out" / name / "provenance.json").read_text())["settings"]


def table(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "out" / name / "tables.json").read_text())[0]
    return found


def test_every_scale_is_a_config_and_a_line() -> None:
    configs = {path.stem.removeprefix("reproduce-") for path in Path(str(files("r1ranker") / "configs")).glob("re*-*")}
    assert configs == set(SCALES)
    for name, scale in SCALES.items():
        assert scale.limits.keys() <= EXPERIMENTS.keys() and scale.about, name


def test_main_compares_both_designs_in_blocks_with_the_best_selected(run: Path) -> None:
    ranked = done(run, "main")["ranked"]
    assert ranked.keys() == {"base-direct", "base-iterative", "dranker", "iranker"}
    assert {(spec["layout"], spec["ask"]) for spec in ranked.values()} == {("blocks", "best")}
    assert {row.task for row in read_results(run / "out" / "main" / "results.json")} == {*TRAINED, "average"}


def test_what_is_held_out_is_tested_on_and_never_trained_on(run: Path) -> None:
    done(run, "unseen")
    rows = read_results(run / "out" / "unseen" / "results.json")
    assert {row.task for row in rows} == {UNSEEN, "collection", "average"}
    assert {"random", "bm25", "base-iterative", "dranker", "iranker"} <= {row.system for row in rows}
    config = load_config(run / "out" / "config.yaml")
    study = Study("unseen", "smol", config, run / "out" / "unseen", run / "out" / "models", None)
    for split in SPLIT_NAMES:
        assert {problem.task for problem in study.problems(split)} == set(TRAINED)
    trained = Study(
        "unseen", "smol", config.model_copy(update={"data": tuple(study.sources)}), study.out, study.models, 1
    )
    with pytest.raises(ConfigError, match=r"give a source of them splits: \[test\]"):
        EXPERIMENTS["unseen"](trained)


def test_a_list_of_candidates_that_are_judged_apart_is_reranked_whole(run: Path) -> None:
    done(run, "ir")
    found = table(run, "ir")
    assert "each list whole; top 20: 1 of " in found["note"]
    calls = found["columns"].index("top 100: calls")
    assert [row[calls] for row in found["rows"] if row[0].startswith("iranker")] == ["1", "1"]


def test_zero_shot_begins_with_the_pretrained_model(run: Path) -> None:
    done(run, "zero-shot")
    assert {row.task for row in read_results(run / "out" / "zero-shot" / "results.json")} == {*TRAINED, "average"}
    trained = [json.loads(path.read_text()) for path in (run / "out" / "models").glob("iranker-*/done.json")]
    without = [config for config in trained if "without-" in config["data"][0]["path"]]
    assert len(without) == 3 and {config["model"] for config in without} == {"nano"}


def test_what_blocks_cannot_do_is_compared_on_relisted_pools(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {("thinking", "on"), ("layout", "blocks"), ("credit", "sampled"), ("critic", "separate")}
    few = tuple(variant for variant in ablations.VARIANTS if (variant.factor, variant.level) in chosen)
    monkeypatch.setattr(ablations, "VARIANTS", few)
    layouts = {name: spec["layout"] for name, spec in done(run, "ablations")["ranked"].items()}
    relisted = {"thinking-on", "critic-separate", "sft-only"}
    assert layouts == {name: "relist" if name in relisted else "blocks" for name in layouts}
    lines = {tuple(line[:2]): line[2:] for line in table(run, "ablations")["rows"]}
    assert lines["layout", "blocks"] == lines["reference", ""], "which level the reference is"


def test_thoughts_are_asked_for_on_relisted_pools(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(SCALES["smol"], taught_aloud=("warmstart.steps=2", "warmstart.batch=2"), aloud=1)
    monkeypatch.setitem(SCALES, "smol", short)
    ranked = done(run, "thoughts")["ranked"]
    assert {(spec["layout"], spec["ask"], spec["think"]) for spec in ranked.values()} == {("relist", "worst", True)}


def test_every_source_that_is_not_there_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "wikiqa").mkdir(parents=True)
    result = call("all", "--scale", "smol", "--out", tmp_path / "out")
    assert result.exit_code == 1
    told = set(re.findall(r"data\.(\d+): source", result.output))
    sources = load_config(Path("reproduce-smol")).data
    assert told == {str(number) for number, data in enumerate(sources) if data.path != Path("data/wikiqa")}
    assert "https://grouplens.org" in result.output and "data/trec-dl does not exist" in result.output
    assert not (tmp_path / "out" / "config.yaml").exists()
