"""GRPO: each member of a group against the group's mean, over its deviation (`ppo.estimator: grpo`).

    A_t^j = (G_t^j - mean_j G_t) / std_j G_t,      G_t^j = sum_{s >= t} r_s^j

Shao et al. 2024 (arXiv 2402.03300), eq. 3, with the rewards of each step. The deviation brings every group to one
scale: a group in which little differs weighs as much as one in which much does, so the mean of the estimator is not
quite the gradient of the expected reward. Over all pairs of orders, where it is no more than which earns more:

    >>> from r1ranker.training.algorithms.truth import Pool
    >>> pool = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1))
    >>> [[round(a, 2) for a in steps] for steps in grpo([[0.5, 0.25], [0.125, 0.125]])]
    [[1.0, 1.0], [-1.0, -1.0]]
    >>> round(pool.off(pool.mean_in_groups(grpo, size=2)), 3)
    0.06
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from r1ranker.training.algorithms.groups import by_step, to_go

WHITENED = False
"""Each group is on one scale already."""


def grpo(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Advantages by member and step, from rewards by member and step, of a group that began alike."""
    return by_step(to_go(rewards), on_one_scale)


def on_one_scale(reached: Sequence[float]) -> list[float]:
    """Less the mean, over the deviation; all alike become 0."""
    mean, deviation = fmean(reached), pstdev(reached)
    return [(value - mean) / (deviation + 1e-6) for value in reached]
