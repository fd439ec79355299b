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
from typer.testing import CliRunner

from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.cli import app
from r1ranker.training.checkpoint import checkpoints
from r1ranker.training.logs import read_log
from r1ranker.training.parallel import Crew, join_crew

PPO = {
    "batch": 24,
    "minibatch": 8,
    "steps": 3,
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "validate_every": 3,
    "validate_problems": 2,
    "checkpoint_every": 1,
    "episode_share": 0.5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "relist": {"ppo": {"critic": "separate"}},
    "all-credited": {"layout": "append", "ppo": {"answer": "expected", "critic": "head"}},
    "rloo": {"ppo": {"estimator": "rloo", "group": 2}},
    "sharded": {"ppo": {"critic": "separate", "shard": True, "recompute": True}},
}
STOPPED = ("all-credited", "sharded")
WARM = {
    "device": "cpu",
    "data": [{"source": "mini", "limit": 4}],
    "warmstart": {
        "scratch": {"vocab": 600, "hidden": 32, "layers": 2, "heads": 2, "context": 2048, "identifiers": 20},
        **{"steps": 4, "batch": 6, "lr": 1e-3, "log_every": 1, "pointwise": 1.0, "pointing": 1.0},
    },
}
LEFT = """
import atexit, sys
from torch import distributed

say = sys.stdout.write  # whole lines at once, for both processes write to one pipe
atexit.register(lambda: say(f"left {not distributed.is_initialized()}\\n"))
"""
"""What is said at the end, after all that is registered later: whether a process has left its group. One that ends in
it may abort."""
SEVERAL = """
import json, sys
from r1ranker.cli import app

for command in json.loads(sys.argv[1]):
    assert not app(command, standalone_mode=False), command
"""
"""Commands one after the other in the same processes, which take long to start."""
KEPT = """
import json, sys
from pathlib import Path
from r1ranker.baselines.notes import load_splits
from r1ranker.io.config import load_config
from r1ranker.training.learner import new_learner
from r1ranker.training.ppo import ppo_step

config = load_config(Path(sys.argv[2]))
problems = load_splits(config.data)["train"]

def here(tensor):
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel()


for shard in (False, True):
    config = config.model_copy(update={"ppo": config.ppo.model_copy(update={"shard": shard})})
    learner = new_learner(config)
    ppo_step(learner, problems, config)
    moments = (learner.optimizer if shard else learner.optimizer.optim).state.values()
    weights = list(learner.policy.parameters())
    row = [sum(here(of["exp_avg"]) for of in moments), sum(map(here, weights)), sum(p.numel() for p in weights)]
    kept = learner.crew.gather(row)
    if learner.crew.leads:
        say(json.dumps(kept) + "\\n")
"""
"""Of how many weights each process keeps moments, how many weights of the policy, and how many these are in all."""


def by_one(*command: str) -> None:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output


def by_two(*program: str, models: int = 0) -> str:
    """The output of two processes, which together say once, not each, what they made: so many models."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, *program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum(line.startswith("model ") for line in done.stdout.splitlines()) == models, done.stdout
    return done.stdout


def written(out: Path, settings: dict[str, Any]) -> Path:
    """A config file whose run goes to `out`."""
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings | {"out": str(out)}))
    return path


def settings_of(name: str, model: Path) -> dict[str, Any]:
    run = {"model": str(model), "think": False, "device": "cpu", "data": [{"source": "mini", "limit": 2}]}
    return run | VARIANTS[name] | {"ppo": PPO | {"max_prompt_tokens": 4000} | VARIANTS[name]["ppo"]}


@pytest.fixture(scope="module")
def of_two(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes made: a run of each variant, one that was stopped, and a supervised start."""
    folder = tmp_path_factory.mktemp("of-two")
    commands = [["train", str(written(folder / name, settings_of(name, tiny_dir)))] for name in VARIANTS]
    for name in STOPPED:
        stopped = written(folder / f"{name}-stopped", settings_of(name, tiny_dir))
        commands.append(["train", str(stopped), "-s", "ppo.steps=1"])
    commands.append(["warmstart", str(written(folder / "warm", WARM))])
    script = folder / "several.py"
    script.write_text(SEVERAL)
    by_two(str(script), json.dumps(commands), models=len(commands))
    return folder


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
def test_two_processes_train_as_one_does(name: str, of_two: Path, tiny_dir: Path, tmp_path: Path) -> None:
    by_one("train", str(written(tmp_path / "of1", settings_of(name, tiny_dir))))
    assert_alike(tmp_path / "of1", of_two / name)


def test_two_processes_start_a_new_model_as_one_does(of_two: Path, tmp_path: Path) -> None:
    by_one("warmstart", str(written(tmp_path / "of1", WARM)))
    assert_alike(tmp_path / "of1", of_two / "warm")


@pytest.fixture(scope="module")
def gone_on(of_two: Path, tiny_dir: Path) -> str:
    """What two new processes said: they went on with the runs that were stopped, then counted what each keeps."""
    stopped = [of_two / f"{name}-stopped" for name in STOPPED]
    assert [torch.load(checkpoints(out)[-1], weights_only=True)["step"] for out in stopped] == [1, 1]
    commands = [["train", str(out.with_suffix(".yaml")), "--resume"] for out in stopped]
    script, config = of_two / "kept.py", written(of_two / "kept", settings_of("all-credited", tiny_dir))
    script.write_text(LEFT + SEVERAL + KEPT)
    return by_two(str(script), json.dumps(commands), str(config), models=len(commands))


@pytest.mark.parametrize("name", STOPPED)
def test_two_processes_that_were_stopped_go_on_and_end_where_they_would_have(
    name: str, of_two: Path, gone_on: str
) -> None:
    stopped, whole = of_two / f"{name}-stopped", of_two / name
    ends = [torch.load(checkpoints(out)[-1], weights_only=True)["policy"] for out in (whole, stopped)]
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


def test_each_process_keeps_a_part_of_the_moments_and_where_sharded_of_the_weights(gone_on: str) -> None:
    copied, sharded = (json.loads(line) for line in gone_on.splitlines() if line.startswith("["))
    for (moments, weights, whole), in_parts in [*((row, False) for row in copied), *((row, True) for row in sharded)]:
        assert 0.3 < moments / whole < 0.7
        assert 0.4 < weights / whole < 0.6 if in_parts else weights == whole
    assert sum(moments for moments, _, _ in copied) >= copied[0][2]  # the critic's too
    assert sum(weights for _, weights, _ in sharded) == sharded[0][2]
    assert gone_on.count("left True") == 2
