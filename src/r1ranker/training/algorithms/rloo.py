"""RLOO: each member of a group against the mean of the others (`ppo.estimator: rloo`).

    A_t^j = G_t^j - 1/(m-1) sum_{i != j} G_t^i,      G_t^j = sum_{s >= t} r_s^j

Ahmadian et al. 2024 (arXiv 2402.14740), section 3.3, with rewards of each step. What the others earned does not depend
on what this one did, so the estimator is unbiased. Over all pairs of orders its mean is the truth:

    >>> import torch
    >>> from r1ranker.training.algorithms.truth import Pool
    >>> pool = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1))
    >>> rloo([[0.5, 0.25], [0.125, 0.125]])
    [[0.5, 0.125], [-0.5, -0.125]]
    >>> torch.allclose(pool.mean_in_groups(rloo, size=2), pool.truth)
    True

In training the advantages are whitened over the batch behind it, which makes it the REINFORCE++ baseline of Hu et al.
2025 (arXiv 2501.03262).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from r1ranker.training.algorithms.groups import by_step, to_go

WHITENED = True


def rloo(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Advantages by member and step, from rewards by member and step, of a group that began alike."""

    def compare(reached: Sequence[float]) -> list[float]:
        mean, n = fmean(reached), len(reached)
        return [(value - mean) * n / (n - 1) if n > 1 else 0.0 for value in reached]

    return by_step(to_go(rewards), compare)
