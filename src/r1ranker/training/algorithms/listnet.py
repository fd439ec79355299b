"""Labels in place of rewards: the cross-entropy of a target that is proportional to them (`ppo.objective: listnet`).

    L = -sum_k (r(k) / sum_j r(j)) log pi(k)

ListNet's top-one loss (Cao et al. 2007, ICML, eq. 6) with the labels themselves in place of their exponentials, so
that what earns nothing is no target: supervised learning, here to compare with. Its optimum shares the probability out
among all that earn anything; `log_expected` may put all of it on one. Where one answer earns, the two are one loss,
whose gradient is the truth over the expected reward:

    >>> import torch
    >>> from r1ranker.training.algorithms.truth import Pool, first_place
    >>> one = Pool(scores=(0.3, -1.1, 0.8), gains=(0, 0, 1), earned=first_place)
    >>> torch.allclose(one.mean(one.credited(listnet_loss, one.own)), one.truth / one.values[0])
    True

Of a graded pool it is another aim than the expected reward:

    >>> graded = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1), earned=first_place)
    >>> round(graded.off(graded.mean(graded.credited(listnet_loss, graded.own))), 3)
    0.078
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
