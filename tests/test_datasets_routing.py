"""Routing problems: utilities, ties, the prior from training questions, splits by question text."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from r1ranker.datasets import llmrouter
from r1ranker.datasets.common import check_disjoint
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Answer, Problem, Splits
from r1ranker.rewards import RewardPart, graded_selection_reward, kind_of

LLMS = {
    "small": {
        "size": "7B",
        "feature": "Small and quick. Costs only $9.",
        "input_price": 0.1,
        "output_price": 0.1,
    },
    "middle": {"size": "9B", "feature": "All-round v1.5 model.", "input_price": 0.2, "output_price": 0.3},
    "large": {"size": "70B", "feature": "Thorough.", "input_price": 0.4, "output_price": 0.6},
    "unscored": {"size": "900B", "feature": "Never asked.", "input_price": 9.0, "output_price": 9.0},
}
SCORES = [
    {"small": 1.0, "middle": 1.0, "large": 0.0},
    {"small": 0.0, "middle": 0.5, "large": 1.0},
    {"small": 0.0, "middle": 0.0, "large": 0.0},
]


def write(path: Path, rows: list[dict[str, Any]] | None = None, llms: Mapping[str, Any] = LLMS) -> Path:
    if rows is None:
        rows = [{"question": f"question {n}", "scores": SCORES[n % 3], "cluster_id": 0} for n in range(60)]
    (path / "llm_candidates.json").write_text(json.dumps(llms))
    (path / "train.json").write_text(json.dumps(rows))
    return path


def by_task(splits: Splits) -> dict[tuple[str, int], Problem]:
    """Problems by objective and kind of question (the row modulo 3)."""
    return {(p.task.removeprefix("route-"), int(p.group[1:]) % 3): p for ps in splits.values() for p in ps}


def test_every_best_llm_is_relevant_and_the_others_are_graded(tmp_path: Path) -> None:
    problems = by_task(llmrouter.load(write(tmp_path)))
    assert problems["performance", 0].gains == {"small": 10, "middle": 10, "large": 0}
    assert problems["performance", 1].gains == {"small": 0, "middle": 4, "large": 10}
    # Costs are 0.2, 0.5 and 1 of the largest sum of prices among the LLMs that have scores.
    assert problems["balance", 0].gains == {"small": 10, "middle": 7, "large": 0}
    assert problems["cost", 2].gains == {"small": 10, "middle": 5, "large": 0}
    assert {p.relevant_at for p in problems.values()} == {10}


def test_questions_where_all_tie_are_dropped_for_that_objective_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    splits = llmrouter.load(write(tmp_path))
    counts = {task: sum(p.task == task for ps in splits.values() for p in ps) for task in TASKS}
    assert counts == {"route-performance": 40, "route-balance": 60, "route-cost": 60}
    assert "questions where all LLMs tie are dropped" in caplog.text


TASKS = ("route-performance", "route-balance", "route-cost")


def test_the_prior_is_the_average_utility_over_training_questions(tmp_path: Path) -> None:
    path = write(tmp_path)
    splits = llmrouter.load(path)
    trained = [int(p.group[1:]) for p in splits["train"] if p.task == "route-cost"]
    expected = sum(0.2 * SCORES[row % 3]["middle"] - 0.8 * 0.5 for row in trained) / len(trained)
    for problem in (p for ps in splits.values() for p in ps if p.task == "route-cost"):
        assert problem.prior["middle"] == pytest.approx(expected)

    # Scores of test questions must not move it.
    tested = {int(p.group[1:]) for p in splits["test"]}
    rows = json.loads((path / "train.json").read_text())
    for row in tested:
        rows[row]["scores"] = {"small": 0.3, "middle": 0.9, "large": 0.1}
    changed = llmrouter.load(write(tmp_path, rows))
    assert changed["train"] == splits["train"]
    assert changed["test"] != splits["test"]


def test_a_question_is_on_one_side_for_all_objectives(tmp_path: Path) -> None:
    splits = llmrouter.load(write(tmp_path))
    check_disjoint(splits)
    texts = {split: {p.query for p in problems} for split, problems in splits.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["dev"]
    assert not texts["dev"] & texts["test"]


def test_repeated_questions_collapse_and_cut_ones_stay_together(tmp_path: Path) -> None:
    same = [{"question": " twice ", "scores": SCORES[1]}, {"question": "twice", "scores": SCORES[1]}]
    long = [{"question": f"{'word ' * 30}{n}", "scores": SCORES[1]} for n in range(30)]
    splits = llmrouter.load(write(tmp_path, same + long), objectives=["cost"], max_query_chars=100)
    problems = [p for ps in splits.values() for p in ps]
    assert sum(p.query == "twice" for p in problems) == 1
    assert len(problems) == 31
    assert len({p.group for p in problems}) == 2
    assert all(len(p.query) <= 100 for p in problems)


def test_a_question_asked_twice_with_other_outcomes_is_refused(tmp_path: Path) -> None:
    rows = [{"question": "one", "scores": SCORES[0]}, {"question": " one", "scores": SCORES[1]}]
    with pytest.raises(DataError, match=r"train\.json: row 1: asks what .*train\.json: row 0 asks, with other"):
        llmrouter.load(write(tmp_path, rows))


CALLS = [
    {"small": 0.002, "middle": 0.001, "large": 0.01},
    {"small": 0.03, "middle": 0.012, "large": 0.006},
    {"small": 0.0, "middle": 0.0, "large": 0.0},
]


def write_outcomes(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    if rows is None:
        rows = [
            {"question": f"question {n}", "scores": SCORES[n % 3], "cost_usd": CALLS[n % 3], "source": "any"}
            for n in range(60)
        ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "outcomes.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return path


@pytest.mark.parametrize("alone", [True, False])
def test_the_cost_of_each_call_counts_where_it_is_known(tmp_path: Path, alone: bool) -> None:
    write_outcomes(write(tmp_path))
    if alone:
        (tmp_path / "train.json").unlink()
    problems = by_task(llmrouter.load(tmp_path))
    # On the second kind of question the large LLM is the cheapest and the best; costs are shares of the dearest call.
    assert problems["cost", 0].gains == {"small": 8, "middle": 10, "large": 0}
    assert problems["cost", 1].gains == {"small": 0, "middle": 6, "large": 10}
    assert ("cost", 2) not in problems  # nothing costs anything there: all LLMs tie
    assert problems["performance", 1].gains == {"small": 0, "middle": 4, "large": 10}
    known = llmrouter.outcomes(tmp_path, ["q1:cost", "u7:last", "q9999:cost"])
    assert known == {"q1:cost": {"small": (0.0, 1.0), "middle": (0.5, 0.4), "large": (1.0, 0.2)}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"scores": SCORES[0]}, "has no cost_usd"),
        ({"scores": SCORES[0], "cost_usd": {"small": 1.0}}, "cost_usd must hold a number for each LLM"),
        ({"scores": SCORES[0], "cost_usd": {**CALLS[0], "small": -1}}, "cost_usd of small: -1 is below 0"),
        ({"scores": SCORES[0], "cost_usd": {**CALLS[0], "small": None}}, "cost_usd of small: None is not a finite"),
        ({"scores": SCORES[1], "cost_usd": CALLS[0]}, r"the scores are not those of .*train\.json: row 0"),
        ({"question": "another", "scores": SCORES[0], "cost_usd": CALLS[0]}, "row 0: outcomes.jsonl.gz has no line"),
        ({"question": None, "scores": SCORES[0], "cost_usd": CALLS[0]}, "needs a question"),
    ],
)
def test_faults_of_outcomes_name_the_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    write(tmp_path, [{"question": "q", "scores": SCORES[0]}])
    with pytest.raises(DataError, match=rf"(outcomes\.jsonl\.gz:1|train\.json): {message}"):
        llmrouter.load(write_outcomes(tmp_path, [{"question": "q", **row}]))


def test_an_objective_may_be_any_weight_of_quality(tmp_path: Path) -> None:
    problems = by_task(llmrouter.load(write(tmp_path), objectives=[0, 0.5, 0.9, 1, "balance"]))
    # Utilities at 0.9 are 0.88, 0.85 and -0.1, then -0.02, 0.4 and 0.8; a gain is 1000 less what is lost to the best.
    assert problems["0.9", 0].gains == {"small": 1000, "middle": 970, "large": 20}
    assert problems["0.9", 1].gains == {"small": 180, "middle": 600, "large": 1000}
    assert problems["0.9", 2].gains == {"small": 1000, "middle": 970, "large": 920}
    assert problems["0", 1].gains == {"small": 1000, "middle": 700, "large": 200}
    assert problems["1", 1].gains == {"small": 0, "middle": 500, "large": 1000} and ("1", 2) not in problems
    assert problems["balance", 0].gains == {"small": 10, "middle": 7, "large": 0}, "a name keeps its gains"
    assert {p.relevant_at for (task, _), p in problems.items() if task != "balance"} == {1000}
    assert {task: p.objective for (task, kind), p in problems.items() if kind == 1} == {
        "0": "Only price matters: quality 0%, price 100%.",
        "0.5": "Quality and price matter equally: quality 50%, price 50%.",
        "0.9": "Quality matters most: quality 90%, price 10%.",
        "1": "Only answer quality matters: quality 100%, price 0%.",
        "balance": "Quality and price matter equally.",
    }
    assert llmrouter.objective_for("0.125").sentence == "Price matters most: quality 12.5%, price 87.5%."
    splits = llmrouter.load(tmp_path, objectives=[0.9])
    rows = [int(p.group[1:]) for p in splits["train"]]
    expected = sum(0.9 * SCORES[row % 3]["large"] - 0.1 for row in rows) / len(rows)
    assert splits["test"][0].prior["large"] == pytest.approx(expected)
    assert llmrouter.outcomes(tmp_path, ["q1:0.9"]) == {
        "q1:0.9": {"small": (0.0, 0.2), "middle": (0.5, 0.5), "large": (1.0, 1.0)}
    }


def test_a_loss_that_is_not_none_is_never_relevant(tmp_path: Path) -> None:
    problems = by_task(llmrouter.load(write(tmp_path), objectives=[0.9999]))
    assert problems["0.9999", 2].gains == {"small": 1000, "middle": 999, "large": 999}


def test_the_worth_of_an_answer_weighs_right_ones_above_small_prices(tmp_path: Path) -> None:
    """The dearest LLM is right on two of five questions where the cheapest is wrong; at 0.95 it is worth its price."""
    llms = {name: {"input_price": price, "output_price": price} for name, price in (("cheap", 1), ("dear", 10))}
    rows = [{"question": f"question {n}", "scores": {"cheap": 0.0, "dear": float(n % 5 < 2)}} for n in range(60)]
    splits = llmrouter.load(write(tmp_path, rows, llms), objectives=[0.95])
    problems = [problem for of_split in splits.values() for problem in of_split]

    def mean(reward: RewardPart, llm: str) -> float:
        each = [
            reward(Answer("valid", (k,)), problem, problem.identifiers)
            for problem in problems
            for k in problem.identifiers
            if problem.candidate(k).docid == llm
        ]
        return sum(each) / len(problems)

    assert mean(llmrouter.worth, "dear") - mean(llmrouter.worth, "cheap") == pytest.approx(0.4 * 0.95 - 0.05 * 0.9)
    assert mean(graded_selection_reward, "dear") < mean(graded_selection_reward, "cheap")
    assert kind_of("r1ranker.datasets.llmrouter:worth").selection(Answer("missing", ()), problems[0], (1, 2)) == -1


def test_two_folders_can_stand_in_one_run_under_names_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path)
    usual, other = llmrouter.load(path), llmrouter.load(path, task="route-exam")
    for one, two in zip(usual["test"], other["test"], strict=True):
        assert two.task == one.task.replace("route", "route-exam")
        assert (two.qid, two.group) == (f"route-exam:{one.qid}", f"route-exam:{one.group}")
        assert (two.candidates, two.gains, two.prior) == (one.candidates, one.gains, one.prior)
    qids = [problem.qid for problem in (usual["test"][0], other["test"][0])]
    assert [list(llmrouter.outcomes(path, qids, task)) for task in ("route", "route-exam")] == [[q] for q in qids]


def test_an_llm_never_asked_in_training_has_no_prior(tmp_path: Path) -> None:
    path = write(tmp_path)
    tested = {int(problem.group[1:]) for problem in llmrouter.load(path)["test"]}
    rows = json.loads((path / "train.json").read_text())
    for row in tested:
        rows[row]["scores"]["unscored"] = 1.0
    problem = llmrouter.load(write(tmp_path, rows))["test"][0]
    assert problem.prior.keys() == {"small", "middle", "large"}
    assert len(problem.candidates) == 4


def test_null_is_never_a_word(tmp_path: Path) -> None:
    llms = {**LLMS, "small": {"size": None, "feature": None, "input_price": 0.1, "output_price": 0.1}}
    problem = llmrouter.load(write(tmp_path, llms=llms))["train"][0]
    texts = {candidate.docid: candidate.text for candidate in problem.candidates}
    assert texts["small"] == "small | $0.10 in, $0.10 out per million tokens"


def test_what_the_model_reads(tmp_path: Path) -> None:
    problems = by_task(llmrouter.load(write(tmp_path)))
    texts = {c.docid: c.text for c in problems["cost", 0].candidates}
    assert texts["small"] == "small | 7B | $0.10 in, $0.10 out per million tokens | Small and quick."
    assert texts["middle"] == "middle | 9B | $0.20 in, $0.30 out per million tokens | All-round v1.5 model."
    assert "unscored" not in texts
    assert problems["performance", 0].objective == "Only answer quality matters."
    assert problems["balance", 0].objective == "Quality and price matter equally."
    assert problems["cost", 0].objective == "Price matters most."


def test_pools_are_shuffled_by_the_seed_and_limited_per_task(tmp_path: Path) -> None:
    path = write(tmp_path)
    splits = llmrouter.load(path, limit=5)
    assert splits == llmrouter.load(path, limit=5)
    assert len(splits["train"]) == 15
    assert len({tuple(c.docid for c in p.candidates) for p in llmrouter.load(path)["train"]}) > 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "q"}], "row 0: needs a question and numeric scores"),
        ([{"question": "q", "scores": {"ghost": 1.0}}], "row 0: LLM 'ghost' is not in llm_candidates.json"),
        ([{"question": "q", "scores": {"small": "good"}}], "row 0: needs"),
        ([{"question": "q", "scores": {"small": None}}], "row 0: needs .*; small: None is not a finite number"),
        ([{"question": None, "scores": {"small": 1.0}}], "row 0: needs a question"),
        ([{"question": " ", "scores": {"small": 1.0}}], "row 0: needs a question"),
        ([{"question": "q", "scores": {}}], "row 0: needs a question and numeric scores"),
        (["q"], "row 0: needs a question"),
        ([{"question": "q", "scores": {"small": 71}}], "row 0: needs .*; small: 71 is not from 0 to 1, .*; scale it"),
        ([{"question": "q", "scores": {"small": -0.5}}], r"small: -0\.5 is not from 0 to 1"),
    ],
)
def test_faults_name_the_row(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        llmrouter.load(write(tmp_path, rows))


def test_other_faults(tmp_path: Path) -> None:
    for wish in ("speed", 1.5, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=f"{wish!r} is not one of performance.* and no weight of quality from 0"):
            llmrouter.load(write(tmp_path), objectives=[wish])
    with pytest.raises(DataError, match="lacks a numeric price"):
        llmrouter.load(write(tmp_path, llms={**LLMS, "small": {"size": "7B"}}))
    for price in (None, "cheap", -1, True):
        with pytest.raises(DataError, match="'small' lacks a numeric price: input_price"):
            llmrouter.load(write(tmp_path, llms={**LLMS, "small": {"input_price": price, "output_price": 1}}))
    write(tmp_path)
    for text, message in (
        ('[{"question": "q", "scores": {"small": NaN}}]', "not a finite number"),
        ('[{"question": "q", "scores": {"small": 1, "small": 0}}]', "key 'small' stands twice"),
        ("{}", "the outermost value must be a list"),
    ):
        (tmp_path / "train.json").write_text(text)
        with pytest.raises(DataError, match=rf"train\.json: .*{message}"):
            llmrouter.load(tmp_path)
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(DataError, match=r"train\.json: not JSON"):
        llmrouter.load(tmp_path)
