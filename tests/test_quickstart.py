"""The quickstart from its first line to its page, on a few problems; and what an elimination looks like."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from r1ranker.cli import app
from r1ranker.datasets import mini
from r1ranker.evaluation.results import Row
from r1ranker.evaluation.steps import bars, steps_shown
from r1ranker.experiments import quickstart
from r1ranker.experiments.quickstart import DESIGNS, QuickstartResult, quickstart_config, run_quickstart, tasks_ahead
from r1ranker.io.config import RunConfig
from r1ranker.io.problems import write_jsonl
from r1ranker.problem import Answer, Problem, Ranking, Splits, Step
from r1ranker.prompts import Design
from r1ranker.training.logs import read_log

MakeProblem = Callable[..., Problem]


def rendered(shown: RenderableType) -> str:
    Console(width=200, file=(text := StringIO())).print(shown)
    return text.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, mini_splits: Splits) -> tuple[Path, QuickstartResult, list[str]]:
    """A quickstart of two updates on two problems of each task: its folder, what came out, what it told meanwhile."""
    out, data = tmp_path_factory.mktemp("quickstart") / "out", tmp_path_factory.mktemp("data")
    for split, problems in mini_splits.items():
        write_jsonl(problems, data / f"{split}.jsonl")
    real, told = quickstart.quickstart_config, list[str]()

    def few(design: Design, out: Path, seed: int, tokens: int | None) -> RunConfig:
        of_files = {"data": [{"source": "jsonl", "path": data}]}
        return RunConfig.model_validate(real(design, out, seed, tokens).model_dump(exclude_unset=True) | of_files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "quickstart_config", few)
        result = run_quickstart(
            out, tokens=2500, tell=lambda what: told.append(what if isinstance(what, str) else rendered(what))
        )
    return out, result, told


def test_a_quickstart_compares_every_system_before_and_after_training(
    finished: tuple[Path, QuickstartResult, list[str]],
) -> None:
    out, result, _ = finished
    systems = {"random", "prior", "bm25", "base-direct", "base-iterative", "dranker", "iranker"}
    assert {row.system for row in result.rows} == systems
    assert result.tasks == 9 and result.ahead.keys() == set(DESIGNS)
    for design in DESIGNS:
        assert (out / design / "model" / "model.safetensors").is_file()
        assert read_log(out / design)[-1]["tokens"] >= 2500


def test_before_training_the_model_is_asked_as_it_was_made_and_the_page_says_so(
    finished: tuple[Path, QuickstartResult, list[str]],
) -> None:
    out, result, _ = finished
    calls = {row.system: row.value for row in result.rows if (row.task, row.measure) == ("rec-movie", "calls")}
    assert calls["base-iterative"] == 19  # a prompt for each step; in blocks one pass serves all
    assert calls["iranker"] == 1
    assert "base-iterative are the model before RL in its own best way" in (out / "report.html").read_text()
    assert any("own best way" in note for note in json.loads((out / "provenance.json").read_text())["notes"])


def test_it_says_what_it_does_and_shows_results_before_training_ends(
    finished: tuple[Path, QuickstartResult, list[str]],
) -> None:
    *_, told = finished
    assert "2,500 tokens each" in told[0] and "minutes on two idle cores" in told[0]
    assert told[1].startswith("MRR of what needs no training, 18 test queries: random 0.")
    assert "leaves, the worst first" in told[3]
    trained = next(i for i, text in enumerate(told) if text.startswith("Trained"))
    assert trained > 3
    for design in DESIGNS:
        lines = [text for text in told[:trained] if text.startswith(f"  {design}: dev MRR")]
        assert len(lines) >= 2 and lines[0].endswith("after 0 tokens")


def test_a_quickstart_written_over_tells_nothing_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "iranker" / "log.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 0, "dev_mrr": 0.5}\n')
    seen: list[bool] = []
    monkeypatch.setattr(quickstart, "_train_and_rank", lambda *_: seen.append(log.exists()) or ([], {}))
    with pytest.raises(Exception):  # noqa: B017 - there is nothing to evaluate
        run_quickstart(tmp_path)
    assert seen == [False]


def test_both_designs_are_trained_in_blocks_on_equal_tokens(tmp_path: Path) -> None:
    runs = [quickstart_config(design, tmp_path, 3, None) for design in DESIGNS]
    assert {(run.layout, run.ask, run.ppo.answer, run.seed) for run in runs} == {("blocks", "best", "expected", 3)}
    assert len({run.ppo.token_budget for run in runs}) == 1
    assert quickstart_config("iranker", tmp_path, 0, 77).ppo.token_budget == 77


def test_a_task_counts_only_where_a_system_is_above_all_others() -> None:
    values = {"a": (0.5, 0.4, 0.3), "b": (0.5, 0.4, 0.6), "c": (0.5, 0.5, 0.1), "average": (0.5, 0.1, 0.1)}
    rows = [
        Row(task, system, "test", "MRR", value, 1, value, value)
        for task, of_task in values.items()
        for system, value in zip(("iranker", "random", "prior"), of_task, strict=True)
    ]
    assert tasks_ahead(rows, "iranker") == 1


def test_the_bundled_examples_are_test_problems_of_every_scenario() -> None:
    test = {problem.qid: problem for problem in mini.load()["test"]}
    assert {problem.scenario for problem in mini.examples()} == {"recommendation", "routing", "passage"}
    assert all(problem == test[problem.qid] for problem in mini.examples())


def test_a_bar_stands_for_each_candidate_and_a_dot_for_who_has_left() -> None:
    step = Step((1, 3, 4), Answer("valid", (3,)), (3,), probabilities={1: 0.0, 3: 0.6, 4: 0.3})
    assert bars((1, 2, 3, 4), step) == "▁·█▅"


@pytest.mark.parametrize(("removed", "heading"), [((2, 1), "leaves, the worst first"), ((3, 1), "selected, the best")])
def test_steps_say_who_left_and_whether_as_the_worst_or_the_best(
    removed: tuple[int, int], heading: str, make_problem: MakeProblem
) -> None:
    problem = make_problem(3, positive=3)
    left = tuple(k for k in (1, 2, 3) if k != removed[0])
    steps = (
        Step((1, 2, 3), Answer("valid", removed[:1]), removed[:1], probabilities={1: 0.1, 2: 0.2, 3: 0.7}),
        Step(left, Answer("valid", removed[1:]), removed[1:], probabilities={left[0]: 0.5, left[1]: 0.5}),
    )
    order = tuple(problem.candidate(k).docid for k in (3, 1, 2))
    text = rendered(steps_shown(problem, Ranking(problem.qid, order, (3.0, 2.0, 1.0), steps)))
    assert heading in text
    assert f"[{removed[0]}] {problem.candidate(removed[0]).text}" in text
    assert "order: [3] [1] [2]; the first relevant one at place 1" in text


def test_demo_shows_an_elimination_of_each_scenario(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--json", str(tmp_path / "demo.json")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    rankings = json.loads((tmp_path / "demo.json").read_text())
    assert [len(ranking["steps"]) for ranking in rankings] == [len(p.candidates) - 1 for p in mini.examples()]
    for problem in mini.examples():
        assert problem.task in result.output
    for ranking in rankings:
        for step in ranking["steps"]:
            assert len(step["probabilities"]) == len(step["pool"]) and set(step["removed"]) <= set(step["pool"])
