"""Rewards of the user's own: what they are asked, what they are worth, and runs that train by them."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from r1ranker.errors import ConfigError, DataError
from r1ranker.io.config import RunConfig
from r1ranker.io.problems import write_jsonl
from r1ranker.problem import Answer, Candidate, Problem, Splits
from r1ranker.rewards import kind_of, score_ranking, score_removal
from r1ranker.training.algorithms.moved_up import moved_up
from r1ranker.training.checkpoint import checkpoints
from r1ranker.training.logs import read_log
from r1ranker.training.ppo import train
from r1ranker.training.start import rewarded
from r1ranker.training.verl.reward import compute_score
from r1ranker.training.verl.settings import hydra_file
from test_cli import fail

ROOT = Path(__file__).parents[1]
GOOD = "<think>x</think>\n<answer>[1]</answer>"
OWN = """
import math
def worth(problem, pool): return {k: 10.0 * k - 3 for k in pool}
def half(problem, pool): return {k: 1.0 for k in list(pool)[1:]}
def by_docid(problem, pool): return [problem.candidate(k).docid for k in pool]
def level(problem, pool): return dict.fromkeys(pool, 7)
def nan(problem, pool): return dict.fromkeys(pool, math.nan)
def judged(answer, problem, pool): return float(sum(answer.ids)) / len(pool)
def worse(answer, problem, pool): return 0.0 if problem.is_relevant(answer.ids[0]) else -1.0
def infinite(answer, problem, pool): return math.inf
def nothing(answer, problem, pool): pass
def fails(answer, problem, pool): return answer.ids[99]
def one(answer): return 1.0
def keyword(answer, problem, *, pool): return 1.0
number = 3
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's in the working directory, which is not on the path."""
    here = tmp_path / "work"
    here.mkdir()
    (here / "mine.py").write_text(OWN)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    yield here
    sys.modules.pop("mine", None)
    kind_of.cache_clear()
    importlib.invalidate_caches()


def problem(n: int = 3, qid: str = "q1") -> Problem:
    candidates = tuple(Candidate(f"d{k}", f"text {k}") for k in range(1, n + 1))
    return Problem(qid, "t", "passage", candidates, query="q", gains={"d1": 1})


def removal(kind: str, k: int, ask: str = "worst", pool: tuple[int, ...] = (1, 2, 3)) -> float:
    return score_removal(GOOD, Answer("valid", (k,)), problem(), pool, kind, ask).total  # type: ignore[arg-type]


def test_a_table_stands_where_gains_stand() -> None:
    assert [removal("mine:worth", k) for k in (1, 2, 3)] == [1.0, 0.5, 0.0]
    assert [removal("mine:worth", k, "best") for k in (1, 2, 3)] == [0.0, 0.5, 1.0]
    assert removal("mine:worth", 2, pool=(2, 3)) == 1.0
    assert {removal("mine:level", k, ask) for k in (1, 2, 3) for ask in ("worst", "best")} == {1.0}
    best = 1 + 0.5 / math.log2(3)
    listed = score_ranking(GOOD, Answer("valid", (2, 3, 1)), problem(), (1, 2, 3), "mine:worth")
    assert listed.parts["ranking"] == pytest.approx((0.5 + 1 / math.log2(3)) / best)
    moves = moved_up((2, 3, 1), problem(), "mine:worth")
    assert moves[0][2] == pytest.approx(listed.total) and moves[0][3] == pytest.approx(1.0)


