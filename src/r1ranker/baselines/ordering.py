"""From scores to a `Ranking`, ties broken by a fair coin. Every baseline ends here."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from r1ranker.elimination import ranking_from
from r1ranker.problem import Problem, Ranking, Usage, rng_for
from r1ranker.ranking.luce import asked_about

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


def undecided_by_coin(problem: Problem, ranking: Ranking, system: str) -> Ranking:
    """A model's ranking in which places that no answer decided are drawn by the coin of ties.

    A ranker leaves them in the order given, which may give away the relevant candidate. What it was never asked about
    may stand anywhere, but for a tail kept behind the head that was ranked. Candidates that an elimination left over
    without probabilities tie.
    """
    seen = {problem.candidate(k).docid for k in asked_about(ranking.steps)}
    last = max((place for place, docid in enumerate(ranking.docids) if docid in seen), default=len(ranking.docids))
    order = [docid for docid in ranking.docids if docid in seen]
    free = [docid for docid in ranking.docids[:last] if docid not in seen]
    tail = [docid for docid in ranking.docids[last:] if docid not in seen]
    tied = _left_over(problem, ranking)
    if not (free or tied):
        return ranking
    rng = rng_for(system, problem.task, problem.qid)
    drawn = iter(_drawn(tied, rng))
    order = [next(drawn) if docid in tied else docid for docid in order]
    if not order:
        order, free = _drawn(free, rng), []
    for docid in _drawn(free, rng):
        order.insert(rng.randrange(len(order) + 1), docid)
    return replace(ranking, docids=(*order, *tail))


def _left_over(problem: Problem, ranking: Ranking) -> list[str]:
    """The candidates left when a plain elimination of the whole pool ended, where nothing says which is better."""
    steps = ranking.steps
    removed = {k for step in steps for k in step.removed}
    if not all(step.removed for step in steps) or not steps or steps[-1].probabilities:
        return []
    left = [k for k in problem.identifiers if k not in removed]
    plain = all(step.pool == tuple(k for k in steps[0].pool if k in step.pool) for step in steps)
    return [problem.candidate(k).docid for k in left] if plain and set(left) <= set(steps[-1].pool) else []


def _drawn(docids: Sequence[str], rng: random.Random) -> list[str]:
    """In a random order that does not depend on the one given."""
    order = sorted(docids)
    rng.shuffle(order)
    return order
