"""Validation during training: the ranker as it is served, on a few dev problems of each task."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from r1ranker.backends.base import Backend
from r1ranker.evaluation.measures import by_task, evaluate
from r1ranker.problem import Problem
from r1ranker.spec import RankerSpec
from r1ranker.training.config import RunConfig


def validation_problems(dev: Sequence[Problem], per_task: int) -> list[Problem]:
    """The first `per_task` dev problems of each task."""
    return [problem for problems in by_task(dev).values() for problem in problems[:per_task]]


def dev_mrr(backend: Backend, dev: Sequence[Problem], config: RunConfig) -> dict[str, float]:
    """MRR by task (`dev_mrr/<task>`) and their mean (`dev_mrr`); empty without dev problems."""
    if not dev:
        return {}
    spec = RankerSpec(config.design, think=config.think, layout=config.layout, max_new_tokens=config.ppo.max_new_tokens)
    rankings = spec.around(backend).rank_many(dev)
    scores: dict[str, float] = {}
    paired = list(zip(dev, rankings, strict=True))
    for task, problems in by_task(dev).items():
        of_task = [ranking for problem, ranking in paired if problem.task == task]
        scores[f"dev_mrr/{task}"] = mean(evaluate(of_task, problems)["MRR"].values())
    return {"dev_mrr": mean(scores.values())} | scores
