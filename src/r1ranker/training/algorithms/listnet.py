"""Labels in place of rewards: the cross-entropy of a target that is proportional to them (`ppo.objective: listnet`).

    L = -sum_k (r(k) / sum_j r(j)) log pi(k)

ListNet's top-one loss (Cao et al. 2007, ICML, eq. 6) with the labels themselves in place of their exponentials, so
that what earns nothing is no target: supervised learning, here to compare with. Its optimum shares the probability out
among all that earn anything; `log_expected` may put all of it on one. Where one answer earns, the two are one loss:

    >>> import torch
    >>> from r1ranker.training.algorithms.log_expected import log_expected_loss
    >>> logprobs = torch.tensor([[0.2, 0.5, 0.3]]).log()
    >>> one = torch.tensor([[0.0, 1.0, 0.0]])
    >>> torch.allclose(listnet_loss(logprobs, one), log_expected_loss(logprobs, one))
    True
    >>> two = torch.tensor([[1.0, 1.0, 0.0]])
    >>> round(float(listnet_loss(logprobs, two)), 3), round(float(log_expected_loss(logprobs, two)), 3)
    (1.151, 0.357)
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1ranker.training.algorithms.log_expected import differs


def listnet_loss(logprobs_B_A: Tensor, rewards_B_A: Tensor) -> Tensor:
    """L of each row, summed over B decisions. -inf marks answers that a row does not have.

    rewards_B_A: >= 0. A row in which all earn the same teaches nothing and counts 0.
    """
    absent = logprobs_B_A == -torch.inf
    teaches = differs(logprobs_B_A, rewards_B_A)
    earned_B_A = rewards_B_A.masked_fill(absent, 0.0)[teaches]
    target_B_A = earned_B_A / earned_B_A.sum(-1, keepdim=True)
    return -(target_B_A * logprobs_B_A.masked_fill(absent, 0.0)[teaches]).sum()
