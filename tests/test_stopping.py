"""Training that goes wrong: it stops where it does, keeps what was good, and goes on only with what it began with."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from r1ranker.backends.loading import load
from r1ranker.errors import ConfigError, NotFiniteError
from r1ranker.io.config import RunConfig
from r1ranker.problem import Problem
from r1ranker.training import checkpoint as checkpoint_module
from r1ranker.training import ppo as ppo_module
from r1ranker.training import warmstart as warmstart_module
from r1ranker.training.checkpoint import checkpoints, restore, save_checkpoint, save_model
from r1ranker.training.learner import Learner, new_learner
from r1ranker.training.logs import KEPT, RunLog, kept_of, read_log
from r1ranker.training.ppo import ppo_step, train
from r1ranker.training.warmstart import warmstart

Make = Callable[..., RunConfig]


def weights(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


def spoils(monkeypatch: pytest.MonkeyPatch, step: int, spoil: Callable[[Learner], None]) -> None:
    def spoilt(learner: Learner, *rest: Any) -> dict[str, float]:
        if learner.step == step:
            spoil(learner)
        return ppo_step(learner, *rest)

    monkeypatch.setattr(ppo_module, "ppo_step", spoilt)


def one_weight(learner: Learner) -> None:
    """As an update at too high a rate leaves it: forward passes still give numbers, gradients do not."""
    with torch.no_grad():
        learner.policy.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan


def critic_weight(learner: Learner) -> None:
    assert learner.critic is not None
    with torch.no_grad():
        next(learner.critic.parameters()).view(-1)[0] = math.inf


@pytest.mark.parametrize("spoil", [one_weight, critic_weight])
def test_training_stops_at_the_first_number_that_is_none_and_resumes_from_before(
    spoil: Callable[[Learner], None], config: Make, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"train": problems, "dev": problems[:2], "test": []}
    run = config(ppo={"steps": 3, "checkpoint_every": 1, "validate_every": 1})
    with monkeypatch.context() as patch:
        spoils(patch, 1, spoil)
        with pytest.raises(
            NotFiniteError, match=r"stopped at step 2: .*Lower ppo\.actor_lr \(now 0\.001\).*00000001\.pt"
        ):
            train(run, splits)
    assert [path.name for path in checkpoints(run.out)] == ["checkpoint-00000001.pt"]
    assert all(torch.isfinite(value).all() for value in weights(checkpoints(run.out)[0])["policy"].values())
    load(str(run.out / "model"))
    lower = run.model_copy(update={"ppo": run.ppo.model_copy(update={"actor_lr": 1e-5})})
    train(lower, splits, resume=True)
    assert [row["step"] for row in read_log(run.out)] == [0, 1, 2, 3]
    assert weights(checkpoints(run.out)[0])["optimizer"]["param_groups"][0]["base_lr"] == 1e-5


def test_nothing_is_written_that_is_no_model(config: Make, problems: list[Problem]) -> None:
    run = config()
    learner = new_learner(run)
    one_weight(learner)
    with pytest.raises(NotFiniteError, match="weights of the policy are not finite"):
        save_checkpoint(run.out, learner, run)
    with pytest.raises(NotFiniteError, match="the trained weights are not finite"):
        save_model(run.out / "model", learner.policy, learner.backend.encoder.tokenizer)
    assert not list(run.out.glob("*"))


def test_a_score_that_is_no_number_is_never_the_best(
    config: Make, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, math.nan, 0.1])
    monkeypatch.setattr(ppo_module, "dev_mrr", lambda *_: {"dev_mrr": next(scores)})
    run = config(ppo={"steps": 2, "validate_every": 1, "checkpoint_every": 5})
    train(run, {"train": problems, "dev": problems[:2], "test": []})
    assert [row[KEPT] for row in read_log(run.out)] == [0, 0, 0]
    kept = kept_of(run.out)
    assert kept and not kept.improved
    assert str(kept) == "step 2, kept step 0: dev MRR 0.200, 0.100 at the end"


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.2, 0.5, 0.3], "step 2, kept step 1: dev MRR 0.500, 0.200 at the start, 0.300 at the end"),
        ([0.2, 0.3, 0.5], "step 2, kept step 2: dev MRR 0.500, 0.200 at the start"),
        ([None, None, None], "step 2, kept step 2, the newest: there are no dev problems"),
    ],
)
def test_a_run_says_what_it_kept(scores: list[float | None], said: str, tmp_path: Path) -> None:
    best, kept = -1.0, 0
    with RunLog(tmp_path) as log:
        for step, score in enumerate(scores):
            if score is None or score > best:
                best, kept = score or 0.0, step
            log.write(step, {KEPT: kept} | ({} if score is None else {"dev_mrr": score}))
    assert str(kept_of(tmp_path)) == said
    assert kept_of(tmp_path / "elsewhere") is None


@pytest.fixture
def begun(config: Make, problems: list[Problem]) -> tuple[RunConfig, Learner]:
    """A run with two checkpoints."""
    run = config(ppo={"keep": 2})
    learner = new_learner(run)
    learner.origin = checkpoint_module.origin_of(run, {"train": problems, "dev": []})
    for step in (1, 2):
        learner.step = step
        save_checkpoint(run.out, learner, run)
    return run, learner


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    begun: tuple[RunConfig, Learner], caplog: pytest.LogCaptureFixture
) -> None:
    run, learner = begun
    old, new = checkpoints(run.out)
    new.write_bytes(new.read_bytes()[: new.stat().st_size // 2])
    restore(run.out, learner, run)
    assert learner.step == 1
    assert "checkpoint-00000002.pt is damaged" in caplog.text
    old.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no checkpoint in .* can be read \(checkpoint-00000001\.pt, checkpoint-0"):
        restore(run.out, learner, run)


def test_a_run_goes_on_only_with_what_it_began_with(
    begun: tuple[RunConfig, Learner], problems: list[Problem], tmp_path: Path
) -> None:
    run, learner = begun
    other = [dataclasses.replace(problems[0], query="mice"), *problems[1:]]
    learner.origin = checkpoint_module.origin_of(run, {"train": other, "dev": []})
    with pytest.raises(ConfigError, match="on something else: train problems changed since it began"):
        restore(run.out, learner, run)
    learner.origin = checkpoint_module.origin_of(run, {"train": problems, "dev": problems[:1]})
    with pytest.raises(ConfigError, match="on something else: dev problems changed"):
        restore(run.out, learner, run)
    changed = run.model_copy(update={"seed": 7, "ppo": run.ppo.model_copy(update={"clip": 0.3})})
    with pytest.raises(ConfigError, match=r"other settings \(ppo\.clip, seed; see"):
        restore(run.out, learner, changed)
    assert weights(checkpoints(run.out)[0])["origin"].keys() >= {f"weights of {run.model}", f"tokenizer of {run.model}"}


def test_answers_that_stay_broken_are_said(
    config: Make, problems: list[Problem], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def step(learner: Learner, *_: Any) -> dict[str, float]:
        learner.tokens += 1
        return {"broken": 0.5 if learner.step == 5 else 0.9}

    monkeypatch.setattr(ppo_module, "ppo_step", step)
    run = config(ppo={"steps": 16, "validate_problems": 0, "validate_every": 99, "checkpoint_every": 99})
    with caplog.at_level(logging.WARNING):
        train(run, {"train": problems, "dev": [], "test": []})
    said = [record.getMessage() for record in caplog.records if "broken" in record.getMessage()]
    assert len(said) == 1
    assert "step 16: 90% of the answers are broken" in said[0]


def test_credit_of_all_answers_is_refused_where_answers_follow_thoughts(config: Make, problems: list[Problem]) -> None:
    with pytest.raises(ConfigError, match=r"set ppo\.answer=sampled, or think=false"):
        train(config(think=True, ppo={"answer": "expected"}), {"train": problems, "dev": [], "test": []})


def test_a_warm_start_stops_at_the_first_number_that_is_none(
    config: Make, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = warmstart_module._losses

    def spoilt(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        answer, judged = losses(*args)
        return answer * math.nan, judged

    monkeypatch.setattr(warmstart_module, "_losses", spoilt)
    run = config(warmstart={"steps": 3, "batch": 2, "lr": 1e-3})
    with pytest.raises(
        NotFiniteError, match=r"stopped at step 0: .*nothing was saved yet\. Lower warmstart\.lr \(now 0\.001\)"
    ):
        warmstart(run, problems)
    assert not (run.out / "model").exists()
