"""Credit: rewards and values along a trajectory become advantages and returns.

A trajectory is every generated token of one episode, its steps one behind the other; a step's reward
stands on that step's last token. Next in the data flow: `losses`, by way of `experience`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, pstdev
from typing import Literal

import torch
from torch import Tensor


def gae(rewards_T: Tensor, values_T: Tensor, gamma: float = 1.0, lam: float = 1.0) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) of one trajectory.

    rewards_T, values_T: (T,). The episode ends after the last token, where the value is 0.
    Returns (advantages_T, returns_T), returns = advantages + values.
    """
    advantages_T = torch.zeros_like(rewards_T)
    running = 0.0
    next_value = 0.0
    for t in range(len(rewards_T) - 1, -1, -1):
        delta = float(rewards_T[t]) + gamma * next_value - float(values_T[t])
        running = delta + gamma * lam * running
        advantages_T[t] = running
        next_value = float(values_T[t])
    return advantages_T, advantages_T + values_T


def group_relative(to_go: Sequence[Sequence[float]], estimator: Literal["grpo", "rloo"]) -> list[list[float]]:
    """Advantage by member and step of a group of trajectories that began alike: no critic is needed.

    to_go: rewards from each step on, (members, steps); a member may be shorter. A step is compared with the same
    step of the others, where as many candidates were left. `grpo`: less the group's mean, over its deviation
    (Shao et al. 2024, eq. 3). `rloo`: less the mean of the others (Ahmadian et al. 2024, eq. 8).
    """
    out: list[list[float]] = [[] for _ in to_go]
    for k in range(max(map(len, to_go))):
        reached = {i: steps[k] for i, steps in enumerate(to_go) if k < len(steps)}
        mean, n = fmean(reached.values()), len(reached)
        for i, value in reached.items():
            if estimator == "grpo":
                out[i].append((value - mean) / (pstdev(reached.values()) + 1e-6))
            else:
                out[i].append((value - mean) * n / (n - 1) if n > 1 else 0.0)
    return out


def whiten(values: Tensor, total: Callable[..., list[float]] = lambda *numbers: list(numbers)) -> Tensor:
    """Shift to mean 0 and scale to deviation 1; a constant becomes 0.

    total: adds numbers up over all that `values` is a share of (several processes).
    """
    n, summed = total(float(values.numel()), float(values.double().sum()))
    if n < 2:
        return torch.zeros_like(values)
    centred = values - summed / n
    (squares,) = total(float((centred.double() ** 2).sum()))
    return torch.as_tensor(centred / ((squares / n) ** 0.5 + 1e-8))


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that knows only the mean."""
    spread = float(returns.var(unbiased=False))
    return 1.0 - float((returns - values).var(unbiased=False)) / spread if spread > 1e-12 else 0.0