def test_a_judgement_is_of_one_answer_and_broken_ones_are_not_asked_about() -> None:
    assert removal("mine:judged", 2) == removal("mine:judged", 2, "best") == pytest.approx(2 / 3)
    for kind, value in (("unknown_id", -0.5), ("missing", -1.0), ("malformed", -1.0), ("truncated", -1.0)):
        broken = Answer(kind)  # type: ignore[arg-type]
        assert score_removal(GOOD, broken, problem(), (1, 2, 3), "mine:fails").total == value
        assert score_ranking(GOOD, broken, problem(), (1, 2, 3), "mine:fails").total == value
    assert score_ranking(GOOD, Answer("valid", (3, 2, 1)), problem(), (1, 2, 3), "mine:judged").total == 2.0
    part = score_ranking(GOOD, Answer("incomplete", (3,)), problem(), (1, 2, 3), "mine:judged").total
    assert part == pytest.approx(1.0 - 2 / 3), "what a list leaves out is taken off as ever"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("absent:f", r"absent:f cannot be imported \(ModuleNotFoundError.*working directory"),
        ("mine:absent", "module mine has no function 'absent'"),
        ("mine:number", "has no function 'number'"),
        ("mine:one", r"takes \(answer\); it has to take \(problem, pool\) -> .* or \(answer, problem, pool\)"),
        ("mine:keyword", "it has to take"),
    ],
)
def test_a_reward_that_cannot_be_asked_stops_the_run_at_its_start(kind: str, why: str) -> None:
    config = RunConfig.model_validate({"ppo": {"reward": kind}})
    with pytest.raises(ConfigError, match=why):
        rewarded(config, [problem()])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("mine:half", "gives no worth to identifier 1, of problem 'q1', task 't'"),
        ("mine:by_docid", "returned a list, not {identifier: worth}"),
        ("mine:nan", "mine:nan returned nan, which is no finite number"),
        ("mine:infinite", "mine:infinite returned inf"),
        ("mine:nothing", "mine:nothing returned None"),
        ("mine:fails", r"mine:fails failed \(IndexError: "),
    ],
)
@pytest.mark.parametrize("design", ["iranker", "dranker"])
def test_a_reward_that_gives_no_number_stops_the_run_at_its_start(kind: str, why: str, design: str) -> None:
    config = RunConfig.model_validate({"design": design, "ppo": {"reward": kind}})
    with pytest.raises(DataError, match=why):
        rewarded(config, [problem()])


def test_lists_that_are_judged_as_a_whole_cannot_credit_all_answers() -> None:
    def run(design: str, kind: str) -> list[Problem]:
        ppo = {"reward": kind, "answer": "expected"}
        return rewarded(RunConfig.model_validate({"design": design, "ppo": ppo}), [problem()])

    with pytest.raises(ConfigError, match=r"mine:judged judges whole lists.*write it as a table.*ppo.answer=sampled"):
        run("dranker", "mine:judged")
    assert run("dranker", "mine:worth") and run("iranker", "mine:judged") and run("iranker", "mine:worth")


@pytest.mark.parametrize("objective", ["log", "listnet"])
def test_an_objective_that_takes_no_reward_below_0_says_so(
    objective: str, config: Callable[..., RunConfig], mini_splits: Splits
) -> None:
    ppo = {"reward": "mine:worse", "objective": objective, "answer": "expected", "critic": "head", "kl": 0.0}
    with pytest.raises(
        ConfigError, match=rf"objective={objective} takes rewards of 0 and more, and mine:worse gave -1"
    ):
        train(config(layout="blocks", ask="best", ppo=ppo), mini_splits)


def test_verl_scores_by_it_and_its_workers_find_it(tmp_path: Path) -> None:
    from r1ranker.io.problems import PROBLEM

    info = {"problem": PROBLEM.dump_json(problem()).decode()}
    text = "<think>x</think><answer>[3] > [2] > [1]</answer>"
    assert compute_score("t", text, "", info, kind="mine:worth")["score"] == 1.0
    config = RunConfig.model_validate({"ppo": {"reward": "mine:worth", "batch": 1, "minibatch": 1}})
    file = hydra_file(config, [problem()], [problem()], tmp_path)
    variables = file["ray_kwargs"]["ray_init"]["runtime_env"]["env_vars"]
    assert variables["PYTHONPATH"].split(os.pathsep)[0] == str(Path.cwd())


def test_a_command_finds_the_module_in_its_working_directory_and_stops_before_a_model_is_loaded(own: Path) -> None:
    assert str(own) not in sys.path
    write_jsonl([problem(qid=f"q{k}") for k in range(5)], own / "p.jsonl")
    run = ("train", "-s", "data.0.source=jsonl", "-s", "data.0.path=p.jsonl", "-s", "model=absent", "-s")
    assert "mine:nan returned nan" in fail(*run, "ppo.reward=mine:nan")
    assert "no function 'nun'" in fail(*run, "ppo.reward=mine:nun")


