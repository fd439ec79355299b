"""Checkpoints that survive being killed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from r1ranker.backends.models import WAY
from r1ranker.errors import ConfigError
from r1ranker.files import recover, remove, replacing
from r1ranker.io.locks import held
from r1ranker.training.learner import Learner, load_optimizer, optimizer_state
from r1ranker.training.logs import LOG_NAME
from r1ranker.training.memory import plain_state
from r1ranker.training.sharding import gathered, parted

if TYPE_CHECKING:
    from r1ranker.training.config import RunConfig


def save_model(
    directory: Path,
    network: Any,
    tokenizer: Any,
    dtype: torch.dtype = torch.float32,
    *,
    way: Mapping[str, str] | None = None,
    writes: bool = True,
) -> None:
    """An ordinary transformers model directory, replaced as a whole; adapters are added into the weights.

    way: how it is asked (`RunConfig.way`), for `loading.way_of`. All processes of a crew call this, and the leading one
    `writes`.
    """
    state = plain_state(network, dtype)
    if not writes:
        return
    with replacing(directory) as fresh:
        network.save_pretrained(fresh, state_dict=state)
        shape = AutoConfig.from_pretrained(fresh)  # which now names the dtype that is trained in
        shape.dtype = dtype
        shape.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        if way:
            (fresh / WAY).write_text(json.dumps(way) + "\n", encoding="utf-8")


@contextmanager
def begun(out: Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
    """A run's folder to write to, for one process at a time. ConfigError rather than delete a run that is there."""
    with held(out / LOG_NAME):
        recover(out / "model")
        if not resume and (checkpoints(out) or (out / "model").exists()):
            if not overwrite:
                raise ConfigError(
                    f"{out} holds a run already; name another folder (-s out=...), or give --overwrite to delete that "
                    "run; one that was stopped goes on by `train --resume`"
                )
            discard(out)
            remove(out / "model")
        yield


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(out.glob("checkpoint-*.pt"))


def discard(out: Path, keep: int = 0) -> None:
    """Forget all but the newest `keep`; with none left, nothing resumes from an earlier run in the same folder."""
    found = checkpoints(out)
    for old in found[: len(found) - keep]:
        old.unlink()


def save_checkpoint(out: Path, learner: Learner, config: RunConfig) -> None:
    """All that changes in training; `ppo.keep` are kept. Randomness is drawn from (seed, step) and needs no state.

    All processes call this, and the leading one writes.
    """
    optimizer, policy = optimizer_state(learner), gathered(learner.policy.state_dict())
    critic = gathered(learner.critic.state_dict()) if learner.critic else {}
    if not learner.crew.leads:
        return
    state = {
        "policy": policy,
        "critic": critic,
        "optimizer": optimizer,
        "step": learner.step,
        "tokens": learner.tokens,
        "best": learner.best,
        "config": _identity(config),
    }
    with replacing(out / f"checkpoint-{learner.step:08d}.pt") as fresh:
        torch.save(state, fresh)
    discard(out, config.ppo.keep)


def restore(out: Path, learner: Learner, config: RunConfig) -> None:
    """Bring a fresh learner to where the newest checkpoint in `out` stands; only the run's length may have changed."""
    if not (found := checkpoints(out)):
        raise ConfigError(f"nothing to resume: there is no checkpoint in {out}; start without --resume")
    path = found[-1]
    state = torch.load(path, map_location=learner.policy.device, weights_only=True)
    if state["config"] != _identity(config):
        raise ConfigError(f"{path} is of a run with other settings ({out / 'config.yaml'}); start without --resume")
    for module, kept in ((learner.policy, state["policy"]), (learner.critic, state["critic"])):
        if module is not None:
            module.load_state_dict(parted(kept, module.state_dict()))
    load_optimizer(learner, state["optimizer"])
    learner.step, learner.tokens, learner.best = state["step"], state["tokens"], state["best"]


def _identity(config: RunConfig) -> str:
    """The settings that a resumed run must share with the run it goes on from."""
    settings = config.model_dump(mode="json", exclude={"out": True, "ppo": {"steps", "token_budget", "keep"}})
    return json.dumps(settings, sort_keys=True)
