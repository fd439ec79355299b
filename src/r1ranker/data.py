"""Loading what a run's config names: the problems of all its sources, as one set of splits."""

from __future__ import annotations

from collections.abc import Sequence

from r1ranker import datasets
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Splits
from r1ranker.training.config import DataConfig


def load_splits(sources: Sequence[DataConfig]) -> Splits:
    """Problems of every source, split by split. Two sources may not name a task alike."""
    splits: Splits = {split: [] for split in datasets.SPLIT_NAMES}
    owner: dict[str, int] = {}
    for number, data in enumerate(sources):
        loaded = datasets.load(data.source, data.path, seed=data.seed, limit=data.limit, **data.options)
        for split, problems in loaded.items():
            for task in {problem.task for problem in problems}:
                if owner.setdefault(task, number) != number:
                    raise ConfigError(f"data.{owner[task]} and data.{number} both hold a task {task!r}; rename or drop one")
            splits[split] += problems
    if not any(splits.values()):
        raise DataError("the data of this run holds no problem at all")
    return splits
