"""Scores of a finished ranking, for those who want more than its order. Pure.

In: a problem and its ranking. Out: one number for each candidate, best first, in (0, 1] and strictly falling.

Where the model gave probabilities, a score says how a candidate did against an average one of the list: the chance that
it is the better of the two (Bradley-Terry), so 0.5 is average. The probabilities of all steps of one order are
made one of the whole pool as in the model of Plackett and Luce, where each step chooses in proportion to fixed
strengths; so a model has the same scores whichever way it is asked. Where the order has another source too (windows,
shuffles, a fusion), the largest pool a candidate stood in says how it did. Where the model gave none, a score is a
place. All are relative to the other candidates, and no calibrated probabilities of being relevant: 0.5 is average in a
list of 5 and of 50, and says nothing of whether any of them is good.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from r1ranker.problem import Problem, Ranking, Step
from r1ranker.ranking.luce import goes_on

BY_PLACE = 1e-3
"""Weight of the place alone, so that scores fall strictly where the model saw no difference."""

TINY = 1e-12
"""Probabilities nearer to 0 or 1 than this count as this."""


def scores(problem: Problem, ranking: Ranking) -> tuple[float, ...]:
    """A score for each docid of the ranking, in its order."""
    n = len(ranking.docids)
    place_of = {docid: place for place, docid in enumerate(ranking.docids)}
    places = {k: place_of[problem.candidate(k).docid] for k in problem.identifiers} if n else {}
    said = _of_whole(best_of_pool(problem, ranking)) or _said(ranking.steps, places)
    by_place = [(n - place) / n for place in range(n)]
    known = sorted((places[k], value) for k, value in said.items())
    if not known:
        return tuple(by_place)
    values = dict(zip((place for place, _ in known), falling([value for _, value in known]), strict=True))
    last, result = values[known[0][0]], list[float]()
    for place in range(n):
        last = values.get(place, last)  # one of whom nothing is known stands with the one before it
        result.append((last + BY_PLACE * by_place[place]) / (1 + BY_PLACE))
    return tuple(result)


def best_of_pool(problem: Problem, ranking: Ranking) -> dict[int, float]:
    """The model's probability by identifier that it is the best of the pool; empty where the steps do not say."""
    identifiers = {problem.candidate(k).docid: k for k in problem.identifiers}
    order = tuple(identifiers[docid] for docid in ranking.docids)
    strengths = _strengths(ranking.steps, order)
    if not strengths or sorted(strengths) != sorted(order):
        return {}
    highest = max(strengths.values())
    weights = {k: math.exp(strengths[k] - highest) for k in order}
    total = sum(weights.values())
    return {k: weight / total for k, weight in weights.items()}


def _of_whole(chances: Mapping[int, float]) -> dict[int, float]:
    """How each did against an average one."""
    n = len(chances)
    return {k: n * p / (1 + n * p) for k, p in chances.items()}


def _strengths(steps: Sequence[Step], order: tuple[int, ...]) -> dict[int, float]:
    """Logarithms of strengths, where the steps alone made the order; empty where they did not, as after a fusion."""
    if not all(step.probabilities for step in steps):
        return {}
    if len(steps) == 1 and not steps[0].removed and steps[0].answer.ids == order:
        return {k: math.log(max(p, TINY)) for k, p in steps[0].probabilities.items()}
    removed = tuple(k for step in steps for k in step.removed)
    if not removed or not _go_on(steps):
        return {}
    if order[: len(removed)] == removed:
        return _of_steps(steps)
    if order[: -len(removed) - 1 : -1] == removed:  # being the worst is in proportion to the inverse of strength
        return {k: -value for k, value in _of_steps(steps).items()}
    return {}


def _go_on(steps: Sequence[Step]) -> bool:
    """Whether each step is about what the one before left."""
    return all(goes_on(step, after) for step, after in pairwise(steps))


def _of_steps(steps: Sequence[Step]) -> dict[int, float]:
    """Logarithms of how likely each is to be named, from the last step back to the first.

    Who was named with probability p among others had p / (1 - p) of what they have together.
    """
    last = steps[-1]
    named = {k: math.log(max(last.probabilities.get(k, 0.0), TINY)) for k in last.pool if k not in last.removed}
    together = _log_sum(named.values()) if named else None
    for step in reversed(steps):
        for k, odds in reversed(_odds(step)):
            named[k] = 0.0 if together is None else together + odds
            together = 0.0 if together is None else together + math.log1p(math.exp(odds))
    return named


def _odds(step: Step) -> list[tuple[int, float]]:
    """Those named in a step, in turn, with the logarithm of their odds against all that was left then."""
    odds, rest = [], 1.0
    for k in step.removed:
        p = min(max(step.probabilities.get(k, 0.0) / max(rest, TINY), TINY), 1 - TINY)
        odds.append((k, math.log(p / (1 - p))))
        rest -= step.probabilities.get(k, 0.0)
    return odds


def _log_sum(values: Collection[float]) -> float:
    highest = max(values)
    return highest + math.log(sum(math.exp(value - highest) for value in values))


def _said(steps: Sequence[Step], places: dict[int, int]) -> dict[int, float]:
    """How each did against an average one, by identifier: in the largest pool it stood in, the last of these."""
    best = _names_best(steps, places)
    found: dict[int, float] = {}
    largest_first = sorted(enumerate(steps), key=lambda entry: (-len(entry[1].probabilities), -entry[0]))
    for _, step in largest_first:
        n = len(step.probabilities)
        if len(found) == len(places):
            break
        for k, p in step.probabilities.items():
            found.setdefault(k, n * p / (1 + n * p) if best else 1 / (1 + n * p))
    return found


def _names_best(steps: Sequence[Step], places: dict[int, int]) -> bool:
    """Whether steps name the best of their pool, which are then ranked before the others; if not, the worst."""
    votes, rest, before = 0, 0, None
    for step in steps:
        rest = rest if before and goes_on(before, step) else sum(places[k] for k in step.pool)
        rest, before = rest - sum(places[k] for k in step.removed), step
        if step.removed and len(step.pool) > len(step.removed):
            others = rest / (len(step.pool) - len(step.removed))
            votes += 1 if places[step.removed[0]] < others else -1
        elif step.probabilities and not step.removed:  # a list, read off the probabilities of being the best
            votes += 1
    return votes > 0


def falling(values: Sequence[float]) -> list[float]:
    """The falling sequence that is closest in squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        total, size = value, 1
        while blocks and blocks[-1][0] / blocks[-1][1] < total / size:
            before, count = blocks.pop()
            total, size = total + before, size + count
        blocks.append((total, size))
    return [total / size for total, size in blocks for _ in range(size)]