def test_prices_and_kinds_of_the_example() -> None:
    examples = importlib.import_module("examples.rewards")
    llms = (Candidate("a", "big, $2.00: all"), Candidate("b", "small, $0.50: quick"), Candidate("c", "free: none"))
    routed = Problem("q", "t", "routing", llms, query="q", gains={"a": 8, "b": 6})
    assert examples.price_aware(routed, (1, 2, 3)) == {1: 0.5, 2: 0.625, 3: 0.0}
    records = tuple(Candidate(d, f"{d} | {kind}") for d, kind in zip("abc", ("calm", "calm", "loud"), strict=True))
    films = Problem("q", "t", "recommendation", records, history=("x",), gains={"a": 1})
    one, other = (examples.diverse(Answer("valid", ids), films, (1, 2, 3)) for ids in ((1, 2, 3), (2, 1, 3)))
    assert one == pytest.approx(1 + 0.5 * 2 / 3) and one > other


RUNS = {
    "a table, all answers": ("price_aware", {"ppo": {"answer": "expected", "critic": "head"}}),
    "a table, lists, all answers": ("price_aware", {"design": "dranker", "ppo": {"answer": "expected", "group": 1}}),
    "a table, blocks": ("price_aware", {"layout": "blocks", "ask": "best", "ppo": {"answer": "expected", "kl": 0}}),
    "a judgement, lists": ("diverse", {"design": "dranker", "ppo": {"estimator": "grpo", "group": 4}}),
    "a judgement, centred": ("diverse", {"ask": "best", "ppo": {"centre": True, "critic": "head"}}),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_example_trains(name: str, config: Callable[..., RunConfig], mini_splits: Splits) -> None:
    function, settings = RUNS[name]
    scenario = {"price_aware": "routing", "diverse": "recommendation"}[function]
    own = {
        "reward": f"examples.rewards:{function}",
        "scenarios": [scenario],
        "steps": 2,
        "batch": 4,
        "minibatch": 4,
        "validate_problems": 0,
    }
    run = config(model="nano", **settings | {"ppo": settings["ppo"] | own})
    train(run, mini_splits)
    log = read_log(run.out)
    part = "ranking" if run.design == "dranker" else "selection" if run.ask == "best" else "exclusion"
    assert len(log) == 3 and all(math.isfinite(row["policy_loss"]) for row in log[1:])
    assert any(row[f"reward_{part}"] > 0 for row in log[1:])


def test_training_follows_the_table(config: Callable[..., RunConfig], make_problem: Callable[..., Problem]) -> None:
    """Gains say one thing and the table the other: the reward that is logged rises to the table's."""
    ppo = {"reward": "mine:worth", "answer": "expected", "critic": "head", "steps": 40, "actor_lr": 3e-3, "kl": 0.0}
    run = config(ppo=ppo | {"validate_problems": 0, "batch": 16, "minibatch": 16})
    torch.manual_seed(0)
    train(run, {"train": [make_problem(4, qid=f"q{n}", positive=4) for n in range(8)], "dev": [], "test": []})
    rewards = [row["reward"] for row in read_log(run.out) if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2


def test_a_run_does_not_go_on_with_another_function(
    config: Callable[..., RunConfig], make_problem: Callable[..., Problem]
) -> None:
    splits = {"train": [make_problem(3)], "dev": [make_problem(3, qid="d")], "test": []}
    run = config(ppo={"reward": "mine:worth", "steps": 1, "checkpoint_every": 1})
    train(run, splits)
    assert checkpoints(run.out)
    longer = run.model_copy(update={"ppo": run.ppo.model_copy(update={"steps": 2})})
    Path("mine.py").write_text(OWN.replace("10.0 * k", "-10.0 * k"))
    with pytest.raises(ConfigError, match="the file of mine:worth changed since it began"):
        train(longer, splits, resume=True)
    Path("mine.py").write_text(OWN)
    train(longer, splits, resume=True)


def test_a_name_of_no_form_is_refused_by_the_config() -> None:
    with pytest.raises(ValueError, match="'papr' is neither paper nor graded nor module:function"):
        RunConfig.model_validate({"ppo": {"reward": "papr"}})
    assert (
        json.loads(RunConfig.model_validate({"ppo": {"reward": "a.b:c"}}).model_dump_json())["ppo"]["reward"] == "a.b:c"
    )
