"""Training on two scenarios, testing on the third. In: a `Study`. Out: results and `tables.json`.

Each task is ranked by the model whose training held no problem of its scenario, by the model before training, and by
one that was trained on all scenarios with as many tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from r1ranker.backends.models import NANO
from r1ranker.errors import ConfigError
from r1ranker.evaluation.results import Row
from r1ranker.evaluation.table import SHOWN
from r1ranker.experiments.main import beside_paper, differences, embedded
from r1ranker.experiments.report import Table, read_comparisons, results_table, save_tables
from r1ranker.experiments.study import SHORT, Study
from r1ranker.io.files import replacing
from r1ranker.io.problems import write_jsonl
from r1ranker.problem import Ranking, scenario_names
from r1ranker.training.logs import read_log

PAIRS = (("zero-shot", "untrained"), ("full", "untrained"), ("zero-shot", "full"))


def zero_shot(study: Study) -> None:
    """Train without each scenario in turn and with all, evaluate, save the tables."""
    test = study.problems("test")
    scenarios = scenario_names(test)
    if len(scenarios) < 2:
        raise ConfigError(f"zero-shot leaves a scenario out, and the data hold only {', '.join(scenarios) or 'none'}")
    budget = f"ppo.token_budget={study.budget(SHORT)}"
    # Which scenarios earn rewards is what is compared here, whatever the base run says.
    base = ["design=iranker", budget, f"ppo.scenarios={json.dumps(scenarios)}"]
    without = {scenario: _data_without(study, scenario) for scenario in scenarios}
    starts = {scenario: _start(study, data) for scenario, data in without.items()}
    variants = [[*base, data, f"model={json.dumps(starts[s])}"] for s, data in without.items()]
    *models, full = study.trained_all([*variants, base])
    trained = dict(zip(scenarios, models, strict=True))
    given: dict[str, list[Ranking]] = {"untrained": [], "zero-shot": [], "full": []}
    for scenario in scenarios:
        by_name = {"untrained": starts[scenario], "zero-shot": str(trained[scenario]), "full": str(full)}
        systems = [study.system(name, "iranker", model) for name, model in by_name.items()]
        for name, rankings in study.rankings(systems, [p for p in test if p.scenario == scenario]).items():
            given[name] += rankings
    curves = {f"without {scenario}": read_log(model.parent) for scenario, model in trained.items()}
    rows = study.evaluate(
        ["random", "prior"],
        test,
        given=given,
        baseline="untrained",
        title=f"R1-Ranker, zero-shot ({study.scale})",
        curves=curves | {"full": read_log(full.parent)},
        settings={"ppo": study.changed(base).model_dump(mode="json")["ppo"]},
    )
    save_tables(study.out, _tables(study, rows))


def _tables(study: Study, rows: Sequence[Row]) -> list[Table]:
    about = "Only reinforcement learning leaves the scenario out; the model it starts from is the same for all tasks."
    if study.config.model == NANO:
        about = "Zero-shot is of reinforcement learning only: the embedded model's start has seen all three scenarios."
    if study.config.warmstart.scratch:
        about = "The supervised start, tokenizer included, leaves the scenario out too."
    about = f"zero-shot and full: {study.budget(SHORT):,} training tokens each. {about}"
    tables = [
        results_table("Trained on the other scenarios", rows, read_comparisons(study.out), about, SHOWN),
        _with_share(differences("Zero-shot, differences in MRR", rows, study.out, PAIRS), rows),
    ]
    return tables if embedded(study) else [*tables, beside_paper(rows, ("zero-shot",))]


def _with_share(table: Table, rows: Sequence[Row]) -> Table:
    """A column more: how much of what full training gains is reached without the scenario."""
    mrr = {(row.task, row.system): row.value for row in rows if row.measure == "MRR"}
    lines = [(*line, _share(mrr, line[0])) for line in table.rows]
    return replace(table, columns=(*table.columns, "share of the full gain"), rows=lines)


def _share(mrr: Mapping[tuple[str, str], float], task: str) -> str:
    if (task, "full") not in mrr:
        return ""
    gain, most = (mrr[task, system] - mrr[task, "untrained"] for system in ("zero-shot", "full"))
    return f"{gain / most:.0%}" if most > 0 else "none gained"


def _data_without(study: Study, scenario: str) -> str:
    """An override: training and dev problems of all other scenarios, as files."""
    digest = study.digest({"data": study.config.model_dump(mode="json")["data"]})
    folder = study.models.with_name("data") / f"without-{scenario}-{digest}"
    for split in ("train", "dev"):
        with replacing(folder / f"{split}.jsonl") as fresh:
            # One file holds all sources, and two of them may name a user alike.
            left = [p for p in study.problems(split) if p.scenario != scenario]
            write_jsonl([replace(p, group=f"{p.task}:{p.group}") for p in left], fresh)
    return f"data={json.dumps([{'source': 'jsonl', 'path': str(folder)}])}"


def _start(study: Study, data: str) -> str:
    """The model to start from: made without the scenario where models are made from nothing."""
    scratch = study.config.warmstart.scratch
    return str(study.warmstarted([data])) if scratch else study.config.model
