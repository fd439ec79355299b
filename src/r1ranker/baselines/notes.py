"""What other rankers make of each candidate, written behind it for the model to read. In: `Splits`. Out: the same.

    noted = with_notes(splits, ["prior", "bm25", "item-knn"])
    # [3] Alien (1979) | popularity 2 | bm25 7 | item-knn 1

A ranker in service knows what its first stages say; this is how it may learn what each is worth. Nothing leaks:
a specialist ranks training problems only by what it learnt from other groups (stacking, Wolpert 1992), and dev and
test problems by what it learnt from all of training. Rankers of other scenarios are left out, and the
prior where a problem has none. Next: `prompts`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

from r1ranker.baselines import BASELINES
from r1ranker.baselines.simple import has_prior
from r1ranker.baselines.specialists import SPECIALISTS, serves
from r1ranker.datasets.data import merged
from r1ranker.errors import ConfigError
from r1ranker.io.config import DataConfig
from r1ranker.problem import Problem, Ranking, Splits, rng_for
from r1ranker.scenarios import Scenario

FOLDS = 5
"""Parts of the training problems, by group; each is ranked by specialists that learnt from the other parts."""


def load_splits(sources: Sequence[DataConfig], scenarios: Mapping[str, Scenario] | None = None) -> Splits:
    """Problems of every source that a run's config names, with the notes it asks for (`data.show`).

    scenarios: the config's own (`RunConfig.scenarios`).
    """
    return merged(sources, with_notes, scenarios or {})


def with_notes(splits: Splits, rankers: Sequence[str]) -> Splits:
    """The same problems; each candidate's note is its place by each of `rankers` that serves the scenario.

    A ranker may be given as `bm25=second ranker`: then that is what the model reads in place of its name.
    Raises ConfigError for an unknown ranker, BackendError where one's library is not installed, DataError where
    a specialist has nothing to learn from.
    """
    known = [*(name for name in BASELINES if name != "oracle"), *SPECIALISTS]
    for name in (ranker.partition("=")[0] for ranker in rankers):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or [", ".join(known)]
            raise ConfigError(f"show: no ranker is called {name!r}; did you mean {near[0]}?")
    train = splits["train"]
    fold = [rng_for("fold", problem.group).randrange(FOLDS) for problem in train]
    noted: dict[int, Problem] = {}
    for k in range(FOLDS):
        part = [problem for problem, of in zip(train, fold, strict=True) if of == k]
        others = [problem for problem, of in zip(train, fold, strict=True) if of != k]
        noted |= {id(p): q for p, q in zip(part, noted_by(rankers, others, part), strict=True)}
    rest = {split: noted_by(rankers, train, problems) for split, problems in splits.items() if split != "train"}
    return {"train": [noted[id(problem)] for problem in train], **rest}


def noted_by(rankers: Sequence[str], learn: Sequence[Problem], problems: Sequence[Problem]) -> list[Problem]:
    """Problems with the places that `rankers` give their candidates (`with_notes`); specialists learn from `learn`."""
    notes: dict[int, list[list[str]]] = {id(p): [[] for _ in p.candidates] for p in problems}
    for name, _, words in (ranker.partition("=") for ranker in rankers):
        served = [p for p in problems if (has_prior(p) if name == "prior" else name in BASELINES or serves(name, p))]
        for problem, ranking in zip(served, _ranked(name, learn, served), strict=True):
            shown = words or (problem.words.prior if name == "prior" else name)
            place = {docid: i for i, docid in enumerate(ranking.docids, start=1)}
            for note, candidate in zip(notes[id(problem)], problem.candidates, strict=True):
                note.append(f"{shown} {place[candidate.docid]}")
    return [_noted(problem, notes[id(problem)]) for problem in problems]


def _ranked(name: str, learn: Sequence[Problem], problems: Sequence[Problem]) -> list[Ranking]:
    if not problems:
        return []
    if name in BASELINES:
        return BASELINES[name](problems)
    tasks = {problem.task for problem in problems}
    return SPECIALISTS[name].rank([problem for problem in learn if problem.task in tasks], problems)


def _noted(problem: Problem, notes: Sequence[Sequence[str]]) -> Problem:
    candidates = tuple(
        dataclasses.replace(candidate, note=" | ".join(filter(None, (candidate.note, *note))))
        for candidate, note in zip(problem.candidates, notes, strict=True)
    )
    return dataclasses.replace(problem, candidates=candidates)
