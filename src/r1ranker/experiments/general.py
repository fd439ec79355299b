"""What else the model can do, before and after training (paper, out of domain). In: a `Study`. Out: results.

lm-evaluation-harness asks and judges. At paper scale the tasks are the paper's eight, from their public sources; at
the other scales a task that needs no network: which of a few passages continues a question, by likelihood a character
(of whole passages the shortest would be the likeliest, whatever the model knows). It is written to `tasks/` as the
harness reads it, so it is also an example of a task of your own.

Each task's values by item are kept in a file as soon as they are known, and a run that was stopped goes on behind
them. `results.json` has the rows of `base`, `trained`, and of `difference`: trained minus base by item.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from r1ranker.backends.loading import load
from r1ranker.errors import BackendError, ConfigError
from r1ranker.evaluation import table
from r1ranker.evaluation.results import AVERAGE, Comparison, Row, TaskValues, comparison, rows_of, write_results
from r1ranker.experiments.report import Table, save_tables
from r1ranker.experiments.study import Study
from r1ranker.io.config import RunConfig
from r1ranker.io.documents import read_json
from r1ranker.io.extras import library
from r1ranker.io.files import write_whole
from r1ranker.io.provenance import provenance
from r1ranker.problem import Problem, by_task

BASE, TRAINED, DIFFERENCE = "base", "trained", "difference"
MEASURE = "accuracy"
"""Share of items answered right, whatever the harness calls it."""
CODE_ALLOWED = "HF_ALLOW_CODE_EVAL"
"""Environment variable; 1 allows to run programs that the model wrote."""
BATCH = 16


@dataclass(frozen=True, slots=True)
class Task:
    """A task of the harness. value, filter: which of its values of an item counts.

    chance: expected accuracy of a guess. paper: before and after, x 100. chat: asked through the chat template.
    runs_code: the answers are programs, which are run.
    """

    name: str
    value: str = "acc"
    filter: str = "none"
    chance: float = 0.0
    paper: tuple[float, float] | None = None
    chat: bool = False
    runs_code: bool = False


PAPER = (
    Task("gsm8k", "exact_match", "flexible-extract", paper=(63.5, 73.7)),
    Task("ifeval", "prompt_level_strict_acc", paper=(68.0, 71.2), chat=True),
    Task("mathqa", chance=0.2, paper=(35.4, 38.6)),
    Task("mmlu", chance=0.25, paper=(65.4, 65.1)),
    Task("mbpp", "pass_at_1", paper=(52.8, 45.6), runs_code=True),
    Task("humaneval", "pass@1", "create_test", paper=(47.6, 45.7), runs_code=True),
    Task("openbookqa", chance=0.25, paper=(32.8, 33.0)),
    Task("hellaswag", chance=0.25, paper=(56.3, 56.3)),
)
"""arXiv 2506.21638, out of domain; Qwen2.5-3B-Instruct. It does not say which values it reports: these are ours."""


def general(study: Study) -> None:
    """Ask both models every task, save rows, tests and a table, and print it."""
    harness()
    tasks = PAPER if study.size.public else write_tasks(study.problems("test"), study.out / "tasks")
    allowed = [task for task in tasks if not task.runs_code or os.environ.get(CODE_ALLOWED) == "1"]
    trained = study.trained(["design=iranker"])
    known = study.out / trained.parent.name  # named by all that went into both models
    values = {
        system: _values(study, model, allowed, known / system)
        for system, model in ((BASE, study.config.model), (TRAINED, str(trained)))
    }
    _save(study, values, tasks)


def harness() -> Any:
    """The library. Raises BackendError with the remedy where it is not installed."""
    for part in ("lm_eval.models.huggingface", "lm_eval.tasks"):
        library(part, "general", "a general task")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # else a page about each task
    return library("lm_eval", "general")


def write_tasks(problems: Sequence[Problem], folder: Path) -> list[Task]:
    """A multiple-choice task of each passage task: a YAML for the harness, and its items as JSON Lines.

    Of problems with one relevant candidate; the choices are the passages. Raises ConfigError where there are none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks: list[Task] = []
    for name, of_task in by_task([p for p in problems if p.scenario == "passage"]).items():
        items = [item for item in map(_item, of_task) if item is not None]
        if items:
            chance = sum(1 / len(item["choices"]) for item in items) / len(items)
            tasks.append(Task(f"choice-{name}", "acc_norm", chance=chance))
            _write_task(folder / f"choice-{name}.yaml", items)
    if not tasks:
        raise ConfigError("data: no test problem asks for one passage, so there is no general task to make of them")
    return tasks


def _item(problem: Problem) -> dict[str, Any] | None:
    relevant = [k for k in problem.identifiers if problem.is_relevant(k)]
    if len(relevant) != 1:
        return None
    choices = [candidate.text for candidate in problem.candidates]
    return {"question": problem.query, "choices": choices, "answer": relevant[0] - 1}


