"""What specialists share: one model a task, timed scores. In: `Problem`s. Out: `Ranking`s.

A specialist is a `Fit`: training problems of one task in, a `Scorer` out. A scorer takes problems and gives each
a score by docid; `ordering.ranked_by` makes the ranking, ties broken by a fair coin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from r1ranker.baselines.ordering import ranked_by
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Problem, Ranking, Usage, by_task
from r1ranker.scenarios import SCENARIOS

Scorer = Callable[[Sequence[Problem]], Sequence[Mapping[str, float]]]
"""Scores by docid of each problem's pool; a docid left out comes last."""
Fit = Callable[[Sequence[Problem]], Scorer]


def fit_and_rank(
    fit: Fit, train: Sequence[Problem], test: Sequence[Problem], system: str, scenario: str | None
) -> list[Ranking]:
    """Rankings of `test` in its order, by one model for each task, fitted to the training problems of that task.

    Raises ConfigError where a problem is of another scenario (None: any; see `fits`), DataError where a task has no
    training problem.
    """
    for problem in test:
        if scenario and not fits(scenario, problem):
            raise ConfigError(
                f"{system} ranks {scenario} problems; {problem.qid!r} of task {problem.task!r} is {problem.scenario}"
            )
    known = by_task(train)
    rankings: dict[int, Ranking] = {}
    for task, of_task in by_task(test).items():
        if task not in known:
            raise DataError(f"{system}: task {task!r} has no training problem; give some, or leave the system out")
        ranked = rank_scored(fit(known[task]), of_task, system)
        rankings |= {id(problem): ranking for problem, ranking in zip(of_task, ranked, strict=True)}
    return [rankings[id(problem)] for problem in test]


def fits(scenario: str, problem: Problem) -> bool:
    """Whether a specialist of a scenario of ours can rank a problem. One of the user's own scenario is told by what it
    holds: recommenders read a history, routers a query."""
    if problem.scenario in SCENARIOS:
        return problem.scenario == scenario
    return bool(problem.history if scenario == "recommendation" else problem.query)


def rank_scored(score: Scorer, problems: Sequence[Problem], system: str) -> list[Ranking]:
    """Rankings by `score`; each is charged its share of the seconds that scoring took (fitting is not counted)."""
    began = time.perf_counter()
    asked = [problem for problem in problems if problem.candidates]
    scores = {id(problem): known for problem, known in zip(asked, score(asked) if asked else (), strict=True)}
    usage = Usage(seconds=(time.perf_counter() - began) / max(1, len(problems)))
    return [ranked_by(problem, scores.get(id(problem), {}), system, usage) for problem in problems]
