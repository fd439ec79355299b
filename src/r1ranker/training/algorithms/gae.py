"""Generalised advantage estimation: the sampled answer against a critic (`ppo.estimator: gae`, the paper's).

    delta_t = r_t + gamma V_{t+1} - V_t,      A_t = delta_t + gamma lambda A_{t+1},      R_t = A_t + V_t

Schulman et al. 2016 (arXiv 1506.02438), eq. 16. With gamma and lambda 1 the advantage is what is still to come less the
value: unbiased, whatever the critic says. A smaller lambda trusts the critic, here one that knows nothing:

    >>> import torch
    >>> from r1ranker.training.algorithms.truth import Pool
    >>> pool = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1))
    >>> values = torch.tensor([0.7, 0.1, 0.4])
    >>> def mean(lam):
    ...     return pool.mean(pool.sampled(lambda rewards: gae(torch.tensor(rewards), values, lam=lam)[0]))
    >>> torch.allclose(mean(lam=1.0), pool.truth)
    True
    >>> round(pool.off(mean(lam=0.0)), 3)
    0.035
"""

from __future__ import annotations

import torch
from torch import Tensor

WHITENED = True


def gae(rewards_T: Tensor, values_T: Tensor, gamma: float = 1.0, lam: float = 1.0) -> tuple[Tensor, Tensor]:
    """(advantages_T, returns_T) of one trajectory, by token; returns = advantages + values.

    rewards_T, values_T: (T,). The episode ends after the last token, where the value is 0.
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
