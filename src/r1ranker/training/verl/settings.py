"""A run's config in verl's words. In: a `RunConfig` and its problems. Out: what its hydra file holds.

Only values that the run decides are set; all others are verl's own and can be overridden like these. Needs no verl;
next in the data flow: `launch`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from r1ranker.backends.models import resolve
from r1ranker.errors import ConfigError
from r1ranker.io.config import RunConfig
from r1ranker.problem import Problem
from r1ranker.ranking.plans import ranking_tokens
from r1ranker.rewards import is_own
from r1ranker.training.verl.episode import episode_chance, removal_tokens

RESUMED = ["model", "optimizer", "extra"]
"""What verl's checkpoints hold to go on from; beside it they hold the model as transformers loads it."""
BETWEEN = 8
"""Tokens that may stand between two answers of an episode, where nothing is chosen."""


def refuse(config: RunConfig) -> None:
    """Raises ConfigError for what would mean something else in verl, or nothing."""
    ppo = config.ppo
    known = ("gae", "grpo") if config.design == "iranker" else ("gae", "grpo", "rloo")
    cannot = {
        "ppo.answer=expected": ppo.answer == "expected",
        "ppo.critic=head": ppo.critic == "head" and ppo.estimator == "gae",
        "ppo.token_budget": ppo.token_budget is not None,
        "ppo.curriculum": ppo.curriculum > 0,
        "ppo.centre": ppo.centre,
        "ppo.lora": ppo.lora is not None,
        "layout=blocks": config.layout == "blocks",
        "ask=best": config.design == "iranker" and config.ask == "best",
        f"ppo.estimator={ppo.estimator} for design={config.design}": ppo.estimator not in known,
    }
    if found := [name for name, there in cannot.items() if there]:
        raise ConfigError(
            f"verl has no {', '.join(found)}: take it out, or train by our own engine, which has it "
            "(ppo.answer=sampled, ppo.critic=separate, ppo.token_budget=null, ppo.curriculum=0, ppo.centre=false, "
            "ppo.lora=null, layout=relist, ask=worst and ppo.estimator=gae are what verl can do)"
        )


def hydra_file(config: RunConfig, train: Sequence[Problem], dev: Sequence[Problem], out: Path) -> dict[str, Any]:
    """The file's content. train, dev: problems that have a row. out: the run's folder, absolute."""
    ppo = config.ppo
    rows = rows_per_step(config, train)
    if rows > len(train):
        raise ConfigError(
            f"a step takes {rows} training problems and there are {len(train)}; lower ppo.batch={ppo.batch}"
        )
    response = response_tokens(config, [*train, *dev])
    sequence = ppo.max_prompt_tokens + response
    return {
        "defaults": ["ppo_trainer", "_self_"],
        "hydra": {"searchpath": ["pkg://verl.trainer.config"], "run": {"dir": str(out / "hydra")}},
        "r1ranker": config.model_dump(mode="json"),
        "data": {
            "train_files": str(out / "train.parquet"),
            "val_files": str(out / "dev.parquet"),
            "train_batch_size": rows,
            "max_prompt_length": ppo.max_prompt_tokens,
            "max_response_length": response,
            "seed": config.seed,
        },
        "actor_rollout_ref": {
            "model": {"path": _model(config), "external_lib": "r1ranker.training.verl.agent_loop"},
            "actor": _actor(config, rows, sequence),
            "rollout": _rollout(config, sequence),
        },
        "critic": {
            "model": {"path": _model(config)},
            "optim": _optimizer(config, ppo.critic_lr),
            "cliprange_value": ppo.value_clip,
            "ppo_max_token_len_per_gpu": max(ppo.micro_tokens, sequence),
        },
        "algorithm": {"adv_estimator": ppo.estimator, "gamma": ppo.gamma, "lam": ppo.lam},
        "reward": {"custom_reward_function": _reward(config)},
        "trainer": _trainer(config, len(train) // rows, out),
        "ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": _environment(config, out)}}},
    }


