"""Tidy results. In: `Ranking`s and their `Problem`s. Out: `Row`s, comparisons, and the files that hold them.

    scores = {"iranker": score(rankings, problems), "prior": score(prior(problems), problems)}
    rows = [row for system, of_system in scores.items() for row in rows_of(system, "test", of_system)]
    tests = comparison("prior", scores)
    write_results(out / "results.json", rows, {"per_query": scores, "comparisons": tests, "provenance": provenance()})

`results.json` is a list of `{task, system, split, measure, value, n, ci_low, ci_high}`; what else is known stands
in files beside it. Next in the data flow are `table` and `report`.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

import numpy as np
from pydantic import TypeAdapter

from r1ranker.errors import DataError
from r1ranker.evaluation.measures import QueryValues, evaluate_by_task
from r1ranker.evaluation.significance import (
    Units,
    bootstrap_tasks,
    holm,
    paired_randomisation,
    percentile_interval,
    unit_sums,
)
from r1ranker.io.documents import read_json
from r1ranker.io.files import replacing, write_whole
from r1ranker.io.text import read_csv as read_table
from r1ranker.problem import Problem, Ranking, by_task

AVERAGE = "average"
"""Pseudo-task: the mean over tasks, each task weighing the same."""
REFERENCES = ("random", "prior", "bm25", "oracle")
"""Systems that are there to compare with, not to be tested."""
UNASKED = "unasked"
USED = ("calls", "prompt_tokens", "generated_tokens", "seconds", "retries", "cost")
COSTS = ("broken", "failed", *USED)
TaskValues = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Values of one system by task, measure and qid."""


@dataclass(frozen=True, slots=True)
class Row:
    """The mean of one measure over the `n` queries of a task, with its 95 % bootstrap interval.

    measure: one of `measures.MEASURES`, or of `COSTS`: broken (share of a query's steps whose answer was not
    valid), failed (share of queries that got no ranking; they count 0 in every measure), and what `Usage`
    counts, each per query. Of models that have some: `UNASKED`, the share of queries about which nothing was asked.
    """

    task: str
    system: str
    split: str
    measure: str
    value: float
    n: int
    ci_low: float
    ci_high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """`system` minus `baseline` over the same `n` queries of a task; p by paired randomisation.

    p_holm is adjusted within the family, see `comparison`. relative: the difference as a share of the baseline's
    value, and for the `average` the mean of the tasks' shares; None where the baseline is at 0.
    """

    task: str
    system: str
    baseline: str
    measure: str
    difference: float
    n: int
    p: float
    p_holm: float
    relative: float | None = None


def score(
    rankings: Sequence[Ranking], problems: Sequence[Problem], *, model: bool = False, costs: bool = True
) -> dict[str, QueryValues]:
    """Ranking measures and costs of each query of one system, by task, measure and qid.

    A query without a ranking has failed and counts 0. model: the system asks a model, so that a query about which
    it asked nothing is `UNASKED`. costs: whether they are known; those of a run file are not.
    """
    values = evaluate_by_task(rankings, problems)
    by_qid = {ranking.qid: ranking for ranking in rankings}
    unasked = model and any(asked_nothing(p, by_qid[p.qid]) for p in problems if p.qid in by_qid)
    for task, of_task in by_task(problems).items():
        found = [by_qid.get(problem.qid, Ranking(problem.qid, (), (), error="no ranking")) for problem in of_task]
        of_queries = _costs(found)
        values[task] |= of_queries if costs else {"failed": of_queries["failed"]}
        if unasked:
            pairs = zip(of_task, found, strict=True)
            values[task][UNASKED] = {problem.qid: float(asked_nothing(problem, ranking)) for problem, ranking in pairs}
    return values


def asked_nothing(problem: Problem, ranking: Ranking) -> bool:
    """Whether a model's ranking of more than one candidate was made without any call."""
    return not ranking.steps and not ranking.error and len(problem.candidates) > 1


