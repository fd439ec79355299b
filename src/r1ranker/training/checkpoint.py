"""Checkpoints that survive being killed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from r1ranker.backends.loading import check_finite
from r1ranker.backends.models import resolve
from r1ranker.backends.way import save_way
from r1ranker.errors import ConfigError
from r1ranker.io.documents import read_json
from r1ranker.io.files import recover, remove, replacing
from r1ranker.io.fingerprint import differing, fingerprint_model, fingerprint_problems
from r1ranker.io.locks import held
from r1ranker.problem import Splits
from r1ranker.training.learner import Learner, load_optimizer, optimizer_state
from r1ranker.training.logs import KEPT_NAME, LOG_NAME
from r1ranker.training.memory import plain_state
from r1ranker.training.sharding import gathered, parted
from r1ranker.training.start import source_of_reward

if TYPE_CHECKING:
    from r1ranker.io.config import RunConfig

OF_PPO = ("steps", "token_budget", "actor_lr", "critic_lr", "keep", "checkpoint_every", "max_prompt_tokens")
MAY_CHANGE = {"out", *(f"ppo.{name}" for name in OF_PPO)}
"""Settings that a resumed run may have other than before."""

log = logging.getLogger(__name__)


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

    way: how it is asked (`RunConfig.way`), for `way.way_of`. All processes of a crew call this, and the leading one
    `writes`. Raises NotFiniteError rather than write what is no model.
    """
    state = plain_state(network, dtype)
    check_finite(state, "the trained weights")
    if not writes:
        return
    with replacing(directory) as fresh:
        network.save_pretrained(fresh, state_dict=state)
        shape = AutoConfig.from_pretrained(fresh)  # which now names the dtype that is trained in
        shape.dtype = dtype
        shape.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        save_way(fresh, way or {})


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
            for left in ("model", "adapter", KEPT_NAME):
                remove(out / left)
        yield


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(out.glob("checkpoint-*.pt"))


def discard(out: Path, keep: int = 0) -> None:
    """Forget all but the newest `keep`; with none left, nothing resumes from an earlier run in the same folder."""
    found = checkpoints(out)
    for old in found[: max(0, len(found) - keep)]:
        old.unlink()


def save_checkpoint(out: Path, learner: Learner, config: RunConfig) -> None:
    """All that changes in training; `ppo.keep` are kept. Randomness is drawn from (seed, step) and needs no state.

    All processes call this, and the leading one writes. Raises NotFiniteError, and writes nothing, where weights are no
    numbers: nothing could go on from there.
    """
    optimizer, policy = optimizer_state(learner), gathered(learner.policy.state_dict())
    critic = gathered(learner.critic.state_dict()) if learner.critic else {}
    check_finite(policy, "the weights of the policy")
    check_finite(critic, "the weights of the critic")
    if not learner.crew.leads:
        return
    state = {
        "policy": policy,
        "critic": critic,
        "optimizer": optimizer,
        "step": learner.step,
        "tokens": learner.tokens,
        "best": learner.best,
        "kept": learner.kept,
        "config": json.dumps(_settings(config.model_dump(mode="json")), sort_keys=True),
        "origin": learner.origin,
    }
    path = out / f"checkpoint-{learner.step:08d}.pt"
    with replacing(path) as fresh:
        torch.save(state, fresh)
    for other in checkpoints(out):
        if other.name > path.name:  # one that could not be read, or of what is trained anew now
            other.unlink()
    discard(out, config.ppo.keep)


def restore(out: Path, learner: Learner, config: RunConfig) -> None:
    """Bring a fresh learner to where the newest checkpoint in `out` stands. Raises ConfigError, with what differs.

    The data, the model that training began from and the settings have to be the same; but for the run's length and the
    learning rates, which one lowers where a run went wrong. A checkpoint that cannot be read is named, and the one
    before it taken.
    """
    path, state = _newest(out, learner.policy.device)
    if found := differing(_settings(json.loads(state["config"])), _settings(config.model_dump(mode="json"))):
        raise ConfigError(
            f"{path} is of a run with other settings ({', '.join(found)}; see {out / 'config.yaml'}); "
            "give those, or start without --resume"
        )
    if changed := differing(state.get("origin", learner.origin), learner.origin):
        raise ConfigError(
            f"{path} is of a run on something else: {', '.join(changed)} changed since it began. Put back what was "
            "there, or start a run of its own without --resume and with another out"
        )
    for module, kept in ((learner.policy, state["policy"]), (learner.critic, state["critic"])):
        if module is not None:
            module.load_state_dict(parted(kept, module.state_dict()))
    rates = [group["base_lr"] for group in learner.optimizer.param_groups]
    load_optimizer(learner, state["optimizer"])
    for group, rate in zip(learner.optimizer.param_groups, rates, strict=True):
        group["base_lr"] = rate
    learner.step, learner.tokens, learner.best = state["step"], state["tokens"], state["best"]
    learner.kept = state.get("kept", learner.step)
    if (out / KEPT_NAME).is_file() and (newer := read_json(out / KEPT_NAME))["step"] > learner.step:
        learner.best, learner.kept = newer["score"], newer["step"]
        log.warning("%s is of step %d, after %s: it stays until one is better", out / "model", learner.kept, path.name)


def origin_of(config: RunConfig, splits: Splits) -> dict[str, str]:
    """What a run is of, beside its settings: digests of its problems, its model and its reward's file."""
    data = {f"{split} problems": fingerprint_problems({split: splits.get(split, ())}) for split in ("train", "dev")}
    model = fingerprint_model(resolve(config.model))
    return data | source_of_reward(config) | {f"{part} of {config.model}": digest for part, digest in model.items()}


def _newest(out: Path, device: torch.device) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that can be read."""
    found = checkpoints(out)
    if not found:
        anew = "begin anew with --overwrite" if (out / "model").exists() else "start without --resume"
        raise ConfigError(f"nothing to resume: there is no checkpoint in {out} (ppo.checkpoint_every); {anew}")
    for path in reversed(found):
        try:
            return path, torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # a file cut short fails in zipfile, in pickle or in torch
            why = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
            log.warning("the checkpoint %s is damaged (%s) and left out", path, why)
    named = ", ".join(path.name for path in found)
    raise ConfigError(f"no checkpoint in {out} can be read ({named}): delete them and start without --resume")


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that a resumed run must share with the run it goes on from, by their keys."""
    return {key: value for key, value in _flat(config) if key not in MAY_CHANGE}


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
