"""Ranking measures of each query. In: `Ranking`s and their `Problem`s. Out: values by measure and qid.

    evaluate(rankings, problems)["MRR"]["q17"]  # 0.5

ir_measures computes everything; next in the data flow is `results`. Judgements are all of a problem's gains,
those of documents outside the pool included: such a document cannot be ranked, and counts in the ideal
ranking of nDCG (trec_eval's: a gain counts as it is, divided by log2(rank + 1)). A docid without a gain is
unjudged and counts as not relevant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import ir_measures
from ir_measures import RR, Qrel, ScoredDoc, Success, nDCG

from r1ranker.errors import DataError
from r1ranker.problem import Problem, Ranking, by_task

MEASURES = ("MRR", "nDCG@5", "nDCG@10", "hit@1", "hit@3", "hit@5", "hit@10")
QueryValues = dict[str, dict[str, float]]
"""Values by measure name, then by qid."""


def evaluate(rankings: Sequence[Ranking], problems: Sequence[Problem]) -> QueryValues:
    """Values of `MEASURES` for each problem of one task, by measure and qid, in the problems' order.

    A query without a relevant document or without a ranking has the value 0 everywhere; it is never dropped (as
    `trec_eval -c`). The order of `Ranking.docids` is what counts, so no measure depends on how scores round.
    Rankings of other queries are ignored. DataError: two problems with one qid, a problem with two rankings,
    unequal `relevant_at`.
    """
    by_qid = _rankings_by_qid(rankings, problems)
    named = _measures(_relevant_at(problems))
    values: QueryValues = {name: dict.fromkeys(by_qid, 0.0) for name in named}
    names = {measure: name for name, measure in named.items()}
    for metric in ir_measures.iter_calc(list(named.values()), list(_qrels(problems)), list(_run(by_qid))):
        values[names[metric.measure]][metric.query_id] = float(metric.value)
    return values


def evaluate_by_task(rankings: Sequence[Ranking], problems: Sequence[Problem]) -> dict[str, QueryValues]:
    """`evaluate` for each task; qids must be distinct over all tasks, as a run file needs them to be."""
    _rankings_by_qid(rankings, problems)
    return {task: evaluate(rankings, of_task) for task, of_task in by_task(problems).items()}


def _measures(relevant_at: int) -> dict[str, Any]:
    hits = {f"hit@{k}": Success(rel=relevant_at) @ k for k in (1, 3, 5, 10)}
    return {"MRR": RR(rel=relevant_at), "nDCG@5": nDCG @ 5, "nDCG@10": nDCG @ 10, **hits}


def _relevant_at(problems: Sequence[Problem]) -> int:
    levels = {problem.relevant_at for problem in problems}
    if len(levels) > 1:
        task = problems[0].task
        raise DataError(f"task {task!r}: relevant_at must be one value within a task, found {sorted(levels)}")
    return levels.pop() if levels else 1


def _rankings_by_qid(rankings: Sequence[Ranking], problems: Sequence[Problem]) -> dict[str, Ranking]:
    """The ranking of each problem, in the problems' order."""
    for qid, times in Counter(problem.qid for problem in problems).items():
        if times > 1:
            raise DataError(f"qid {qid!r} names {times} problems; make qids distinct, over tasks too")
    wanted = {problem.qid for problem in problems}
    found: dict[str, Ranking] = {}
    for ranking in rankings:
        if ranking.qid in wanted and found.setdefault(ranking.qid, ranking) is not ranking:
            raise DataError(f"qid {ranking.qid!r} has more than one ranking")
    return {problem.qid: found.get(problem.qid, Ranking(problem.qid, (), ())) for problem in problems}


def _qrels(problems: Sequence[Problem]) -> Iterator[Qrel]:
    for problem in problems:
        for docid, gain in problem.gains.items():
            yield Qrel(problem.qid, docid, gain)


def _run(by_qid: dict[str, Ranking]) -> Iterator[ScoredDoc]:
    # Scores are places, not `Ranking.scores`: trec_eval reads 32-bit floats, in which close scores tie.
    for qid, ranking in by_qid.items():
        for place, docid in enumerate(ranking.docids):
            yield ScoredDoc(qid, docid, float(-place))
