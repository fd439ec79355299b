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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from r1ranker.errors import DataError
from r1ranker.evaluation.measures import QueryValues, by_task, evaluate_by_task
from r1ranker.evaluation.significance import bootstrap_means, holm, paired_randomisation, percentile_interval
from r1ranker.files import replacing, write_whole
from r1ranker.problem import Problem, Ranking

AVERAGE = "average"
"""Pseudo-task: the mean over tasks, each task weighing the same."""
USED = ("calls", "prompt_tokens", "generated_tokens", "seconds", "retries", "cost")
COSTS = ("broken", "failed", *USED)
TaskValues = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Values of one system by task, measure and qid."""


@dataclass(frozen=True, slots=True)
class Row:
    """The mean of one measure over the `n` queries of a task, with its 95 % bootstrap interval.

    measure: one of `measures.MEASURES`, or of `COSTS`: broken (share of a query's steps whose answer was not
    valid), failed (share of queries that got no ranking; they count 0 in every measure), and what `Usage`
    counts, each per query.
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

    p_holm is adjusted for all tasks and systems that were compared by this measure in one call.
    """

    task: str
    system: str
    baseline: str
    measure: str
    difference: float
    n: int
    p: float
    p_holm: float


def score(rankings: Sequence[Ranking], problems: Sequence[Problem]) -> dict[str, QueryValues]:
    """Ranking measures and costs of each query of one system, by task, measure and qid."""
    values = evaluate_by_task(rankings, problems)
    by_qid = {ranking.qid: ranking for ranking in rankings}
    for task, of_task in by_task(problems).items():
        values[task] |= _costs([by_qid[problem.qid] for problem in of_task])
    return values


def rows_of(system: str, split: str, per_query: TaskValues, *, seed: int = 0) -> list[Row]:
    """Rows of each task and of their `average`, whose interval resamples queries within tasks.

    An average is of the measures that every task has; its `n` is the number of queries over all tasks.
    """
    if AVERAGE in per_query:
        raise DataError(f"a task cannot be named {AVERAGE!r}: the mean over tasks has that name; rename it")
    rows: list[Row] = []
    means: dict[str, list[Any]] = {}
    for number, (task, measures) in enumerate(per_query.items()):
        for measure, values in measures.items():
            known = list(values.values())
            resampled = bootstrap_means(known, seed=seed + number)
            means.setdefault(measure, []).append(resampled)
            rows.append(Row(task, system, split, measure, fmean(known), len(known), *percentile_interval(resampled)))
    for measure, of_tasks in means.items():
        if len(of_tasks) == len(per_query):
            each = [row for row in rows if row.measure == measure]
            value, n = fmean(row.value for row in each), sum(row.n for row in each)
            low, high = percentile_interval(np.mean(of_tasks, axis=0))
            rows.append(Row(AVERAGE, system, split, measure, value, n, low, high))
    return rows


def comparison(
    baseline: str,
    systems: Mapping[str, TaskValues],
    *,
    measures: Sequence[str] = ("MRR", "nDCG@10"),
    seed: int = 0,
) -> list[Comparison]:
    """Every other system against `baseline`, on each task and on the `average` of tasks."""
    if baseline not in systems:
        raise DataError(f"no results of the baseline {baseline!r}; there are {', '.join(sorted(systems))}")
    found: list[Comparison] = []
    for measure in measures:
        family = [
            one
            for system, values in systems.items()
            if system != baseline
            for one in _compared(system, baseline, measure, values, systems[baseline], seed)
        ]
        adjusted = holm([one.p for one in family])
        found += [Comparison(**(asdict(one) | {"p_holm": p})) for one, p in zip(family, adjusted, strict=True)]
    return found


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
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a list of results rows ({error}); write it with `write_results`") from error


def read_csv(path: Path) -> list[Row]:
    """The rows of a `results.csv`."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return TypeAdapter(list[Row]).validate_python(list(csv.DictReader(file)))
    except ValidationError as error:
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
    system: str, baseline: str, measure: str, values: TaskValues, others: TaskValues, seed: int
) -> list[Comparison]:
    """Comparisons of two systems by one measure, on each task and their average; p not adjusted yet."""
    differences: dict[str, list[float]] = {}
    for task, measures in values.items():
        mine, theirs = measures[measure], others.get(task, {}).get(measure, {})
        if mine.keys() != theirs.keys():
            raise DataError(f"task {task!r}: {system!r} and {baseline!r} were not run on the same queries")
        differences[task] = [mine[qid] - theirs[qid] for qid in mine]
    # Weighed so that the sum of all is the mean over tasks; a test on it is the average's test.
    weighed = [d / len(known) / len(differences) for known in differences.values() for d in known]
    tests = [(task, fmean(known), known) for task, known in differences.items()] + [(AVERAGE, sum(weighed), weighed)]
    return [
        Comparison(task, system, baseline, measure, mean, len(known), p := paired_randomisation(known, seed=seed), p)
        for task, mean, known in tests
    ]


def _as_json(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
