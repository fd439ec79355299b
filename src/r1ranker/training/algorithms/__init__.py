"""One algorithm a file: how rewards become the gradient of a policy. In: rewards. Out: advantages, or a loss.

Each file gives the paper, its equation, and an example that is run as a test: the estimator's mean over all orders of
a small pool, beside the enumerated gradient of the expected reward (`truth`).

| file | what is credited | in training |
| --- | --- | --- |
| `expected` | all answers of a step, by what each earns itself | `ppo.answer: expected` |
| `log_expected` | the same, of the logarithm of the expectation | `ppo.objective: log` |
| `listnet` | labels in place of rewards: no reinforcement learning, to compare with | `ppo.objective: listnet` |
| `moved_up` | all that could stand in a place, by the list in which it moves up to there | `expected` of a DRanker |
| `gae` | the answer that was sampled, against a critic | `ppo.estimator: gae` |
| `grpo` | it, against its group, on the group's scale | `ppo.estimator: grpo` |
| `dr_grpo` | it, against its group, on the rewards' own scale | `ppo.estimator: dr_grpo` |
| `rloo` | it, against the others of its group | `ppo.estimator: rloo` |
| `maxrl` | it, against its group, over the group's mean | compared only |
| `rank_grpo` | it, by what its own place earns, against its group | compared only |
| `pl_rank` | all answers now, and what came behind the sampled one | compared only |

To add an estimator of sampled answers: a file with a function of its own name and `WHITENED`, as `rloo` is, and that
name among those of `ppo.estimator` (`io.config.PPOConfig`). Nothing else has to know it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

Grouped = Callable[[Sequence[Sequence[float]]], list[list[float]]]
"""Advantages by member and step, from rewards by member and step, of trajectories that began alike."""


def in_group(name: str) -> Grouped:
    """The function that compares a group: file and function have the name of the estimator."""
    found: Grouped = getattr(import_module(f"{__name__}.{name}"), name)
    return found


def is_whitened(name: str) -> bool:
    """Whether advantages are brought to mean 0 and deviation 1 over the whole batch behind the estimator."""
    return bool(import_module(f"{__name__}.{name}").WHITENED)
