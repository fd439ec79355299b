"""Expected reward: all answers of a step are credited, each with its probability (`ppo.answer: expected`).

    A(k) = r(k) - sum_j pi_old(j) r(j)
    L = -sum_k pi_old(k) min(rho_k A(k), clip(rho_k, 1 - eps, 1 + eps) A(k)),      rho_k = pi(k) / pi_old(k)

The surrogate of PPO (Schulman et al. 2017, arXiv 1707.06347, eq. 7) in expectation over the answers, which are a known
few: expected policy gradients (Ciosek and Whiteson 2018, arXiv 1706.05374). Of one decision it is the gradient of the
expected reward without noise. Of a whole order, each place by its own reward, it is a little off, since what a choice
takes from later places is left out:

    >>> import torch
    >>> from r1ranker.training.algorithms.truth import Pool, first_place, surrogate
    >>> decision = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1), earned=first_place)
    >>> torch.allclose(decision.mean(decision.credited(surrogate, decision.own)), decision.truth)
    True
    >>> order = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1))
    >>> round(order.off(order.mean(order.credited(surrogate, order.own))), 3)
    0.035
"""

from __future__ import annotations

import torch
from torch import Tensor


def expected_advantages(logprobs_A: Tensor, rewards_A: Tensor) -> Tensor:
    """A(k) of every answer, (..., A). logprobs: of the policy that would have sampled; -inf for answers not there."""
    return rewards_A - (logprobs_A.exp() * rewards_A).sum(-1, keepdim=True)


def expected_policy_loss(
    logprobs_B_A: Tensor, old_logprobs_B_A: Tensor, advantages_B_A: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """(L, clipped share), both summed over B decisions. -inf marks answers that a row does not have.

    Its gradient is that of `losses.policy_loss`, on average over what is sampled.
    """
    absent = old_logprobs_B_A == -torch.inf
    weights_B_A = old_logprobs_B_A.exp()
    ratio_B_A = torch.exp((logprobs_B_A - old_logprobs_B_A).masked_fill(absent, 0.0))
    free = -advantages_B_A * ratio_B_A
    clipped = -advantages_B_A * ratio_B_A.clamp(1 - clip, 1 + clip)
    return (weights_B_A * torch.maximum(free, clipped)).sum(), (weights_B_A * (clipped > free)).sum().detach()
