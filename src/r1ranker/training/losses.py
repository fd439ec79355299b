"""The terms of the PPO loss, each a few lines with its source. All tensors are (B, T).

`mask_B_T` is 1 on generated tokens. Sums are returned, so that micro-batches add up to exactly the
mean over the mini-batch whatever their sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(values_B_T: Tensor, mask_B_T: Tensor) -> Tensor:
    """Sum over the masked tokens."""
    return (values_B_T * mask_B_T).sum()


def policy_loss(
    logprobs_B_T: Tensor, old_logprobs_B_T: Tensor, advantages_B_T: Tensor, mask_B_T: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate (Schulman et al. 2017, eq. 7), summed; and the number of clipped tokens."""
    ratio_B_T = torch.exp(logprobs_B_T - old_logprobs_B_T)
    free = -advantages_B_T * ratio_B_T
    clipped = -advantages_B_T * ratio_B_T.clamp(1 - clip, 1 + clip)
    loss = masked_sum(torch.maximum(free, clipped), mask_B_T)
    return loss, masked_sum((clipped > free).float(), mask_B_T).detach()


def expected_policy_loss(
    logprobs_B_A: Tensor, old_logprobs_B_A: Tensor, advantages_B_A: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate in expectation over all allowed answers instead of one sampled, summed over B.

    Each answer counts with its old probability, so the gradient is that of `policy_loss` without the
    noise of sampling. -inf marks answers that a row does not have. Also returns the clipped share, summed.
    """
    absent = old_logprobs_B_A == -torch.inf
    weights_B_A = old_logprobs_B_A.exp()
    ratio_B_A = torch.exp((logprobs_B_A - old_logprobs_B_A).masked_fill(absent, 0.0))
    free = -advantages_B_A * ratio_B_A
    clipped = -advantages_B_A * ratio_B_A.clamp(1 - clip, 1 + clip)
    return (weights_B_A * torch.maximum(free, clipped)).sum(), (weights_B_A * (clipped > free)).sum().detach()


def log_expected_loss(logprobs_B_A: Tensor, rewards_B_A: Tensor) -> Tensor:
    """-log sum_a pi(a) r(a) of each row, summed: the limit of MaxRL (2602.02710) where all answers are known.

    rewards_B_A: >= 0. A row in which all earn the same teaches nothing and counts 0. With one answer that earns
    anything, it is the cross-entropy of that answer. -inf marks answers that a row does not have.
    """
    absent = logprobs_B_A == -torch.inf
    most = rewards_B_A.masked_fill(absent, -torch.inf).amax(-1)
    least = rewards_B_A.masked_fill(absent, torch.inf).amin(-1)
    teaches = most > least
    logs_B_A = torch.log(rewards_B_A.clamp(min=torch.finfo(rewards_B_A.dtype).tiny))
    earning = (rewards_B_A > 0) & ~absent
    summed_B = torch.logsumexp((logprobs_B_A + logs_B_A)[teaches].masked_fill(~earning[teaches], -torch.inf), -1)
    return -summed_B.sum()


def value_loss(
    values_B_T: Tensor, old_values_B_T: Tensor, returns_B_T: Tensor, mask_B_T: Tensor, clip: float
) -> Tensor:
    """Half the squared error, the larger of it and that of the value clipped to its old one, summed."""
    clipped_B_T = old_values_B_T + (values_B_T - old_values_B_T).clamp(-clip, clip)
    worst = torch.maximum((values_B_T - returns_B_T) ** 2, (clipped_B_T - returns_B_T) ** 2)
    return 0.5 * masked_sum(worst, mask_B_T)


def kl_k3(logprobs_B_T: Tensor, reference_B_T: Tensor, mask_B_T: Tensor) -> Tensor:
    """KL(policy || reference), the low-variance estimator k3 of Schulman (2020), summed: r - 1 - log r."""
    log_ratio_B_T = (reference_B_T - logprobs_B_T).clamp(-20, 20)
    return masked_sum(torch.exp(log_ratio_B_T) - log_ratio_B_T - 1, mask_B_T)