def units_of(problems: Sequence[Problem]) -> dict[str, str]:
    """The group of each query that shares it with another one: their values are not independent."""
    shared = Counter(problem.group for problem in problems)
    return {problem.qid: problem.group for problem in problems if shared[problem.group] > 1}


def rows_of(
    system: str, split: str, per_query: TaskValues, *, units: Units = MappingProxyType({}), seed: int = 0
) -> list[Row]:
    """Rows of each task and of their `average`, whose interval resamples units within tasks.

    An average is of the measures that every task has; its `n` is the number of queries over all tasks.
    """
    if AVERAGE in per_query:
        raise DataError(f"a task cannot be named {AVERAGE!r}: the mean over tasks has that name; rename it")
    measures = dict.fromkeys(measure for of_task in per_query.values() for measure in of_task)
    means = {
        measure: bootstrap_tasks({t: of[measure] for t, of in per_query.items() if measure in of}, units, seed=seed)
        for measure in measures
    }
    rows = []
    for task, of_task in per_query.items():
        for measure, values in of_task.items():
            interval = percentile_interval(means[measure][task])
            rows.append(Row(task, system, split, measure, fmean(values.values()), len(values), *interval))
    for measure, of_tasks in means.items():
        if len(of_tasks) == len(per_query):
            each = [row for row in rows if row.measure == measure]
            value, n = fmean(row.value for row in each), sum(row.n for row in each)
            low, high = percentile_interval(np.mean(list(of_tasks.values()), axis=0))
            rows.append(Row(AVERAGE, system, split, measure, value, n, low, high))
    return rows


def all_rows(systems: Mapping[str, TaskValues], split: str, units: Units = MappingProxyType({})) -> list[Row]:
    """`rows_of` every system. One that has not ranked all tasks has no `average`: it would be of other tasks."""
    tasks = {task for values in systems.values() for task in values}
    rows = [row for name, values in systems.items() for row in rows_of(name, split, values, units=units)]
    return [row for row in rows if row.task != AVERAGE or systems[row.system].keys() == tasks]


def comparison(
    baseline: str,
    systems: Mapping[str, TaskValues],
    *,
    measures: Sequence[str] = ("MRR", "nDCG@10"),
    units: Units = MappingProxyType({}),
    seed: int = 0,
) -> list[Comparison]:
    """Every other system against `baseline`, on each task that both have and on the `average` of several tasks.

    The family that Holm's adjustment counts is, for each measure, the systems under test on all tasks and the average:
    each hypothesis once. `REFERENCES` are no hypotheses; their p-values are adjusted among themselves.
    """
    if baseline not in systems:
        raise DataError(f"no results of the baseline {baseline!r}; there are {', '.join(sorted(systems))}")
    others = [system for system in systems if system != baseline]
    adjusted: dict[tuple[str, str], list[Comparison]] = {}
    for measure in measures:
        for references in (False, True):
            family = [
                one
                for system in others
                if (system in REFERENCES) == references
                for one in _compared(system, baseline, measure, systems[system], systems[baseline], units, seed)
            ]
            for one, p in zip(family, holm([one.p for one in family]), strict=True):
                adjusted.setdefault((measure, one.system), []).append(replace(one, p_holm=p))
    return [one for measure in measures for system in others for one in adjusted.get((measure, system), [])]


def relative_gain(rows: Sequence[Row], system: str, over: str, measure: str = "MRR") -> float:
    """Mean over tasks of value / baseline - 1: 0.157 reads "+15.7 % average relative", as the paper reports."""
    values = {
        name: {row.task: row.value for row in rows if (row.system, row.measure) == (name, measure)}
        for name in (system, over)
    }
    tasks = [task for task in values[system] if task != AVERAGE]
    lacking = [task for task in tasks if not values[over].get(task)]
    if not tasks or lacking:
        where = f"task {lacking[0]!r}: {over!r} has no {measure} above 0" if lacking else f"{system!r} has no {measure}"
        raise DataError(f"relative gain of {system!r} over {over!r}: {where}")
    return fmean(values[system][task] / values[over][task] - 1 for task in tasks)


