"""From scores to a `Ranking`, ties broken by a fair coin. Every baseline ends here."""

from __future__ import annotations

from collections.abc import Mapping

from r1ranker.datasets.common import rng_for
from r1ranker.elimination import ranking_from
from r1ranker.problem import Problem, Ranking, Usage

FREE = Usage()


def ranked_by(problem: Problem, scores: Mapping[str, float], system: str, usage: Usage = FREE) -> Ranking:
    """The pool by falling score; a docid without a score comes last.

    Ties are shuffled, seeded by system, task and qid: neither docids nor places in the pool decide, since both
    can give away the relevant candidate. The ranking's scores are n, n-1, ... 1, not those given.
    """
    order = list(problem.identifiers)
    # The shuffle must not start from the pool's order either, or it would depend on how the pool was listed.
    order.sort(key=lambda k: problem.candidate(k).docid)
    rng_for(system, problem.task, problem.qid).shuffle(order)
    order.sort(key=lambda k: scores.get(problem.candidate(k).docid, float("-inf")), reverse=True)
    return ranking_from(problem, order, (), usage)
