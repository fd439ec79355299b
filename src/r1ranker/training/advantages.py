"""Credit: rewards and values along a trajectory become advantages and returns.

A trajectory is every generated token of one episode, its steps one behind the other; a step's reward
stands on that step's last token. Next in the data flow: `losses`.
"""

from __future__ import annotations

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


def whiten(values: Tensor) -> Tensor:
    """Shift to mean 0 and scale to deviation 1 (over everything given); a constant becomes 0."""
    if values.numel() < 2:
        return torch.zeros_like(values)
    return (values - values.mean()) / (values.std(unbiased=False) + 1e-8)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that knows only the mean."""
    spread = float(returns.var(unbiased=False))
    return 1.0 - float((returns - values).var(unbiased=False)) / spread if spread > 1e-12 else 0.0
