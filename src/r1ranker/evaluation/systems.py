"""Systems to compare: baselines, and models as rankers. In: problems. Out: rankings by system, and a result's files.

    iranker = ModelSystem("iranker", RankerSpec(design="iranker", model="runs/x/model"))
    evaluate_systems(["random", "prior", iranker], problems, out=Path("runs/eval"))

Next in the data flow: `results` and `report`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from r1ranker.baselines import BASELINES
from r1ranker.baselines.ordering import undecided_by_coin
from r1ranker.baselines.simple import NO_PRIOR, has_prior, without_prior
from r1ranker.baselines.specialists import SPECIALISTS, serves
from r1ranker.errors import ConfigError, DataError
from r1ranker.evaluation.report import Trace, write_report
from r1ranker.evaluation.results import (
    Comparison,
    Row,
    TaskValues,
    all_rows,
    comparison,
    score,
    units_of,
    write_csv,
    write_results,
)
from r1ranker.evaluation.significance import Units
from r1ranker.io.config import RunConfig
from r1ranker.io.documents import read_json
from r1ranker.io.provenance import provenance
from r1ranker.io.runs import check_names, write_run
from r1ranker.problem import Problem, Ranking, by_task
from r1ranker.prompts import Design
from r1ranker.ranking.spec import RankerSpec, parse_spec

KNOWN = (*BASELINES, *SPECIALISTS)
"""Baselines by name; specialists learn from training problems."""
STANDING_IN = ("bm25", "random")
"""What differences are tested against where there is no prior; it is said."""


@dataclass(frozen=True, slots=True)
class ModelSystem:
    """A model used as a ranker, under the name it has in results."""

    name: str
    spec: RankerSpec


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out, for a caller that goes on in Python. notes: what a reader of the figures has to know."""

    rows: list[Row]
    comparisons: list[Comparison]
    rankings: dict[str, list[Ranking]]
    notes: list[str]


def rank_with(
    system: str | ModelSystem, problems: Sequence[Problem], train: Sequence[Problem] = (), *, progress: bool = False
) -> list[Ranking]:
    """Rankings by a baseline (its name) or by a model. A specialist learns from `train`."""
    if isinstance(system, str):
        _check_known(system)
        return SPECIALISTS[system].rank(train, problems) if system in SPECIALISTS else BASELINES[system](problems)
    return system.spec.build().rank_many(problems, progress=system.name if progress else "")


def parse_system(text: str, config: RunConfig) -> ModelSystem:
    """`NAME=DESIGN:MODEL` and any settings of a `RankerSpec`, such as `fast=iranker:nano,layout=append,top_k=5`.

    Whether it thinks, its layout and its device are the config's where the text does not say.
    """
    name, equals, rest = text.partition("=")
    (ranker, *pairs) = rest.split(",")
    design, colon, model = ranker.partition(":")
    if not (name and equals and colon and model) or design not in ("dranker", "iranker"):
        raise ConfigError(f"system {text!r}: give NAME=DESIGN:MODEL with design dranker or iranker")
    base = model_system(name, "dranker" if design == "dranker" else "iranker", model, config)
    return ModelSystem(name, parse_spec(base.spec, pairs))


def model_system(name: str, design: Design, model: str, config: RunConfig) -> ModelSystem:
    """A system that ranks as the config says; in the way the model was trained in where the config names none."""
    own = {key: value for key, value in config.way.items() if key in config.model_fields_set}
    return ModelSystem(
        name,
        RankerSpec(
            design=design,
            model=model,
            think=config.think,
            **own,  # type: ignore[arg-type]
            max_new_tokens=config.ppo.max_new_tokens,
            device=config.device,
            dtype=config.dtype,
        ),
    )


def check_systems(systems: Sequence[str | ModelSystem], given: Iterable[str], baseline: str) -> None:
    """ConfigError for an unknown baseline, for a name that is taken or that no file can have, and for a `baseline` to
    test against that is not among all; `given` names rankings that exist already."""
    for system in systems:
        if isinstance(system, str):
            _check_known(system)
    names = [*given, *map(name_of, systems)]
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigError(f"the system name {name!r} is taken: {times} systems have it; rename one")
        if name.split() != [name] or "/" in name or name.startswith("."):
            raise ConfigError(f"system {name!r}: run files and their tags are named so; no spaces, '/' or leading dot")
    if baseline not in names and not (baseline == "prior" and {*STANDING_IN} & {*names}):
        there = ", ".join(names) or "none: name some by --baselines or --system"
        raise ConfigError(f"no system {baseline!r} to test against (--against); there are {there}")


