"""Baselines that read no text: chance, what was known before the query, and the ceiling."""

from __future__ import annotations

from collections.abc import Sequence

from r1ranker.baselines.bm25 import bm25
from r1ranker.baselines.ordering import ranked_by
from r1ranker.problem import Problem, Ranking


def shuffled(problems: Sequence[Problem]) -> list[Ranking]:
    """Uniformly random orders, seeded by task and qid; mean MRR with one relevant of n is H(n)/n."""
    return [ranked_by(problem, {}, "random") for problem in problems]


def prior(problems: Sequence[Problem]) -> list[Ranking]:
    """Each pool by its problem's prior: popularity, average quality, or the first stage's score.

    A candidate that the prior does not know comes last. A problem without any prior is ranked by BM25 when
    it asks for passages (the usual first stage), else at random.
    """
    passages = [p for p in problems if not p.prior and p.scenario == "passage"]
    first_stage = {id(p): ranking for p, ranking in zip(passages, bm25(passages), strict=True)}
    return [first_stage.get(id(p)) or ranked_by(p, p.prior, "prior") for p in problems]


def oracle(problems: Sequence[Problem]) -> list[Ranking]:
    """Each pool by its gains: what no ranker can exceed."""
    return [ranked_by(problem, problem.gains, "oracle") for problem in problems]
