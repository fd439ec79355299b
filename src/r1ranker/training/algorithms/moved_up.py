"""Moved up: at each place of a list all that are left are credited, by the list in which each moves up to there.

    r_i(k) = R(a_1, ..., a_{i-1}, k, (a_i, ..., a_n) without k)

This project's own (`ppo.answer: expected` of a DRanker). A Plackett-Luce order keeps its law when one candidate is
taken out: the others stand among themselves as if it had never been there (Luce 1959). So what is behind k is a fair
draw of what would have followed it, for every k. Credited as in `expected`, that is the gradient of the expected reward
of a list without bias, whatever the reward:

    >>> import torch
    >>> from r1ranker.training.algorithms.truth import Pool, surrogate
    >>> pool = Pool(scores=(0.3, -1.1, 0.8), gains=(3, 0, 1))
    >>> def credit(order):
    ...     lists = [[moved(order, i, k) for k in range(3)] for i in range(3)]
    ...     return torch.tensor([[sum(pool.parts(order)) for order in place] for place in lists])
    >>> torch.allclose(pool.mean(pool.credited(surrogate, credit)), pool.truth)
    True
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from r1ranker.problem import Problem
from r1ranker.rewards import CUTOFF, dcg, gains_of


def moved(order: Sequence[int], i: int, k: int) -> tuple[int, ...]:
    """The order in which k has moved up to place i, counted from 0. What stands before i stays as it is."""
    if k in order[:i]:
        return tuple(order)
    return (*order[:i], k, *(j for j in order[i:] if j != k))


def moved_up(order: Sequence[int], problem: Problem, kind: str = "paper") -> list[dict[int, float]]:
    """The `ranking` part of a whole list where one candidate moves up: `[i][k]` is that of k, moved up to place i.

    For the n - 1 places at which there is a choice, and each k that stands there or later. Sums of what stays where it
    is and of what moves one place down make it n(n + 1) / 2 additions, where scoring each list takes n times as many.
    Raises ConfigError for a reward that has no gains.
    """
    gains = gains_of(kind)(problem, order)
    best = dcg(sorted(gains.values(), reverse=True)[:CUTOFF])
    listed = [gains[k] for k in order]
    discounts = [1 / math.log2(place + 2) if place < CUTOFF else 0.0 for place in range(len(order))]
    stays = [*accumulate(map(mul, listed, discounts), initial=0.0)]  # of all before a place
    moves = [*accumulate(map(mul, listed, discounts[1:]), initial=0.0)]  # the same, one place further down

    def reward(i: int, p: int) -> float:
        total = stays[i] + listed[p] * discounts[i] + moves[p] - moves[i] + stays[-1] - stays[p + 1]
        return total / best if best else 1.0

    return [{order[p]: reward(i, p) for p in range(i, len(order))} for i in range(len(order) - 1)]
