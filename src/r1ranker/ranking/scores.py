"""Scores of a finished ranking, for those who want more than its order. Pure."""

from __future__ import annotations

from r1ranker.problem import Problem, Ranking


def scores(problem: Problem, ranking: Ranking) -> tuple[float, ...]:
    """Falling scores in (0, 1], one for each docid, in its order. They are no calibrated probabilities."""
    n = len(ranking.docids)
    return tuple((n - place) / n for place in range(n))
