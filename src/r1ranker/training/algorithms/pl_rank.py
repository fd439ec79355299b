"""PL-Rank: all answers now by their own reward, the sampled one by what came behind it (a comparison; not in training).

    dR/ds_d = E[ sum_{i > place(d)} r_i  +  sum_{i <= place(d)} pi_i(d) (r_i(d) - sum_{j >= i} r_j) ]

Oosterhuis 2021 (arXiv 2105.00855), eq. 22, for rewards of places that add up: r_j of what stands in place j, r_i(d) of
what d would earn in place i. Where r_i(d) = theta_i rho_d, the sums over places are running ones, in O(n): PL-Rank-3
(Oosterhuis 2022, arXiv 2204.10872), the same numbers. Unbiased, but what came behind is one sampled number:

    >>> import torch
    >>> from r1ranker.training.algorithms.truth import Pool
    >>> pool = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1))
    >>> found = [pl_rank(*one) for one in zip(pool.logprobs, pool.orders, map(pool.own, pool.orders))]
    >>> torch.allclose(pool.mean(torch.stack(found)), pool.truth)
    True
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pl_rank(logprobs_N_N: Tensor, order: Sequence[int], earned_N_N: Tensor) -> Tensor:
    """Gradient (N,) by the scores, of one sampled order of N candidates, counted from 0.

    logprobs_N_N, earned_N_N: of naming each candidate in each place; -inf and 0 for those named before.
    """
    named = list(order)
    parts_N = earned_N_N[torch.arange(len(named)), named]
    to_go_N = parts_N.flip(0).cumsum(0).flip(0)
    gradient_N = (logprobs_N_N.exp() * (earned_N_N - to_go_N[:, None])).sum(0)
    gradient_N[named] += to_go_N - parts_N
    return gradient_N
