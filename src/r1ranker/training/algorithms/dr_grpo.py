"""Dr. GRPO: each member of a group against the group's mean, on the scale of the rewards (`ppo.estimator: dr_grpo`).

    A_t^j = G_t^j - mean_j G_t,      G_t^j = sum_{s >= t} r_s^j

Liu et al. 2025 (arXiv 2503.20783), section 3.2: GRPO without the deviation, which makes much of groups in which little
differs. It is `rloo` times (m - 1)/m, so over all pairs of orders its mean is half the truth. Not whitened either: an
advantage has the size of a reward, against which `ppo.kl` and `ppo.entropy` weigh, and it shrinks as a group agrees:

    >>> import torch
    >>> from r1ranker.training.algorithms.truth import Pool
    >>> pool = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1))
    >>> dr_grpo([[0.5, 0.25], [0.125, 0.125]])
    [[0.25, 0.0625], [-0.25, -0.0625]]
    >>> torch.allclose(pool.mean_in_groups(dr_grpo, size=2), pool.truth / 2)
    True
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from r1ranker.training.algorithms.groups import by_step, to_go

WHITENED = False


def dr_grpo(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Advantages by member and step, from rewards by member and step, of a group that began alike."""
    return by_step(to_go(rewards), lambda reached: [value - fmean(reached) for value in reached])
