"""The logarithm of the expected reward, all answers credited (`ppo.objective: log`).

    L = -log sum_k pi(k) r(k)

The limit of MaxRL (Tajwar et al. 2026, arXiv 2602.02710; `maxrl`) where all answers are known. With one answer that
earns anything it is the cross-entropy of that answer: a confident mistake, of which the expectation has no gradient,
has a large one here. Of one decision the gradient is the truth over the expected reward; of an order it is another aim:

    >>> import torch
    >>> from r1ranker.training.algorithms.truth import Pool, first_place
    >>> decision = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1), earned=first_place)
    >>> mean = decision.mean(decision.credited(log_expected_loss, decision.own))
    >>> torch.allclose(mean, decision.truth / decision.values[0])
    True
    >>> order = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1))
    >>> round(order.off(order.mean(order.credited(log_expected_loss, order.own))), 3)
    0.112
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_expected_loss(logprobs_B_A: Tensor, rewards_B_A: Tensor) -> Tensor:
    """L of each row, summed over B decisions. -inf marks answers that a row does not have.

    rewards_B_A: >= 0. A row in which all earn the same teaches nothing and counts 0.
    """
    teaches = differs(logprobs_B_A, rewards_B_A)
    logs_B_A = torch.log(rewards_B_A.clamp(min=torch.finfo(rewards_B_A.dtype).tiny))
    earning = (rewards_B_A > 0) & (logprobs_B_A != -torch.inf)
    summed_B = torch.logsumexp((logprobs_B_A + logs_B_A)[teaches].masked_fill(~earning[teaches], -torch.inf), -1)
    return -summed_B.sum()


def differs(logprobs_B_A: Tensor, rewards_B_A: Tensor) -> Tensor:
    """(B,) whether answers of a row earn different rewards, so that the row can teach."""
    absent = logprobs_B_A == -torch.inf
    most = rewards_B_A.masked_fill(absent, -torch.inf).amax(-1)
    return most > rewards_B_A.masked_fill(absent, torch.inf).amin(-1)