def _check_known(baseline: str) -> None:
    if baseline not in KNOWN:
        near = difflib.get_close_matches(baseline, KNOWN, n=1)
        there = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KNOWN)}"
        raise ConfigError(f"unknown baseline {baseline!r}; {there}")


def name_of(system: str | ModelSystem) -> str:
    """The name a system has in results."""
    return system if isinstance(system, str) else system.name


def rank_all(
    systems: Sequence[str | ModelSystem], problems: Sequence[Problem], *, workers: int = 1
) -> dict[str, list[Ranking]]:
    """Rankings by system name; with several workers, each system in a process of its own."""
    names = [name_of(system) for system in systems]
    if workers == 1:
        return {name: rank_with(s, problems, progress=True) for name, s in zip(names, systems, strict=True)}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return dict(zip(names, pool.map(rank_with, systems, [problems] * len(systems)), strict=True))


def evaluate_systems(
    systems: Sequence[str | ModelSystem],
    problems: Sequence[Problem],
    *,
    out: Path,
    split: str = "test",
    baseline: str = "prior",
    title: str = "R1-Ranker results",
    curves: Mapping[str, list[dict[str, Any]]] | None = None,
    settings: Mapping[str, Any] | None = None,
    given: Mapping[str, list[Ranking]] | None = None,
    models: Collection[str] = (),
    runs: Mapping[str, list[Ranking]] | None = None,
    train: Sequence[Problem] = (),
    notes: Sequence[str] = (),
    workers: int = 1,
) -> Evaluation:
    """Rank with every system and write results.json, results.csv, per_query.json, runs/ and report.html to `out`.

    `given` holds rankings that exist already, by name; those that `models` names were made by asking a model.
    `runs` holds those of run files, whose cost nobody knows. `train`: what specialists learn from; each has rows of the
    tasks that it serves and that have training problems. `baseline` names the system that all others are tested
    against. Tasks without a prior have no baseline of that name; where none has one, the next of `STANDING_IN` is
    tested against. `notes`: what else a reader has to know. Raises DataError where no candidate is relevant, so that
    nothing could be measured.
    """
    check_systems(systems, [*(runs or ()), *(given or ())], baseline)
    check_names(problems)
    given, runs = dict(given or {}), dict(runs or {})
    notes = [*notes, *_relevance(problems), *_matched(runs, problems)]
    wanted, asked, about = _who_ranks_what(systems, problems, train)
    ranked = _rank_wanted(wanted, asked, problems, train, workers)
    asking = {*models, *(system.name for system in wanted if isinstance(system, ModelSystem))}
    rankings = {
        name: _decided(of_system, problems, name) if name in asking else of_system
        for name, of_system in (runs | given | ranked).items()
    }
    values: dict[str, TaskValues] = {
        name: score(
            of_system,
            asked.get(name, problems) if name in ranked else problems,
            model=name in asking,
            costs=name not in runs,
        )
        for name, of_system in rankings.items()
    }
    units = units_of(problems)
    rows = all_rows(values, split, units)
    against, about_tests = _tested_against(baseline, values)
    notes += about + about_tests
    tests = comparison(against, values, units=units) if against else []
    origin = provenance() | {
        "settings": dict(settings or {}),
        "systems": [_describe(s) for s in (*runs, *given, *wanted)],
        "notes": notes,
    }
    found = Evaluation(rows, tests, rankings, notes)
    _write(out, found, values, units, origin, title=title, curves=curves or {}, traces=pick_traces(problems, rankings))
    return found


