"""General tasks through lm-evaluation-harness: a task of our own, values by item, before and after."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from r1ranker.backends.loading import load
from r1ranker.errors import BackendError, ConfigError
from r1ranker.evaluation.results import comparison, read_results, rows_of
from r1ranker.experiments import general as experiment
from r1ranker.experiments.general import PAPER, Task, ask, asker, before_and_after, general, harness, write_tasks
from r1ranker.experiments.study import Study
from r1ranker.io.config import RunConfig, load_config
from r1ranker.io.problems import write_jsonl
from r1ranker.problem import Problem

MakeProblem = Callable[..., Problem]
pytestmark = pytest.mark.filterwarnings("default")  # the harness and its libraries warn


def test_without_the_harness_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(BackendError, match=r"pip install 'r1-ranker\[general\]'"):
        harness()


def test_a_task_is_made_of_problems_with_one_relevant_passage(tmp_path: Path, make_problem: MakeProblem) -> None:
    several = make_problem(4, qid="q2", gains={"d1": 1, "d2": 1})
    routing = make_problem(4, qid="q3", task="route", scenario="routing")
    tasks = write_tasks([make_problem(4, positive=3), several, routing, make_problem(2, qid="q4")], tmp_path)
    assert tasks == [Task("choice-toy", "acc_norm", chance=(1 / 4 + 1 / 2) / 2)]
    items = [json.loads(line) for line in (tmp_path / "choice-toy.jsonl").read_text().splitlines()]
    assert [item["answer"] for item in items] == [2, 0]
    assert items[0]["choices"][2] == "text good number 3"
    with pytest.raises(ConfigError, match="no general task"):
        write_tasks([routing], tmp_path)


@pytest.fixture(scope="module")
def lm_eval() -> None:
    pytest.importorskip("lm_eval")


def likeliest(directory: Path, problem: Problem) -> int:
    """The passage with the highest likelihood a character behind the question, computed here."""
    network, tokenizer = load(str(directory), "cpu")
    sums = []
    for candidate in problem.candidates:
        context = tokenizer(f"{problem.query}\n")["input_ids"]
        whole = tokenizer(f"{problem.query}\n{candidate.text}")["input_ids"]
        with torch.no_grad():
            logprobs = network(torch.tensor([whole])).logits[0].log_softmax(-1)
        sums.append(
            math.fsum(float(logprobs[t - 1, whole[t]]) for t in range(len(context), len(whole))) / len(candidate.text)
        )
    return max(problem.identifiers, key=lambda k: sums[k - 1])


@pytest.mark.usefixtures("lm_eval")
def test_an_item_is_right_when_its_passage_is_likeliest_for_its_length(
    tmp_path: Path, tiny_dir: Path, make_problem: MakeProblem
) -> None:
    problems = [make_problem(4, positive=1 + i % 4, qid=f"q{i}") for i in range(8)]
    (task,) = write_tasks(problems, tmp_path)
    model = asker(str(tiny_dir), RunConfig(device="cpu"))
    values = ask(model, task, None, tmp_path)
    expected = [float(p.is_relevant(likeliest(tiny_dir, p))) for p in problems]
    assert values == {f"choice-toy/{i}": value for i, value in enumerate(expected)}
    assert ask(model, task, 3, tmp_path) == dict(list(values.items())[:3])
    with pytest.raises(ValueError, match="gives no 'pass@1'"):
        ask(model, Task("choice-toy", "pass@1"), None, tmp_path)


@pytest.mark.usefixtures("lm_eval")
def test_the_experiment_asks_both_models_and_is_found_done(
    tmp_path: Path, tiny_dir: Path, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(tmp_path, tiny_dir, make_problem)
    general(study)
    rows = {(row.task, row.system): row for row in read_results(study.out / "results.json")}
    assert {task for task, _ in rows} == {"choice-owls", "choice-foxes", "average"}
    for task in ("choice-owls", "choice-foxes", "average"):
        before, after, change = (rows[task, system] for system in ("base", "trained", "difference"))
        assert change.value == pytest.approx(after.value - before.value)
        assert change.ci_low <= change.value <= change.ci_high
    assert json.loads((study.out / "provenance.json").read_text())["settings"]["lm_eval"]
    (table,) = json.loads((study.out / "tables.json").read_text())
    assert [line[0] for line in table["rows"]] == ["choice-owls", "choice-foxes", "average"]

    def again(*args: object, **settings: object) -> None:
        raise AssertionError("what is done is not asked again")

    monkeypatch.setattr(experiment, "ask", again)
    general(study)
    assert {(row.task, row.system): row for row in read_results(study.out / "results.json")} == rows


@pytest.mark.usefixtures("lm_eval")
def test_a_task_that_cannot_be_had_is_named_and_the_others_are_kept(
    tmp_path: Path, tiny_dir: Path, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def half_broken(model: object, task: Task, *rest: object) -> dict[str, float]:
        asked.append(task.name)
        if task.name == "choice-owls":
            raise OSError("no network\nand more")
        return {"a": 1.0}

    monkeypatch.setattr(experiment, "ask", half_broken)
    study = small_study(tmp_path, tiny_dir, make_problem)
    for _ in range(2):
        with pytest.raises(BackendError, match=r"(?s)run the same again.*choice-owls: no network$"):
            general(study)
    assert asked == ["choice-owls", "choice-foxes", "choice-owls"]


def small_study(folder: Path, model: Path, make_problem: MakeProblem) -> Study:
    for split in ("train", "test"):
        problems = [
            make_problem(3, positive=1 + i % 3, qid=f"{split}-{task}-{i}", task=task)
            for task in ("owls", "foxes")
            for i in range(6)
        ]
        write_jsonl(problems, folder / f"{split}.jsonl")
    data = f"data=[{{source: jsonl, path: {json.dumps(str(folder))}}}]"
    ppo = ("ppo.steps=1", "ppo.token_budget=1000", "ppo.critic=head", "ppo.batch=4", "ppo.minibatch=4")
    config = load_config(None, [f"model={json.dumps(str(model))}", data, "think=false", "device=cpu", *ppo])
    return Study("general", "small", config, folder / "out" / "general", folder / "out" / "models", limit=None)


def test_the_table_names_what_was_not_asked() -> None:
    values = {
        "base": {"gsm8k": {"accuracy": {str(i): float(i % 2) for i in range(20)}}},
        "trained": {"gsm8k": {"accuracy": {str(i): 1.0 for i in range(20)}}},
        "difference": {"gsm8k": {"accuracy": {str(i): 1.0 - i % 2 for i in range(20)}}},
    }
    rows = [row for system, known in values.items() for row in rows_of(system, "test", known)]
    tests = comparison("base", {system: values[system] for system in ("base", "trained")}, measures=["accuracy"])
    table = before_and_after(rows, tests, [task for task in PAPER if task.name in ("gsm8k", "mbpp")])
    ((name, items, guess, base, trained, change, paper),) = table.rows
    assert (name, items, guess, base, trained, paper) == ("gsm8k", "20", "", "50.0", "100.0", "63.5 → 73.7")
    assert change.startswith("+50.0 [") and change.endswith("] **")
    assert "mbpp; HF_ALLOW_CODE_EVAL=1" in table.note


@pytest.mark.usefixtures("lm_eval")
def test_the_harness_brings_the_papers_tasks() -> None:
    folder = Path(harness().tasks.__file__).parent
    for task in PAPER:
        names = (line for path in (folder / task.name).rglob("*.yaml") for line in path.read_text().splitlines())
        assert {f"task: {task.name}", f"group: {task.name}"} & set(names), task.name
