"""Rank-GRPO, own place: what each place earns, against the same place of the group (a comparison; not in training).

    A_i^j = (r_i^j - mean_j r_i) / std_j r_i

Zhu et al. 2025 (arXiv 2510.20150): a place is credited with its own reward, not with what stands before or behind it.
That has little noise, but what a choice takes from later places is left out, so of an order its mean is off:

    >>> from r1ranker.training.algorithms.truth import Pool
    >>> pool = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1))
    >>> round(pool.off(pool.mean_in_groups(rank_grpo, size=2)), 3)
    0.164
"""

from __future__ import annotations

from collections.abc import Sequence

from r1ranker.training.algorithms.groups import by_step
from r1ranker.training.algorithms.grpo import on_one_scale


def rank_grpo(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Advantages by member and place, from rewards by member and place, of a group that began alike."""
    return by_step(rewards, on_one_scale)
