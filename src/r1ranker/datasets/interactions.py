"""All that a recommender may learn from: every interaction of a source but the targets of dev and test users.

    everything = interactions("movielens", "ml-1m", seed=0)
    learn = [problem for split in everything.values() for problem in split]    # leave-last-out, all users
    learn = everything["train"]                                                # training users only
    had = had_by_group(everything)              # for `evaluation.protocols`: {"u7": ("Heat (1995)", ...), ...}

In: a source of recommendations and what a run sets for it (seed, `min_items`, `negatives`). Out: `Splits` with the
same users in the same splits, one problem a user: the whole history and, for training users, the last item as the
positive. Next in the data flow is `baselines.recommenders`; these problems are not for ranking.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1ranker.datasets import load
from r1ranker.problem import Problem, Splits, part_of

WHOLE = {"history": sys.maxsize, "windows_per_user": 1, "pool_size": 2}


def interactions(name: str, path: str | Path | None = None, *, seed: int = 0, **options: Any) -> Splits:
    """Interactions of source `name` as problems without limit; `options` are the source's.

    The loader makes them, asked for whole histories and the smallest pools. ConfigError: a source without histories.
    """
    splits = load(name, path, seed=seed, **(options | WHOLE))
    return {split: [p if split == "train" else _without_target(p) for p in ps] for split, ps in splits.items()}


def had_by_group(everything: Splits) -> dict[str, Sequence[str]]:
    """Titles that each dev and test user had before the target, of `interactions`."""
    return {problem.group: problem.history for split in ("dev", "test") for problem in everything[split]}


def _without_target(problem: Problem) -> Problem:
    return part_of(problem, [k for k in problem.identifiers if not problem.is_relevant(k)])
