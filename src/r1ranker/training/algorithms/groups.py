"""What the algorithms share that compare trajectories which began alike: rewards to go, step beside step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate


def to_go(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """What each member earns from each step on, from its rewards by step.

    >>> to_go([[1.0, 0.0, 2.0]])
    [[3.0, 2.0, 2.0]]
    """
    return [list(accumulate(reversed(steps)))[::-1] for steps in rewards]


def by_step(
    values: Sequence[Sequence[float]], compare: Callable[[Sequence[float]], Sequence[float]]
) -> list[list[float]]:
    """Each step's values compared with the same step of the others, where as many candidates were left.

    values: by member and step; a member may be shorter, and is then left out of the later steps.

    >>> by_step([[5.0, 1.0], [3.0]], lambda reached: [value - min(reached) for value in reached])
    [[2.0, 0.0], [0.0]]
    """
    out: list[list[float]] = [[] for _ in values]
    for k in range(max(map(len, values))):
        reached = [i for i, steps in enumerate(values) if k < len(steps)]
        for i, value in zip(reached, compare([values[i][k] for i in reached]), strict=True):
            out[i].append(value)
    return out
