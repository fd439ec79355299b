"""Systems to compare: baselines, and models as rankers. In: problems. Out: rankings by system, and a result's files.

    iranker = ModelSystem("iranker", "iranker", "runs/x/model")
    evaluate_systems(["random", "prior", iranker], problems, out=Path("runs/eval"))

Next in the data flow: `results` and `report`.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from r1ranker.baselines import BASELINES
from r1ranker.errors import ConfigError
from r1ranker.evaluation.measures import by_task
from r1ranker.evaluation.report import Trace, write_report
from r1ranker.evaluation.results import (
    Comparison,
    Row,
    TaskValues,
    comparison,
    rows_of,
    score,
    write_csv,
    write_results,
)
from r1ranker.evaluation.runs import check_names, write_run
from r1ranker.problem import Problem, Ranking
from r1ranker.prompts import Design
from r1ranker.provenance import provenance
from r1ranker.spec import RankerSpec, parse_spec
from r1ranker.training.config import RunConfig


@dataclass(frozen=True, slots=True)
class ModelSystem:
    """A model used as a ranker, under the name it has in results."""

    name: str
    spec: RankerSpec


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out, for a caller that goes on in Python."""

    rows: list[Row]
    comparisons: list[Comparison]
    rankings: dict[str, list[Ranking]]


def rank_with(system: str | ModelSystem, problems: Sequence[Problem], *, progress: bool = False) -> list[Ranking]:
    """Rankings by a baseline (its name) or by a model."""
    if isinstance(system, str):
        if system not in BASELINES:
            raise ConfigError(f"unknown baseline {system!r}; there are {', '.join(BASELINES)}")
        return BASELINES[system](problems)
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
        if isinstance(system, str) and system not in BASELINES:
            raise ConfigError(f"unknown baseline {system!r}; there are {', '.join(BASELINES)}")
    names = [*given, *map(name_of, systems)]
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigError(f"the system name {name!r} is taken: {times} systems have it; rename one")
        if name.split() != [name] or "/" in name or name.startswith("."):
            raise ConfigError(f"system {name!r}: run files and their tags are named so; no spaces, '/' or leading dot")
    if baseline not in names:
        raise ConfigError(f"no system {baseline!r} to test against; there are {', '.join(names)}")


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
    workers: int = 1,
) -> Evaluation:
    """Rank with every system and write results.json, results.csv, per_query.json, runs/ and report.html to `out`.

    `given` holds rankings that exist already (run files), by name. `baseline` names the system that all
    others are tested against.
    """
    check_systems(systems, given or (), baseline)
    check_names(problems)
    rankings = dict(given or {}) | rank_all(systems, problems, workers=workers)
    values: dict[str, TaskValues] = {name: score(of_system, problems) for name, of_system in rankings.items()}
    rows = [row for name, of_system in values.items() for row in rows_of(name, split, of_system)]
    tests = comparison(baseline, values)
    origin = provenance() | {
        "settings": dict(settings or {}),
        "systems": [_describe(s) for s in (*(given or ()), *systems)],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_results(out / "results.json", rows, {"per_query": values, "comparisons": tests, "provenance": origin})
    write_csv(out / "results.csv", rows)
    (out / "runs").mkdir(exist_ok=True)
    for name, of_system in rankings.items():
        write_run(of_system, out / "runs" / f"{name}.trec", name)
    write_report(
        out / "report.html",
        rows=rows,
        comparisons=tests,
        curves=dict(curves or {}),
        traces=pick_traces(problems, rankings),
        provenance=origin,
        title=title,
    )
    return Evaluation(rows, tests, rankings)


def pick_traces(
    problems: Sequence[Problem], rankings: Mapping[str, list[Ranking]], per_scenario: int = 2
) -> list[Trace]:
    """The first problem of a few tasks of each scenario, as the last elimination system ranked it."""
    name = next((n for n in reversed(list(rankings)) if any(len(r.steps) > 1 for r in rankings[n])), None)
    if name is None:
        return []
    by_qid = {ranking.qid: ranking for ranking in rankings[name]}
    taken: dict[str, int] = {}
    traces = []
    for of_task in by_task(problems).values():
        problem = of_task[0]
        taken[problem.scenario] = taken.get(problem.scenario, 0) + 1
        if taken[problem.scenario] <= per_scenario and problem.qid in by_qid:
            traces.append(Trace(problem, by_qid[problem.qid], name))
    return traces


def _describe(system: str | ModelSystem) -> dict[str, Any]:
    return {"name": system} if isinstance(system, str) else dataclasses.asdict(system)


def read_per_query(out: Path) -> dict[str, TaskValues]:
    """The per-query values of a finished evaluation: system, task, measure, qid."""
    path = out / "per_query.json"
    if not path.is_file():
        raise ConfigError(f"{out} holds no per_query.json; give the --out folder of a finished `r1ranker evaluate`")
    values: dict[str, TaskValues] = json.loads(path.read_text())
    return values