def _environment(config: RunConfig, out: Path) -> dict[str, str]:
    """Of verl's workers. The module of a reward of the user's own lies in the directory where the run was started."""
    variables = {"TENSORBOARD_DIR": str(out / "tensorboard")}
    if is_own(config.ppo.reward):
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    return variables


def rows_per_step(config: RunConfig, train: Sequence[Problem]) -> int:
    """Problems a step begins with, each `ppo.group` times, for about `ppo.batch` samples (removals or rankings)."""
    samples = 1.0
    if config.design == "iranker":
        steps = fmean(len(problem.candidates) - 1 for problem in train)
        chance = episode_chance(config.ppo.episode_share, steps)
        samples = chance * steps + (1 - chance)
    return max(1, round(config.ppo.batch / config.ppo.group / samples))


def response_tokens(config: RunConfig, problems: Sequence[Problem]) -> int:
    """The longest response: one completion, or in layout `append` all of an episode."""
    if config.design == "dranker":
        return ranking_tokens(problems, config.think, config.ppo.max_new_tokens)
    steps = max(len(problem.candidates) for problem in problems) - 1 if config.layout == "append" else 1
    return steps * (removal_tokens(config) + BETWEEN)


def _model(config: RunConfig) -> str:
    path = resolve(config.model)
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def _actor(config: RunConfig, rows: int, sequence: int) -> dict[str, Any]:
    """Clip, entropy and KL (k3) as in `losses`. A mini-batch counts sequences, and verl multiplies it by the group."""
    ppo = config.ppo
    return {
        "optim": _optimizer(config, ppo.actor_lr),
        "ppo_mini_batch_size": max(1, min(ppo.minibatch // ppo.group, rows)),
        "ppo_epochs": ppo.epochs,
        "use_dynamic_bsz": True,
        "ppo_max_token_len_per_gpu": max(ppo.micro_tokens, sequence),
        "clip_ratio": ppo.clip,
        "clip_ratio_low": ppo.clip,
        "clip_ratio_high": ppo.clip,
        "entropy_coeff": ppo.entropy,
        "use_kl_loss": ppo.kl > 0,
        "kl_loss_coef": ppo.kl,
        "kl_loss_type": "low_var_kl",
        "checkpoint": {"save_contents": [*RESUMED, "hf_model"], "load_contents": RESUMED},
    }


def _optimizer(config: RunConfig, lr: float) -> dict[str, Any]:
    ppo = config.ppo
    return {
        "lr": lr,
        "lr_warmup_steps": ppo.warmup,
        "lr_scheduler_type": ppo.schedule,
        "weight_decay": 0.0,
        "clip_grad": ppo.max_grad_norm,
    }


def _rollout(config: RunConfig, sequence: int) -> dict[str, Any]:
    """One vLLM server per GPU; a model that does not fit one takes rollout.tensor_model_parallel_size."""
    return {
        "name": "vllm",
        "n": config.ppo.group,
        "temperature": 1.0,
        "seed": config.seed,
        "tensor_model_parallel_size": 1,
        "max_model_len": sequence,
        "agent": {"default_agent_loop": "r1ranker"},
    }


def _reward(config: RunConfig) -> dict[str, Any]:
    return {
        "path": "pkg://r1ranker.training.verl.reward",
        "name": "compute_score",
        "reward_kwargs": {"kind": config.ppo.reward, "think": config.think},
    }


def _trainer(config: RunConfig, steps_per_epoch: int, out: Path) -> dict[str, Any]:
    ppo = config.ppo
    return {
        "total_training_steps": ppo.steps,
        "total_epochs": ppo.steps // steps_per_epoch + 1,
        "save_freq": ppo.checkpoint_every,
        "test_freq": ppo.validate_every,
        "nnodes": 1,
        "n_gpus_per_node": max(1, torch.cuda.device_count()),
        "default_local_dir": str(out / "checkpoints"),
        "project_name": "r1-ranker",
        "experiment_name": out.name,
        "logger": ["console", "tensorboard"],
    }
