"""Validation during training: the ranker as it is served, on a few dev problems of each task."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from r1ranker.backends.base import Backend
from r1ranker.evaluation.measures import evaluate
from r1ranker.io.config import RunConfig
from r1ranker.problem import Problem, by_task
from r1ranker.ranking.spec import RankerSpec
from r1ranker.training.parallel import Crew


def dev_mrr(backend: Backend, dev: Sequence[Problem], config: RunConfig, crew: Crew | None = None) -> dict[str, float]:
    """MRR by task (`dev_mrr/<task>`) and their mean (`dev_mrr`); empty without dev problems.

    The processes of a crew rank a share each; all of them return the whole result.
    """
    if not dev:
        return {}
    spec = RankerSpec(
        config.design,
        think=config.think,
        layout=config.layout,
        readout=config.readout,
        ask=config.ask,
        query=config.query,
        max_new_tokens=config.ppo.max_new_tokens,
    )
    crew = crew or Crew()
    own = crew.share(dev)
    paired = list(zip(own, spec.around(backend).rank_many(own), strict=True))
    values: dict[str, list[float]] = {}
    for task, problems in by_task(own).items():
        of_task = [ranking for problem, ranking in paired if problem.task == task]
        values[task] = list(evaluate(of_task, problems)["MRR"].values())
    parts = crew.gather(values)
    scores = {f"dev_mrr/{task}": fmean(v for part in parts for v in part.get(task, ())) for task in by_task(dev)}
    return {"dev_mrr": fmean(scores.values())} | scores
