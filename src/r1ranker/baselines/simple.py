"""Baselines that read no text: chance, what was known before the query, and the ceiling."""

from __future__ import annotations

from collections.abc import Sequence

from r1ranker.baselines.ordering import ranked_by
from r1ranker.errors import DataError
from r1ranker.problem import Problem, Ranking, by_task

NO_PRIOR = "no prior"


def shuffled(problems: Sequence[Problem]) -> list[Ranking]:
    """Uniformly random orders, seeded by task and qid; mean MRR with one relevant of n is H(n)/n."""
    return [ranked_by(problem, {}, "random") for problem in problems]


def prior(problems: Sequence[Problem]) -> list[Ranking]:
    """Each pool by its problem's prior: popularity, average quality, or the first stage's score.

    A candidate that the prior does not know comes last. DataError: a task without any prior, see `without_prior`.
    """
    lacking = without_prior(problems)
    if lacking:
        raise DataError(
            f"{NO_PRIOR} in task {lacking[0]!r}: no score of any candidate, so an order by it would be random; "
            "give the problems a `prior`, or leave the baseline out"
        )
    return [ranked_by(problem, problem.prior, "prior") for problem in problems]


def without_prior(problems: Sequence[Problem]) -> list[str]:
    """Tasks in which no candidate of any problem has a score by the prior."""
    return [
        task for task, of_task in by_task(problems).items() if not any(p.candidates and has_prior(p) for p in of_task)
    ]


def has_prior(problem: Problem) -> bool:
    """Whether the prior knows any candidate; of an empty pool there is nothing to know."""
    return not problem.candidates or any(candidate.docid in problem.prior for candidate in problem.candidates)


def oracle(problems: Sequence[Problem]) -> list[Ranking]:
    """Each pool by its gains: what no ranker can exceed."""
    return [ranked_by(problem, problem.gains, "oracle") for problem in problems]
