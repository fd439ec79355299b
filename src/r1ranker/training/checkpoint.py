"""Checkpoints that survive being killed: written beside, then renamed into place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import ConfigError

if TYPE_CHECKING:
    from r1ranker.training.ppo import Learner

CHECKPOINT = "checkpoint.pt"


def save_model(directory: Path, backend: TransformersBackend) -> None:
    """An ordinary transformers model directory, replaced as a whole."""
    fresh = directory.with_name(directory.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    backend.network.save_pretrained(fresh)
    backend.encoder.tokenizer.save_pretrained(fresh)
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)


def save_checkpoint(out: Path, learner: Learner) -> None:
    """All that changes in training. Randomness is drawn from (seed, step) and needs no state."""
    fresh = out / f"{CHECKPOINT}.new"
    torch.save(
        {
            "policy": learner.policy.state_dict(),
            "critic": learner.critic.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "step": learner.step,
            "tokens": learner.tokens,
            "best": learner.best,
        },
        fresh,
    )
    fresh.rename(out / CHECKPOINT)


def restore(out: Path, learner: Learner) -> None:
    """Bring a fresh learner to where the checkpoint in `out` stands."""
    path = out / CHECKPOINT
    if not path.is_file():
        raise ConfigError(f"nothing to resume: {path} does not exist; start without --resume")
    state = torch.load(path, map_location=learner.policy.device, weights_only=True)
    learner.policy.load_state_dict(state["policy"])
    learner.critic.load_state_dict(state["critic"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.step, learner.tokens, learner.best = state["step"], state["tokens"], state["best"]
