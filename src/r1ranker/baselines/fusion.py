"""One ranking out of several, weighed by what they were worth in training. In: problems with notes. Out: `Ranking`s.

    rankings = lambdamart(splits["train"], splits["test"])     # read with `data.show`

It sees what the model sees beside the texts: the places that other rankers give a candidate (see `notes`). So it says
what these are worth together, and it can be the teacher of a supervised start (`warmstart.answers`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from r1ranker.baselines.common import Scorer, fit_and_rank
from r1ranker.errors import ConfigError
from r1ranker.io.extras import library
from r1ranker.problem import Candidate, Problem, Ranking, by_task

_PLACE = re.compile(r"(.+) (\d+)")
GRADES = 4
"""Gains are learnt in grades 0..4, as shares of a problem's best: LambdaMART wants whole numbers."""


def lambdamart(train: Sequence[Problem], test: Sequence[Problem], *, seed: int = 0) -> list[Ranking]:
    """Boosted trees over other rankers' places, by LambdaMART (Burges, 2010), by lightgbm; one model for each task.

    Small trees over large leaves: a task may have a few dozen queries. Raises ConfigError where notes hold no place.
    """
    return fit_and_rank(partial(_fit, seed=seed), train, test, "lambdamart", None)


def places(candidate: Candidate) -> Mapping[str, float]:
    """Place by ranker, as a candidate's note says: `popularity 2 | bm25 7`."""
    found = (_PLACE.fullmatch(part) for part in candidate.note.split(" | "))
    return {match[1]: float(match[2]) for match in found if match}


def shows_places(problems: Sequence[Problem]) -> bool:
    """Whether candidates of every task show other rankers' places."""
    tasks = by_task(problems).values()
    return bool(tasks) and all(any(places(c) for p in of_task for c in p.candidates) for of_task in tasks)


def _fit(train: Sequence[Problem], seed: int) -> Scorer:
    names = sorted({name for problem in train for candidate in problem.candidates for name in places(candidate)})
    if not names:
        raise ConfigError(
            f"lambdamart weighs other rankers' places, and task {train[0].task!r} shows none; name some in data.show"
        )

    def features(problems: Sequence[Problem]) -> np.ndarray[Any, np.dtype[Any]]:
        read = (places(candidate) for problem in problems for candidate in problem.candidates)
        return np.array([[of.get(name, float("nan")) for name in names] for of in read])

    model = library("lightgbm").LGBMRanker(
        objective="lambdarank",
        num_leaves=7,
        min_child_samples=200,
        learning_rate=0.05,
        n_estimators=100,
        random_state=seed,
        deterministic=True,
        n_jobs=1,
        verbose=-1,
    )
    grades = [grade for problem in train for grade in _grades(problem)]
    model.fit(features(train), grades, group=[len(problem.candidates) for problem in train])

    def score(problems: Sequence[Problem]) -> list[dict[str, float]]:
        scores = iter(model.predict(features(problems)).tolist())
        return [{candidate.docid: next(scores) for candidate in problem.candidates} for problem in problems]

    return score


def _grades(problem: Problem) -> list[int]:
    best = max((problem.gain(k) for k in problem.identifiers), default=0.0)
    return [round(GRADES * max(0.0, problem.gain(k)) / best) if best > 0 else 0 for k in problem.identifiers]
