"""What a run's config names: the problems of all its sources as one set of splits, and how many there are of each.

Notes of other rankers come from above, so whoever loads a run's data calls `baselines.notes.load_splits`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from r1ranker import datasets
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.config import DataConfig
from r1ranker.problem import Problem, Splits, by_task
from r1ranker.prompts import build_prompt
from r1ranker.scenarios import Scenario

Noted = Callable[[Splits, Sequence[str]], Splits]
"""The same problems, with what the rankers named make of each candidate."""


def merged(sources: Sequence[DataConfig], noted: Noted, scenarios: Mapping[str, Scenario]) -> Splits:
    """Problems of every source, split by split. Two sources may not name a task alike."""
    splits: Splits = {split: [] for split in datasets.SPLIT_NAMES}
    owner: dict[str, int] = {}
    for number, data in enumerate(sources):
        loaded = datasets.load(
            data.source, data.path, seed=data.seed, limit=data.limit, scenarios=scenarios, **data.options
        )
        loaded = noted(loaded, data.show) if data.show else loaded
        loaded = {split: problems if split in data.splits else [] for split, problems in loaded.items()}
        for split, problems in loaded.items():
            for task in {problem.task for problem in problems}:
                if owner.setdefault(task, number) != number:
                    raise ConfigError(
                        f"data.{owner[task]} and data.{number} both hold a task {task!r}; rename or drop one"
                    )
            splits[split] += problems
    if not any(splits.values()):
        raise DataError("the data of this run holds no problem at all")
    return splits


def check_there(sources: Sequence[DataConfig]) -> None:
    """DataError that names every source whose files are not there, and where each is to be had."""
    found = ((number, datasets.lacking(data.source, data.path)) for number, data in enumerate(sources))
    told = [f"data.{number}: {lacking}" for number, lacking in found if lacking]
    if told:
        raise DataError("\n".join(told))


def stats(splits: Splits) -> list[dict[str, Any]]:
    """One row per task and split: how many, how large, how often several candidates are relevant."""
    return [
        _row(task, split, problems)
        for split, everything in splits.items()
        for task, problems in by_task(everything).items()
    ]


def _row(task: str, split: str, problems: list[Problem]) -> dict[str, Any]:
    relevant = [sum(p.is_relevant(k) for k in p.identifiers) for p in problems]
    prompts = [build_prompt(p, p.identifiers, "iranker").text if p.candidates else "" for p in problems]
    return {
        "task": task,
        "split": split,
        "problems": len(problems),
        "groups": len({p.group for p in problems}),
        "pool": mean(len(p.candidates) for p in problems),
        "none relevant": sum(n == 0 for n in relevant),
        "several relevant": sum(n > 1 for n in relevant),
        "words in prompt": mean(len(text.split()) for text in prompts),
    }
