"""The paper's main table: nine tasks by all systems. In: a `Study`. Out: results, `tables.json`, sanity checks.

DRanker and IRanker are trained from the same model at equal training tokens. Every difference is tested on the same
queries. Next: `sanity`, which asks whether the figures could be an artefact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from r1ranker.baselines.fusion import shows_places
from r1ranker.errors import DataError
from r1ranker.evaluation.charts import number
from r1ranker.evaluation.results import (
    AVERAGE,
    COSTS,
    Comparison,
    Row,
    TaskValues,
    comparison,
    relative_gain,
)
from r1ranker.evaluation.significance import Units
from r1ranker.evaluation.systems import read_per_query, read_units
from r1ranker.evaluation.table import stars, systems_of, tasks_of
from r1ranker.experiments.report import MEASURES, Table, by_system, read_comparisons, results_table, save_tables
from r1ranker.experiments.sanity import sanity
from r1ranker.experiments.study import Study
from r1ranker.training.logs import read_log

PAIRS = (("iranker", "base-iterative"), ("dranker", "base-direct"), ("iranker", "dranker"), ("iranker", "prior"))
HEADLINE = "The paper reports +15.7% average relative gain of IRanker over the model without RL."
OTHER_TASKS = " The embedded tasks share their names with the paper's and nothing else: no other figure is comparable."
TASKS = (
    *("rec-movie", "rec-music", "rec-game", "route-performance", "route-cost", "route-balance"),
    *("passage-5", "passage-7", "passage-9"),
)
PAPER = {
    "bm25": (17.56, 18.09, 14.96, 18.41, 13.52, 13.39, 53.63, 44.95, 39.69),
    "base-direct": (16.92, 16.68, 13.17, 10.00, 10.00, 10.00, 38.08, 22.47, 15.94),
    "base-iterative": (22.01, 21.97, 29.49, 20.87, 20.22, 12.42, 57.74, 43.47, 39.40),
    "dranker": (18.71, 15.70, 15.77, 20.63, 9.06, 13.38, 43.85, 22.86, 16.11),
    "iranker": (34.69, 29.18, 42.49, 23.62, 30.39, 24.44, 60.98, 53.22, 49.96),
    "zero-shot": (25.95, 23.21, 31.16, 20.41, 23.10, 21.89, 56.42, 51.19, 42.45),
}
"""MRR x 100 by system, in the order of `TASKS` (arXiv 2506.21638, main and zero-shot tables; Qwen2.5-3B-Instruct)."""


def main(study: Study) -> None:
    """Train both designs side by side, evaluate all systems, save the tables."""
    dranker, iranker = study.trained_all([["design=dranker"], ["design=iranker"]])
    base = study.config.model
    models = [
        study.system("base-direct", "dranker", base),
        study.system("base-iterative", "iranker", base),
        study.system("dranker", "dranker", str(dranker)),
        study.system("iranker", "iranker", str(iranker)),
    ]
    test = study.problems("test")
    train = study.problems("train")
    fused = shows_places(train)  # whoever reads other rankers stands beside what they give
    rows = study.evaluate(
        ["random", "prior", "bm25", *(["lambdamart"] if fused else []), *models],
        test,
        train=train,
        title=f"R1-Ranker, main table ({study.scale})",
        curves={"dranker": read_log(dranker.parent), "iranker": read_log(iranker.parent)},
    )
    tests = read_comparisons(study.out)
    shown = [measure for measure in MEASURES if any(row.measure == measure for row in rows)]
    tables = [
        *(results_table(f"All systems, {measure}", rows, tests, measures=[measure]) for measure in shown),
        differences("Differences in MRR", rows, study.out, PAIRS, HEADLINE + (OTHER_TASKS if embedded(study) else "")),
        costs(rows),
    ]
    save_tables(study.out, tables if embedded(study) else [*tables, beside_paper(rows)])
    sanity(study, models[1:])


def differences(title: str, rows: Sequence[Row], out: Path, pairs: Sequence[tuple[str, str]], note: str = "") -> Table:
    """MRR of one system less another's by task, with the stars of the paired test, Holm-adjusted within each pair."""
    values, units = read_per_query(out), read_units(out)
    pairs = [pair for pair in pairs if set(pair) <= values.keys()]
    tests = {pair: tested(*pair, values, units) for pair in pairs}
    lines = [(task, *(_difference(tests[pair].get(task)) for pair in pairs)) for task in tasks_of(rows)]
    lines.append(("average relative gain", *(_gain(rows, *pair) for pair in pairs)))
    legend = (
        "Difference on the same queries; * p < 0.05, ** p < 0.01 (paired randomisation, Holm over the tasks of a "
        "column), ↓ worse."
    )
    columns = ("task", *(f"{system} − {over}" for system, over in pairs))
    return Table(title, columns, lines, f"{legend} {note}".strip())


def _difference(test: Comparison | None) -> str:
    return "" if test is None else f"{test.difference:+.3f} {stars(test)}".strip()


def tested(system: str, over: str, values: Mapping[str, TaskValues], units: Units) -> dict[str, Comparison]:
    """The paired test of one system's MRR against another's, by task."""
    found = comparison(over, {system: values[system], over: values[over]}, measures=["MRR"], units=units)
    return {one.task: one for one in found}


def _gain(rows: Sequence[Row], system: str, over: str) -> str:
    try:
        return f"{relative_gain(rows, system, over):+.1%}"
    except DataError:  # the other system is at 0 on a task
        return "none: a task at 0"


def costs(rows: Sequence[Row]) -> Table:
    """What a query costs with each system, means over tasks."""
    found = {measure: by_system(rows, measure) for measure in COSTS}
    lines = [
        (system, *(number(found[m][system].value) if system in found[m] else "" for m in COSTS))
        for system in systems_of(rows)
    ]
    note = "Per query, means over tasks. broken: share of steps whose answer was not valid."
    return Table("Cost", ("system", *(m.replace("_", " ") for m in COSTS)), lines, note)


def beside_paper(rows: Sequence[Row], systems: Sequence[str] = tuple(PAPER)) -> Table:
    """Ours and the paper's MRR x 100, for the tasks and systems that both have."""
    ours = {(row.task, row.system): 100 * row.value for row in rows if row.measure == "MRR"}
    systems = [system for system in systems if any((task, system) in ours for task in TASKS)]
    theirs = {(task, s): value for s in systems for task, value in zip(TASKS, PAPER[s], strict=True)}
    tasks = [task for task in TASKS if any((task, system) in ours for system in systems)]
    lines = [(t, *(f"{ours[t, s]:.2f} / {theirs[t, s]:.2f}" if (t, s) in ours else "" for s in systems)) for t in tasks]
    means = [
        f"{fmean(ours[t, s] for t in tasks):.2f} / {fmean(theirs[t, s] for t in tasks):.2f}"
        if all((t, s) in ours for t in tasks)
        else ""
        for s in systems
    ]
    note = "MRR x 100, ours / the paper's (Qwen2.5-3B-Instruct). Splits are by user and query here, and ties are ties."
    return Table("Beside the paper", ("task", *systems), [*lines, (AVERAGE, *means)] if tasks else [], note)


def embedded(study: Study) -> bool:
    """Whether the data are the embedded ones, which only share their names with the paper's tasks."""
    return any(source.source == "mini" for source in study.sources)