def _who_ranks_what(
    systems: Sequence[str | ModelSystem], problems: Sequence[Problem], train: Sequence[Problem]
) -> tuple[list[str | ModelSystem], dict[str, list[Problem]], list[str]]:
    """The systems that have something to rank; of those that cannot rank all problems, which; what is told of it."""
    wanted, by_prior, about_prior = _with_prior(systems, problems)
    asked, about_asked = _asked(wanted, problems, train)
    asked |= {"prior": by_prior}
    return [s for s in wanted if asked.get(name_of(s), problems)], asked, about_prior + about_asked


def _rank_wanted(
    wanted: Sequence[str | ModelSystem],
    asked: Mapping[str, list[Problem]],
    problems: Sequence[Problem],
    train: Sequence[Problem],
    workers: int,
) -> dict[str, list[Ranking]]:
    """Rankings in the order of the systems; those of a part first, since a specialist's library may be missing."""
    names = [name_of(system) for system in wanted]
    first = {name: rank_with(name, asked[name], train) for name in names if name in asked}
    others = rank_all([system for system in wanted if name_of(system) not in asked], problems, workers=workers)
    return {name: (first | others)[name] for name in names}


def _write(
    out: Path,
    found: Evaluation,
    values: Mapping[str, TaskValues],
    units: Units,
    origin: Mapping[str, Any],
    *,
    title: str,
    curves: Mapping[str, list[dict[str, Any]]],
    traces: Sequence[Trace],
) -> None:
    """All files of a result but its config."""
    out.mkdir(parents=True, exist_ok=True)
    extra = {"per_query": values, "units": units, "comparisons": found.comparisons, "provenance": origin}
    write_results(out / "results.json", found.rows, extra)
    write_csv(out / "results.csv", found.rows)
    (out / "runs").mkdir(exist_ok=True)
    for name, of_system in found.rankings.items():
        write_run(of_system, out / "runs" / f"{name}.trec", name)
    write_report(
        out / "report.html",
        rows=found.rows,
        comparisons=found.comparisons,
        curves=dict(curves),
        traces=traces,
        provenance=origin,
        title=title,
        notes=found.notes,
    )


def _with_prior(
    systems: Sequence[str | ModelSystem], problems: Sequence[Problem]
) -> tuple[list[str | ModelSystem], list[Problem], list[str]]:
    """The systems that can rank, the problems that the prior is for, and what is to be said about the others."""
    lacking = without_prior(problems)
    if "prior" not in systems or not any(not has_prior(problem) for problem in problems):
        return list(systems), list(problems), []
    known = [problem for problem in problems if problem.task not in lacking]
    unknown = sum(not has_prior(problem) for problem in known)
    reason = "the problems hold no scores of their candidates"
    notes = []
    if lacking:
        where = f" on {', '.join(lacking)}" if known else ""
        notes.append(f"{NO_PRIOR}{where}: {reason}, so there is no such row{' there' if known else ''}")
    if unknown:
        notes.append(f"{NO_PRIOR} for {unknown} of {len(known)} queries: there the row is a random order")
    return [system for system in systems if system != "prior" or known], known, notes


def _asked(
    systems: Sequence[str | ModelSystem], problems: Sequence[Problem], train: Sequence[Problem]
) -> tuple[dict[str, list[Problem]], list[str]]:
    """The problems each specialist can rank, by its name, and what is to be said about the others."""
    learnt, tasks = {problem.task for problem in train}, list(by_task(problems))
    asked: dict[str, list[Problem]] = {}
    notes = []
    for name in (system for system in systems if isinstance(system, str) and system in SPECIALISTS):
        asked[name] = [p for p in problems if serves(name, p) and p.task in learnt]
        ranked = {problem.task for problem in asked[name]}
        if left_out := [task for task in tasks if task not in ranked]:
            where = f" on {', '.join(left_out)}" if ranked else ""
            why = f"it ranks {' and '.join(SPECIALISTS[name].scenarios)} problems of tasks that have training problems"
            notes.append(f"no {name}{where}: {why}")
    return asked, notes


def _decided(rankings: Sequence[Ranking], problems: Sequence[Problem], system: str) -> list[Ranking]:
    """A model's rankings, places that no answer decided drawn by a coin."""
    by_qid = {problem.qid: problem for problem in problems}
    return [undecided_by_coin(by_qid[r.qid], r, system) if r.qid in by_qid else r for r in rankings]


