"""MaxRL: each member of a group against the group's mean, over that mean (a comparison; not in training).

    A^j = (R^j - mean_j R) / mean_j R,      0 where nobody earned anything

Tajwar et al. 2026 (arXiv 2602.02710), algorithm 1. Of a reward that is 1 with chance p, else 0, the expectation has
the gradient grad p. Its logarithm, log p = -sum_k (1-p)^k / k, has grad p sum_k (1-p)^{k-1}. Groups of m give the first
m - 1 terms of it:

    >>> import torch
    >>> from r1ranker.training.algorithms.truth import Pool, first_place
    >>> pool = Pool(scores=(0.3, -1.1, 0.8), gains=(1, 0, 0), earned=first_place)
    >>> p = pool.values[0]
    >>> torch.allclose(pool.mean_in_groups(maxrl, size=2), pool.truth)
    True
    >>> torch.allclose(pool.mean_in_groups(maxrl, size=3), pool.truth * (1 + (1 - p)))
    True

Its limit, where all answers are known, is `log_expected`. Rewards must not be below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean


def maxrl(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Advantages by member and step, from rewards by member and step; the same for all steps of a member."""
    totals = [sum(steps) for steps in rewards]
    mean = fmean(totals)
    return [[(total - mean) / mean if mean else 0.0] * len(steps) for total, steps in zip(totals, rewards, strict=True)]