def write_results(path: Path, rows: Sequence[Row], meta: Mapping[str, object] | None = None) -> None:
    """Write rows to `path` (`results.json`), and each entry of `meta` to `<key>.json` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, content in [
        (path, rows),
        *((path.with_name(f"{key}.json"), value) for key, value in (meta or {}).items()),
    ]:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=_as_json)
        write_whole(file, text + "\n")


def read_results(path: Path) -> list[Row]:
    """The rows of a `results.json`."""
    try:
        return [Row(**row) for row in read_json(path)]
    except TypeError as error:
        raise DataError(f"{path}: not a list of results rows ({error}); write it with `write_results`") from error


def read_csv(path: Path) -> list[Row]:
    """The rows of a `results.csv`."""
    try:
        (_, header), *rows = read_table(path)
        if not rows or sorted(header) != sorted(field.name for field in fields(Row)):
            raise ValueError("a header that names the columns, and at least one row, are needed")
        return TypeAdapter(list[Row]).validate_python([dict(zip(header, row, strict=True)) for _, row in rows])
    except ValueError as error:
        raise DataError(f"{path}: not a table of results rows ({error}); write it with `write_csv`") from error


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """The same rows as a CSV file with a header."""
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _costs(rankings: Sequence[Ranking]) -> QueryValues:
    costs: QueryValues = {
        "broken": {r.qid: r.broken / max(1, len(r.steps)) for r in rankings},
        "failed": {r.qid: float(bool(r.error)) for r in rankings},
    }
    return costs | {name: {r.qid: float(getattr(r.usage, name)) for r in rankings} for name in USED}


def _compared(
    system: str, baseline: str, measure: str, values: TaskValues, others: TaskValues, units: Units, seed: int
) -> list[Comparison]:
    """Comparisons of two systems by one measure, on each task and their average; p not adjusted yet."""
    differences: dict[str, dict[str, float]] = {}
    levels: dict[str, float] = {}
    for task in filter(others.__contains__, values):
        mine, theirs = values[task].get(measure), others[task].get(measure)
        if mine is None or theirs is None:
            without = system if mine is None else baseline
            raise DataError(
                f"task {task!r}: {without!r} has no {measure}, as a run that was read from a file has no cost"
            )
        if mine.keys() != theirs.keys():
            raise DataError(f"task {task!r}: {system!r} and {baseline!r} were not run on the same queries")
        differences[task] = {qid: mine[qid] - theirs[qid] for qid in mine}
        levels[task] = fmean(theirs.values())
    means = {task: fmean(known.values()) for task, known in differences.items()}
    shares = {task: means[task] / level if level else None for task, level in levels.items()}
    sums = {task: unit_sums(known, units) for task, known in differences.items()}
    tests = [(task, means[task], len(known), sums[task], shares[task]) for task, known in differences.items()]
    if len(tests) > 1 and values.keys() == others.keys():
        # Weighed so that the sum of all is the mean over tasks; a test on it is the average's test.
        weighed: dict[str, float] = {}
        for task, known in differences.items():
            for unit, total in sums[task].items():
                weighed[unit] = weighed.get(unit, 0.0) + total / len(known) / len(differences)
        known_shares = [share for share in shares.values() if share is not None]
        share = fmean(known_shares) if len(known_shares) == len(shares) else None
        tests.append((AVERAGE, fmean(means.values()), sum(map(len, differences.values())), weighed, share))
    return [
        Comparison(task, system, baseline, measure, mean, n, p, p, share)
        for task, mean, n, of_units, share in tests
        for p in [paired_randomisation(list(of_units.values()), seed=seed)]
    ]


def _as_json(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
