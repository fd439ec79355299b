"""What a run's config names: the problems of all its sources as one set of splits, and how many there are of each.

Notes of other rankers come from above, so whoever loads a run's data calls `baselines.notes.load_splits`.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from r1ranker import datasets
from r1ranker.datasets.common import plain
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.config import DataConfig
from r1ranker.problem import Problem, Splits, by_task
from r1ranker.prompts import build_prompt
from r1ranker.scenarios import Scenario

log = logging.getLogger(__name__)

Asked = tuple[str, tuple[str, ...]]
"""A query, without what makes no other one of it, and a history."""
Noted = Callable[[Splits, Sequence[str]], Splits]
"""The same problems, with what the rankers named make of each candidate."""


def merged(sources: Sequence[DataConfig], noted: Noted, scenarios: Mapping[str, Scenario]) -> Splits:
    """Problems of every source, split by split. Two sources may not name a task alike.

    A test problem whose query stands in train or dev of another source is left out: it would not be new to a model.
    Where two sources name a query alike, as collections do that count from 1, its qid begins with the task.
    """
    found = [_loaded(data, noted, scenarios) for data in sources]
    _check_tasks(found)
    found = _named_apart(_unseen(found))
    splits = {split: [problem for one in found for problem in one[split]] for split in datasets.SPLIT_NAMES}
    if not any(splits.values()):
        raise DataError("the data of this run holds no problem at all")
    return splits


def _loaded(data: DataConfig, noted: Noted, scenarios: Mapping[str, Scenario]) -> Splits:
    limits: dict[str, Any] = {"seed": data.seed, "limit": data.limit}
    loaded = datasets.load(data.source, data.path, scenarios=scenarios, **limits, **data.options)
    loaded = noted(loaded, data.show) if data.show else loaded
    return {split: problems if split in data.splits else [] for split, problems in loaded.items()}


def _check_tasks(found: Sequence[Splits]) -> None:
    owner: dict[str, int] = {}
    for number, splits in enumerate(found):
        for task in {problem.task for problems in splits.values() for problem in problems}:
            if owner.setdefault(task, number) != number:
                raise ConfigError(f"data.{owner[task]} and data.{number} both hold a task {task!r}; rename or drop one")


def _unseen(found: Sequence[Splits]) -> list[Splits]:
    """Without the test problems that ask what train or dev of another source asks; how many is told."""
    learnt: dict[Asked, set[int]] = defaultdict(set)
    for number, splits in enumerate(found):
        for problem in (*splits["train"], *splits["dev"]):
            if (asked := _asked(problem))[0]:  # histories without a query are the sources' own to keep apart
                learnt[asked].add(number)
    kept = []
    for number, splits in enumerate(found):
        seen = {p.qid: learnt[asked] - {number} for p in splits["test"] if (asked := _asked(p)) in learnt}
        new = [problem for problem in splits["test"] if not seen.get(problem.qid)]
        left = by_task(new)
        for task, problems in by_task(splits["test"]).items():
            if lost := len(problems) - len(left.get(task, ())):
                others = sorted({one for problem in problems for one in seen.get(problem.qid, ())})
                _tell_seen(number, task, lost, len(problems), " and ".join(f"data.{one}" for one in others))
        kept.append({**splits, "test": new})
    return kept


def _tell_seen(number: int, task: str, lost: int, of: int, others: str) -> None:
    if lost == of:
        raise DataError(
            f"data.{number}: every test query of task {task!r} stands in train or dev of {others}; test on other "
            f"queries, or leave test out of data.{number}.splits"
        )
    told = "%s: %d of %d test problems are left out: their queries stand in train or dev of %s"
    log.warning(told, task, lost, of, others)


def _asked(problem: Problem) -> Asked:
    """What a model would know again: users' histories may share a query such as "what next?"."""
    return plain(problem.query), problem.history


def _named_apart(found: Sequence[Splits]) -> list[Splits]:
    """Qids that name one problem of a split: where two sources name one alike there, theirs begin with the task."""
    apart = [dict(splits) for splits in found]
    for split in datasets.SPLIT_NAMES:
        alike: dict[int, tuple[int, str]] = {}
        owner: dict[str, int] = {}
        for number, splits in enumerate(found):
            for problem in splits[split]:
                first = owner.setdefault(problem.qid, number)
                if first != number:
                    alike |= {first: (number, problem.qid), number: (first, problem.qid)}
        for number, (other, qid) in alike.items():
            log.info("data.%d names %r in %s as data.%d does: its qids begin with the task", number, qid, split, other)
            apart[number][split] = [_with_task(problem) for problem in found[number][split]]
    return apart


def _with_task(problem: Problem) -> Problem:
    return replace(problem, qid=f"{'_'.join(problem.task.split())}:{problem.qid}")


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
