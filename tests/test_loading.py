"""In what a model is loaded: float32 or bfloat16, whichever is faster, and exact where it has to be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import small_problem
from r1ranker.backends import loading
from r1ranker.backends.loading import bfloat16_gain, cast, load, pick_dtype, set_threads
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.backends.way import WAY, way_of
from r1ranker.errors import BackendError, DataError
from r1ranker.io.config import RunConfig
from r1ranker.ranking.spec import RankerSpec
from r1ranker.training.learner import new_learner

CPU = torch.device("cpu")


@pytest.fixture
def large() -> torch.nn.Module:
    """As many parameters as pay, without the memory."""
    return torch.nn.Linear(loading.SMALL_MODEL // 1000, 1000, device="meta")


def test_a_small_model_is_float32_on_a_cpu_and_nothing_is_measured(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, _ = load(str(tiny_dir), "cpu")
    assert network.dtype == torch.float32
    assert "passes" not in capsys.readouterr().err


def test_a_large_one_is_what_is_faster_here_and_one_line_says_so(
    large: torch.nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    loading._faster_here.cache_clear()
    chosen = pick_dtype("auto", CPU, large)
    assert pick_dtype("auto", CPU, large) == chosen
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{str(chosen).removeprefix('torch.')} passes: bfloat16 is ")
    gain = float(line.split(" is ")[1].split("x")[0])
    assert (chosen == torch.bfloat16) == (gain >= loading.WORTH_IT)


def test_threads_that_a_small_model_needs_not_are_there_for_a_larger_one(large: torch.nn.Module) -> None:
    small = torch.nn.Linear(2, 2)
    torch.set_num_threads(2)
    for network, threads in ((small, 1), (small, 1), (large, 2), (small, 1)):
        set_threads(network, torch.device("cpu"))
        assert torch.get_num_threads() == threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_child_of_a_fork_ranks_too() -> None:
    code = (
        "import os, torch; from r1ranker import rank; from r1ranker.ranking.loaded import _models\n"
        "ranked = rank('owls', ['a', 'b', 'c'], 'nano').docids; torch.set_num_threads(4)\n"
        "[torch.ones(900, 900) @ torch.ones(900, 900) for _ in range(3)]\n"
        "held = [one.lock.acquire() for one in _models.values()]\n"
        "child = os.fork()\n"
        "if not child: torch.ones(900, 900) @ torch.ones(900, 900)\n"
        "if not child: os._exit(rank('owls', ['a', 'b', 'c'], 'nano').docids != ranked)\n"
        "assert os.waitpid(child, 0)[1] == 0"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_what_is_asked_for_is_taken_without_measuring(
    large: torch.nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pick_dtype("float32", CPU, large) == torch.float32
    assert pick_dtype("bfloat16", CPU, large) == torch.bfloat16
    assert capsys.readouterr().err == ""


def test_a_gain_is_a_ratio() -> None:
    assert 0.001 < bfloat16_gain() < 100


def test_a_cast_network_keeps_its_positions_and_its_tied_weights(tiny_dir: Path) -> None:
    network, _ = load(str(tiny_dir), "cpu")
    angles = network.model.rotary_emb.inv_freq.clone()
    tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
    cast(network, torch.bfloat16)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert torch.equal(network.model.rotary_emb.inv_freq, angles)
    assert (network.get_output_embeddings().weight is network.get_input_embeddings().weight) == tied


def test_the_reference_in_bfloat16_reads_at_the_same_positions_as_the_policy(config: Callable[..., RunConfig]) -> None:
    learner = new_learner(config(dtype="bfloat16", device="cpu"))
    assert learner.policy.dtype == torch.float32
    assert learner.reference.dtype == torch.bfloat16
    ours, theirs = (dict(network.named_buffers()) for network in (learner.policy, learner.reference))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_ranker_ranks_in_the_dtype_of_its_spec(tiny_dir: Path) -> None:
    ranker = RankerSpec(model=str(tiny_dir), dtype="bfloat16", device="cpu").build()
    assert isinstance(ranker.backend, TransformersBackend)
    assert ranker.backend.network.dtype == torch.bfloat16
    assert len(ranker.rank(small_problem(4)).docids) == 4


@pytest.mark.parametrize("content", ["[]", "{", '{"layout": "append", "layout": "rebuild"}', "\xff"])
def test_a_damaged_note_of_how_a_model_is_asked_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / WAY).write_text(content, encoding="latin-1")
    with pytest.raises((BackendError, DataError), match=WAY):
        way_of(str(tmp_path))


def test_a_hub_that_does_not_answer_is_tried_once_and_quietly() -> None:
    code = "from r1ranker.backends.loading import load; load('org/model')"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "Retrying" not in done.stderr
    assert "cannot load 'org/model'" in done.stderr and "hf auth login" in done.stderr