def _relevance(problems: Sequence[Problem]) -> list[str]:
    """What is to be said about problems without a relevant candidate. DataError where none has one."""
    lost = [problem for problem in problems if not any(map(problem.is_relevant, problem.identifiers))]
    if problems and len(lost) == len(problems):
        raise DataError(
            f"no candidate of any of the {len(problems)} problems is relevant, so every measure would be 0: do the "
            "docids of `gains` and `candidates` belong together, and do gains reach relevant_at "
            f"({problems[0].relevant_at})?"
        )
    told = f"{len(lost)} of {len(problems)} queries have no relevant candidate and count 0 for every system"
    if found_nothing := sum(not problem.candidates for problem in lost):
        told += f" (the first stage found nothing at all for {found_nothing})"
    empty = sorted({problem.task for problem in lost} - {problem.task for problem in problems if problem not in lost})
    return [told + (f"; no query has one on {', '.join(empty)}" if empty else "")] if lost else []


def _matched(runs: Mapping[str, list[Ranking]], problems: Sequence[Problem]) -> list[str]:
    """What is to be said about run files that name other queries. DataError where one names nothing of ours."""
    known = {problem.qid: {candidate.docid for candidate in problem.candidates} for problem in problems}
    notes = []
    for name, rankings in runs.items():
        others = sum(ranking.qid not in known for ranking in rankings)
        if others == len(rankings):
            raise DataError(
                f"run {name}: none of its {others} queries is among the {len(known)} problems; is it theirs?"
            )
        if not any(known.get(ranking.qid, set()) & {*ranking.docids} for ranking in rankings):
            raise DataError(f"run {name}: none of its documents is a candidate of its query; is it of this collection?")
        if others:
            notes.append(f"{name}: {others} of its {len(rankings)} queries are not among the problems and do not count")
    return notes


def _tested_against(baseline: str, values: Mapping[str, TaskValues]) -> tuple[str | None, list[str]]:
    """The baseline that is there, and what is to be said where it is not the one asked for or lacks tasks."""
    if baseline in values:
        tasks = dict.fromkeys(task for of_system in values.values() for task in of_system)
        lacking = [task for task in tasks if task not in values[baseline]]
        return baseline, [f"no difference is tested on {', '.join(lacking)}"] if lacking else []
    found = next((name for name in STANDING_IN if name in values), None)
    instead = f"differences are tested against {found} instead" if found else "no difference is tested"
    return found, [instead]


def pick_traces(problems: Sequence[Problem], rankings: Mapping[str, list[Ranking]]) -> list[Trace]:
    """The first problem of two tasks of each scenario, as the last elimination system ranked it."""
    name = next((n for n in reversed(list(rankings)) if any(len(r.steps) > 1 for r in rankings[n])), None)
    if name is None:
        return []
    by_qid = {ranking.qid: ranking for ranking in rankings[name]}
    taken: dict[str, int] = {}
    traces = []
    for of_task in by_task(problems).values():
        problem = of_task[0]
        taken[problem.scenario] = taken.get(problem.scenario, 0) + 1
        if taken[problem.scenario] <= 2 and problem.qid in by_qid:
            traces.append(Trace(problem, by_qid[problem.qid], name))
    return traces


def _describe(system: str | ModelSystem) -> dict[str, Any]:
    return {"name": system} if isinstance(system, str) else dataclasses.asdict(system)


def read_per_query(out: Path) -> dict[str, TaskValues]:
    """The per-query values of a finished evaluation: system, task, measure, qid."""
    path = out / "per_query.json"
    if not path.is_file():
        raise ConfigError(f"{out} holds no per_query.json; give the --out folder of a finished `r1ranker evaluate`")
    values: dict[str, TaskValues] = read_json(path)
    return values


def read_units(out: Path) -> Units:
    """Which of a finished evaluation's queries share a unit, see `significance.Units`."""
    path = out / "units.json"
    units: dict[str, str] = read_json(path) if path.is_file() else {}
    return units


def read_baseline(out: Path) -> str:
    """The system that a finished evaluation tested the others against."""
    path = out / "comparisons.json"
    tests = read_json(path) if path.is_file() else []
    return str(tests[0]["baseline"]) if tests else "prior"
