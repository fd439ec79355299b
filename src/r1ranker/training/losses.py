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
