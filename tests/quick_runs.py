"""Training runs of seconds, of every kind that there is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1ranker.io.config import RunConfig

QUICK = {"batch": 8, "minibatch": 4, "max_new_tokens": 5, "actor_lr": 1e-3, "critic_lr": 1e-3, "validate_every": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "chosen": {"ppo": {"critic": "separate"}},
    "chosen, append": {"layout": "append", "ppo": {"critic": "head"}},
    "all answers credited": {"ppo": {"answer": "expected", "critic": "head"}},
    "episodes, all answers credited": {
        "layout": "append",
        "ppo": {"answer": "expected", "critic": "head", "episode_share": 1.0},
    },
    "thinking": {"think": True, "ppo": {"critic": "head"}},
    "thinking, direct": {"design": "dranker", "think": True, "ppo": {"critic": "head"}},
    "direct": {"design": "dranker", "ppo": {"critic": "separate"}},
    "grpo": {"ppo": {"estimator": "grpo", "group": 4}},
    "direct, grpo": {"design": "dranker", "ppo": {"estimator": "grpo", "group": 4}},
    "direct, groups, head": {"design": "dranker", "ppo": {"group": 2, "critic": "head"}},
    "rloo, episodes": {"layout": "append", "ppo": {"estimator": "rloo", "group": 2, "episode_share": 1.0}},
}


def quick_config(**settings: Any) -> RunConfig:
    """A run of a few steps with what `settings` change; model and out are needed."""
    values = {"think": False, "device": "cpu"}
    return RunConfig.model_validate(values | settings | {"ppo": QUICK | settings.get("ppo", {})})


def assert_same(one: Any, other: Any) -> None:
    """Equal, bit for bit, all the way down."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other
