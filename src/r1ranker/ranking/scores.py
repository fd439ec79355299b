"""Scores of a finished ranking, for those who want more than its order. Pure.

In: a problem and its ranking. Out: one number for each candidate, best first, in (0, 1] and strictly falling.

Where the model gave probabilities, a score says how a candidate did against an average one of the list: the chance that
it is the better of the two (Bradley-Terry), so 0.5 is average. Where it gave none, a score is a place. Either way it is
relative to the other candidates, and no calibrated probability of being relevant: a threshold on it means nothing
across lists.
"""

from __future__ import annotations

from collections.abc import Sequence

from r1ranker.problem import Problem, Ranking, Step

BY_PLACE = 1e-3
"""Weight of the place alone, so that scores fall strictly where the model saw no difference."""


def scores(problem: Problem, ranking: Ranking) -> tuple[float, ...]:
    """A score for each docid of the ranking, in its order."""
    n = len(ranking.docids)
    place_of = {docid: place for place, docid in enumerate(ranking.docids)}
    places = {k: place_of[problem.candidate(k).docid] for k in problem.identifiers} if n else {}
    said = _said(ranking.steps, places)
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


def _said(steps: Sequence[Step], places: dict[int, int]) -> dict[int, float]:
    """How each did against an average one, by identifier: in the largest pool it stood in, the last of these."""
    best = _names_best(steps, places)
    found: dict[int, tuple[int, float]] = {}
    for step in steps:
        n = len(step.probabilities)
        for k, p in step.probabilities.items():
            if n >= found.get(k, (0, 0.0))[0]:
                found[k] = (n, n * p / (1 + n * p) if best else 1 / (1 + n * p))
    return {k: value for k, (_, value) in found.items()}


def _names_best(steps: Sequence[Step], places: dict[int, int]) -> bool:
    """Whether steps name the best of their pool, which are then ranked before the others; if not, the worst."""
    votes = 0
    for step in steps:
        if step.removed and len(step.pool) > len(step.removed):
            others = [places[k] for k in step.pool if k not in step.removed]
            votes += 1 if places[step.removed[0]] < sum(others) / len(others) else -1
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
