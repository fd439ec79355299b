"""Plans for what a model cannot read at once: fewer candidates, or shorter texts. Pure, like `plans`.

In: a planner and what says whether its first prompt can be read. Out: a plan whose prompts can be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from r1ranker.backends.base import Ask
from r1ranker.problem import Problem, Usage, part_of
from r1ranker.prompts import Prompt
from r1ranker.ranking.plans import Plan, Planner, depth


def reached(problem: Problem, inner: Planner, fits: Callable[[Ask, int], bool]) -> Plan:
    """Rank as many of the first candidates as `inner` can read at once; the others keep their order behind them.

    fits: whether a model can read what is asked first of so many.
    """
    ids = problem.identifiers
    low, high = 1, len(ids)
    if high < 2 or _begins(inner(problem), lambda ask: fits(ask, high)):
        return (yield from inner(problem))
    while low + 1 < high:  # high does not fit; of 1 nothing is asked
        middle = (low + high) // 2
        begins = inner(part_of(problem, ids[:middle]))
        low, high = (middle, high) if _begins(begins, lambda ask, n=middle: fits(ask, n)) else (low, middle)  # type: ignore[misc]
    # Where not even two can be read, the model says so itself.
    return (yield from (depth(problem, inner, low) if low > 1 else inner(problem)))


def _begins(plan: Plan, sound: Callable[[Ask], bool]) -> bool:
    """Whether what a plan asks first is sound; one that asks nothing is."""
    try:
        return sound(next(plan))
    except StopIteration:
        return True
    finally:
        plan.close()


def fitted(problem: Problem, inner: Planner, length: Callable[[Prompt], int], most: int) -> Plan:
    """What `inner` asks, with texts cut evenly so that its first prompt is at most `most` long, where that is enough.

    Evenly: all texts longer than one number of characters end there, the largest number that fits.
    """

    def fits(cut: int) -> bool:
        return _begins(inner(_cut(problem, cut)), lambda ask: length(ask.prompt) <= most)

    low, high = 1, max(len(candidate.text) for candidate in problem.candidates)
    if fits(high):
        return (yield from inner(problem))
    while low < high:  # fits(low) or nothing fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    ranking = yield from inner(_cut(problem, low))
    return dataclasses.replace(ranking, usage=ranking.usage + Usage(cut=1))


def _cut(problem: Problem, characters: int) -> Problem:
    """Candidates' texts end at `characters`, or at the last space before, where one is near."""
    candidates = (
        dataclasses.replace(candidate, text=_shortened(candidate.text, characters)) for candidate in problem.candidates
    )
    return dataclasses.replace(problem, candidates=tuple(candidates))


def _shortened(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    space = text.rfind(" ", 0, characters + 1)
    return text[: space if space > characters // 2 else characters]