def _write_task(path: Path, items: Sequence[Mapping[str, Any]]) -> None:
    data = path.with_suffix(".jsonl").absolute()
    data.write_text("".join(f"{json.dumps(item)}\n" for item in items), encoding="utf-8")
    settings = {
        "task": path.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(data.parent / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\n",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _values(study: Study, model: str, tasks: Sequence[Task], folder: Path) -> TaskValues:
    """Values of one model by task, measure and item: those on disk, and for the others the harness is asked.

    A task that cannot be run does not stop the others; BackendError names all of those at the end.
    """
    suffix = f"-first-{study.limit}.json" if study.limit else ".json"
    files = {task: folder / f"{task.name}{suffix}" for task in tasks}
    missing = {task: file for task, file in files.items() if not file.is_file()}
    asked = asker(model, study.config) if missing else None
    written = study.out / "tasks"
    failed: list[str] = []
    for task, file in missing.items():
        try:
            values = ask(asked, task, study.limit, written if written.is_dir() else None)
        except (OSError, ImportError, ValueError) as error:
            failed.append(f"{task.name}: {str(error).strip().splitlines()[0]}")
            continue
        write_whole(file, json.dumps(values))
    if failed:
        remedy = "look whether their data can be had from here, then run the same again: what is done stays"
        raise BackendError(f"{model} could not be asked some tasks; {remedy}\n" + "\n".join(failed))
    return {task.name: {MEASURE: read_json(file)} for task, file in files.items()}


def asker(model: str, config: RunConfig) -> Any:
    """A model as the harness wants it, loaded as everywhere in this package."""
    network, tokenizer = load(model, config.device, config.dtype, config.threads)
    return harness().models.huggingface.HFLM(pretrained=network, tokenizer=tokenizer, batch_size=BATCH)


def ask(model: Any, task: Task, limit: int | None, folder: Path | None = None) -> dict[str, float]:
    """What a model (see `asker`) earns on each item of a task, 0 or 1, by the item's name.

    limit: items asked, of a group's tasks each so many. folder: of the task, where the harness does not bring it.
    """
    lm_eval = harness()
    # Its own tasks are thousands of files, which take a while to look through.
    manager = lm_eval.tasks.TaskManager(include_path=folder, include_defaults=folder is None)
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[task.name],
        limit=limit,
        task_manager=manager,
        apply_chat_template=task.chat and bool(model.tokenizer.chat_template),
        bootstrap_iters=0,
        confirm_run_unsafe_code=task.runs_code,
    )
    values = {
        f"{part}/{item['doc_id']}": float(item[task.value])
        for part, items in found["samples"].items()
        for item in items
        if item["filter"] == task.filter and task.value in item
    }
    if not values:
        raise ValueError(f"the harness {version('lm_eval')} gives no {task.value!r} by its filter {task.filter!r}")
    return values


def _save(study: Study, values: Mapping[str, TaskValues], tasks: Sequence[Task]) -> None:
    rows = [row for system, known in values.items() for row in rows_of(system, "test", known)]
    rows += rows_of(DIFFERENCE, "test", _differences(values))
    tests = comparison(BASE, values, measures=[MEASURE])
    origin = provenance() | {"settings": study.settings | {"lm_eval": version("lm_eval")}}
    write_results(study.out / "results.json", rows, {"per_query": values, "comparisons": tests, "provenance": origin})
    save_tables(study.out, [before_and_after(rows, tests, tasks)])
    Console().print(table.results_table(rows, tests, [MEASURE]))


def _differences(values: Mapping[str, TaskValues]) -> TaskValues:
    base, trained = values[BASE], values[TRAINED]
    return {
        task: {MEASURE: {item: value - base[task][MEASURE][item] for item, value in of_task[MEASURE].items()}}
        for task, of_task in trained.items()
    }


def before_and_after(rows: Sequence[Row], tests: Sequence[Comparison], tasks: Sequence[Task]) -> Table:
    """Accuracy x 100 by task: before, after, the difference with its interval, and what a guess and the paper have."""
    found = {(row.task, row.system): row for row in rows}
    marks = {test.task: table.stars(test) for test in tests}
    lines = []
    asked = {task.name: task for task in tasks if (task.name, BASE) in found}
    for name in table.tasks_of(rows):
        before, after, change = (found[name, system] for system in (BASE, TRAINED, DIFFERENCE))
        task = asked.get(name, Task(AVERAGE))
        guess = f"{100 * task.chance:.1f}" if task.chance else ""
        theirs = " → ".join(f"{value:.1f}" for value in task.paper or ())
        interval = f"{100 * change.value:+.1f} [{100 * change.ci_low:+.1f}, {100 * change.ci_high:+.1f}] {marks[name]}"
        measured = (f"{100 * before.value:.1f}", f"{100 * after.value:.1f}", interval.strip())
        lines.append((name, str(before.n), guess, *measured, theirs))
    columns = ("task", "items", "guess", BASE, TRAINED, DIFFERENCE, "paper")
    left_out = [task.name for task in tasks if task.name not in asked]
    note = (
        "Accuracy x 100; difference with its 95 % bootstrap interval by item, * p < 0.05, ** p < 0.01 (paired "
        "randomisation, Holm), ↓ worse."
    )
    if left_out:
        note += f" Not asked, since they run what the model writes: {', '.join(left_out)}; {CODE_ALLOWED}=1 allows it."
    return Table("General tasks", columns, lines, note)
