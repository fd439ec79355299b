"""How much a model's ranking should count beside the first stage's. In: rankings of dev problems. Out: a weight.

weight = choose_weight(read_run(Path("dev.trec")), dev)      # then: r1ranker rank test.jsonl --fuse WEIGHT
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from r1ranker.errors import DataError
from r1ranker.evaluation.measures import evaluate_by_task
from r1ranker.problem import Problem, Ranking
from r1ranker.ranking.fusing import fuse

GRID = tuple(step / 10 for step in range(11))


def choose_weight(rankings: Sequence[Ranking], problems: Sequence[Problem]) -> float:
    """The model's weight whose fused rankings have the best nDCG@10 on average of tasks.

    Of equals it is the one nearest to the middle.

    Raises DataError where a problem has no ranking or no prior.
    """
    problems = [problem for problem in problems if problem.candidates]  # a run holds none of the others
    by_qid = {ranking.qid: ranking for ranking in rankings}
    if missing := [problem.qid for problem in problems if problem.qid not in by_qid]:
        raise DataError(f"{len(missing)} problems have no ranking, the first {missing[0]!r}; rank all of dev")

    def quality(weight: float) -> float:
        fused = [fuse(problem, by_qid[problem.qid], weight) for problem in problems]
        values = evaluate_by_task(fused, problems)
        return fmean(fmean(of_task["nDCG@10"].values()) for of_task in values.values())

    return max(GRID, key=lambda weight: (quality(weight), -abs(weight - 0.5)))
