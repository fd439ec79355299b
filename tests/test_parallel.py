"""Several processes: two real ones do what one does, in PPO and in the supervised start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.training.checkpoint import CHECKPOINT
from r1ranker.training.logs import read_log
from r1ranker.training.parallel import Crew, join_crew

PPO = {
    "batch": 24,
    "minibatch": 8,
    "steps": 2,
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "validate_every": 2,
    "validate_problems": 2,
    "checkpoint_every": 1,
    "episode_share": 0.5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "append, all answers credited": {"layout": "append", "ppo": {"answer": "expected", "critic": "separate"}},
    "rloo": {"ppo": {"estimator": "rloo", "group": 2}},
}


def run(command: str, config: Path, *more: str, processes: int = 1, port: int = 29531) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port), "-m"]
    before = launcher if processes > 1 else ["-m"]
    done = subprocess.run(
        [sys.executable, *before, "r1ranker", command, str(config), *more], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def written(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    """A config file whose run goes to `folder/name`."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings | {"out": str(folder / name)}))
    return path


def assert_alike(one: Path, other: Path) -> None:
    """The same log, and the same weights up to rounding."""
    rows = [[{k: v for k, v in row.items() if k != "tokens_per_s"} for row in read_log(out)] for out in (one, other)]
    assert len(rows[0]) == len(rows[1]) > 1
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=2e-4)
    networks = [TransformersBackend.load(str(out / "model")).network.state_dict() for out in (one, other)]
    for name, tensor in networks[0].items():
        torch.testing.assert_close(tensor, networks[1][name], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_train_as_one_does(name: str, tiny_dir: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_dir), "think": False, "device": "cpu", "data": [{"source": "mini", "limit": 2}]}
    settings |= VARIANTS[name] | {"ppo": PPO | VARIANTS[name]["ppo"]}
    settings["ppo"]["max_prompt_tokens"] = 4000
    for size in (1, 2):
        run("train", written(tmp_path, f"of{size}", settings), processes=size)
    assert_alike(tmp_path / "of1", tmp_path / "of2")


def test_two_processes_start_a_new_model_as_one_does(tmp_path: Path) -> None:
    scratch = {"vocab": 600, "hidden": 32, "layers": 2, "heads": 2, "context": 2048, "identifiers": 20}
    warm = {"scratch": scratch, "steps": 4, "batch": 6, "lr": 1e-3, "log_every": 1, "pointwise": 1.0, "pointing": 1.0}
    settings = {"device": "cpu", "data": [{"source": "mini", "limit": 4}], "warmstart": warm}
    for size in (1, 2):
        run("warmstart", written(tmp_path, f"of{size}", settings), processes=size, port=29532)
    assert_alike(tmp_path / "of1", tmp_path / "of2")


def test_two_processes_that_were_stopped_go_on_and_end_where_they_would_have(tiny_dir: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_dir), "think": False, "device": "cpu", "data": [{"source": "mini", "limit": 2}]}
    settings |= {"ppo": PPO | {"critic": "head", "max_prompt_tokens": 4000}}
    run("train", written(tmp_path, "whole", settings), processes=2, port=29533)
    config = written(tmp_path, "halves", settings)
    run("train", config, "-s", "ppo.steps=1", processes=2, port=29533)
    assert torch.load(tmp_path / "halves" / CHECKPOINT, weights_only=True)["step"] == 1
    run("train", config, "--resume", processes=2, port=29533)
    ends = [torch.load(tmp_path / name / CHECKPOINT, weights_only=True)["policy"] for name in ("whole", "halves")]
    for key, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][key], atol=1e-6, rtol=0)


def test_a_crew_of_one_shares_with_nobody() -> None:
    crew = join_crew()
    assert (crew.rank, crew.size, crew.leads) == (0, 1, True)
    assert crew.share([1, 2, 3]) == [1, 2, 3]
    assert crew.total(1.0, 2.5) == [1.0, 2.5]
    assert crew.gather("x") == ["x"]
    assert json.dumps(crew.lanes) == "8"


def test_the_shares_of_a_crew_are_the_whole() -> None:
    items = list(range(11))
    shares = [Crew(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert Crew(0, 12).lanes == 12
