"""A log of calls as routing problems: what each call cost counts, and nothing is made up for who did not answer."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1ranker.datasets import llmrouter, load, routing_log
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Problem, Splits

LLMS = {
    "small": {"size": "7B", "feature": "Quick.", "input_price": 0.1, "output_price": 0.2},
    "large": {"size": "70B", "feature": "Careful.", "input_price": 1.0, "output_price": 2.0},
    "other": {"size": "", "feature": "", "input_price": 0.5, "output_price": 0.5},
}


def call(prompt: str, model: str, score: float | None, cost: float | None = 0.001, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "model": model, "score": score, "cost": cost} | more


def calls(n: int = 12) -> list[dict[str, Any]]:
    return [
        call(f"question {q}", model, float((q + i) % 2), 0.001 * (i + 1), prompt_tokens=9, completion_tokens=20, time=q)
        for q in range(n)
        for i, model in enumerate(("small", "large"))
    ]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def all_of(splits: Splits) -> dict[str, Problem]:
    return {problem.qid: problem for problems in splits.values() for problem in problems}


def of(path: Path, **options: Any) -> dict[str, Problem]:
    return all_of(load("routing-log", path, **options))


def test_a_prompt_is_a_problem_of_each_objective_in_one_split(tmp_path: Path) -> None:
    splits = load("routing-log", write(tmp_path / "log.jsonl", calls()))
    assert {problem.task for problem in splits["test"]} == {"route-performance", "route-balance", "route-cost"}
    assert len({problem.group for problems in splits.values() for problem in problems}) == 12
    problem = all_of(splits)["q2:performance"]
    assert (problem.query, problem.scenario, problem.relevant_at) == ("question 1", "routing", 10)
    assert problem.gains == {"small": 10, "large": 0}
    assert {candidate.text for candidate in problem.candidates} == {"small", "large"}
    assert set(problem.prior) == {"small", "large"}


def test_a_log_means_what_the_same_outcomes_do(tmp_path: Path) -> None:
    folder = tmp_path / "router"
    folder.mkdir()
    (folder / "llm_candidates.json").write_text(json.dumps({name: LLMS[name] for name in ("small", "large")}))
    rows = calls()
    write(
        folder / "outcomes.jsonl",
        [
            {
                "question": rows[k]["prompt"],
                "scores": {row["model"]: row["score"] for row in rows[k : k + 2]},
                "cost_usd": {row["model"]: row["cost"] for row in rows[k : k + 2]},
            }
            for k in range(0, len(rows), 2)
        ],
    )
    (tmp_path / "llms.json").write_text(json.dumps(LLMS))
    ours = of(write(tmp_path / "log.jsonl", rows), llms="llms.json").values()
    theirs = all_of(llmrouter.load(folder)).values()
    known = {(p.query, p.objective): (dict(p.gains), {c.text for c in p.candidates}) for p in theirs}
    assert {(p.query, p.objective): (dict(p.gains), {c.text for c in p.candidates}) for p in ours} == known
    assert any("7B | $0.10 in, $0.20 out per million tokens | Quick." in c.text for p in ours for c in p.candidates)


def test_what_each_call_cost_decides_not_the_price(tmp_path: Path) -> None:
    rows = [*calls(), call("long", "small", 1.0, 0.9), call("long", "large", 1.0, 0.1)]
    found = {p.task: p.gains for p in of(write(tmp_path / "log.jsonl", rows)).values() if p.query == "long"}
    assert found == {"route-balance": {"small": 0, "large": 10}, "route-cost": {"small": 0, "large": 10}}


def test_a_pool_is_the_llms_that_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*calls(), call("three", "small", 0.0), call("three", "large", 0.5), call("three", "other", 1.0)]
    rows += [call("alone", "small", 1.0), call("unsaid", "small", 1.0), call("unsaid", "large", None)]
    with caplog.at_level(logging.INFO):
        problems = of(write(tmp_path / "log.jsonl", rows), objectives=["performance"])
    pools = {p.query: {c.docid for c in p.candidates} for p in problems.values()}
    assert pools["three"] == {"small", "large", "other"}
    assert pools["question 1"] == {"small", "large"}
    assert "alone" not in pools and "unsaid" not in pools
    assert "1 calls have no score and are left out" in caplog.text
    assert "2 of 15 prompts were answered by one LLM alone, and left out" in caplog.text


def test_calls_that_ask_again_count_by_their_mean(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*calls(), call("again", "small", 1.0, 0.002), call("again", "large", 0.6, 0.004)]
    rows += [call("again", "small", 0.0, 0.006)]
    with caplog.at_level(logging.INFO):
        problems = of(write(tmp_path / "log.jsonl", rows), objectives=["performance"])
    assert next(p for p in problems.values() if p.query == "again").gains == {"small": 0, "large": 10}
    assert "1 calls ask an LLM a prompt again" in caplog.text
    qid = next(qid for qid, p in problems.items() if p.query == "again")
    assert routing_log.outcomes(tmp_path / "log.jsonl", [qid])[qid] == {"small": (0.5, 1.0), "large": (0.6, 1.0)}


def test_a_cost_that_is_left_out_is_that_of_the_tokens(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "cost"} for row in calls()]
    log = write(tmp_path / "log.jsonl", rows)
    with pytest.raises(
        DataError, match=r"log\.jsonl:1: has no cost; write it, or give its prompt_tokens .*option llms"
    ):
        of(log)
    unpriced = of(log, objectives=["performance"])
    assert unpriced and of(log, objectives=[1])
    assert routing_log.outcomes(log, unpriced) == {}, "what is not known is not 0"
    (tmp_path / "llms.json").write_text(json.dumps(LLMS))
    priced = of(log, llms="llms.json")
    assert priced.keys() == of(write(tmp_path / "log.jsonl", calls())).keys()
    found = routing_log.read_calls(log, routing_log.read_llms(tmp_path / "llms.json"))
    assert next(found).cost == 0.001  # the one that is written
    write(log, rows)
    found = routing_log.read_calls(log, routing_log.read_llms(tmp_path / "llms.json"))
    assert next(found).cost == pytest.approx((9 * 0.1 + 20 * 0.2) / 1e6)


def test_a_folder_holds_parts_of_one_log_and_llm_is_another_word_for_model(tmp_path: Path) -> None:
    rows = calls()
    whole = of(write(tmp_path / "log.jsonl", rows))
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "1.jsonl", rows[:7])
    write(tmp_path / "parts" / "2.jsonl", [{"llm": row.pop("model"), **row} for row in rows[7:]])
    assert of(tmp_path / "parts") == whole


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"model": "small", "score": 1}, r"log\.jsonl:25: needs a prompt, a text; there are model, score"),
        (call(" ", "small", 1.0), "needs a prompt"),
        ({"prompt": "x", "score": 1}, r"needs a model, the name of an LLM without white space, not None"),
        (call("x", "two words", 1.0), "without white space, not 'two words'"),
        (call("x", "small", 3.0), r"log\.jsonl:25: score: 3 is not from 0 to 1"),
        (call("x", "small", float("nan")), r"log\.jsonl:25: not JSON \(NaN is not a finite number"),
        (call("x", "small", 1.0, -0.1), r"cost: -0\.1 is below 0"),
        (call("x", "small", "good"), r"score: 'good' is not a finite number"),  # type: ignore[arg-type]
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        of(write(tmp_path / "log.jsonl", [*calls(), row]))


def test_other_faults(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", [call("a", "small", 1.0), call("b", "large", 0.0)])
    with pytest.raises(DataError, match="no prompt has scores of two LLMs, so none can be compared"):
        of(log)
    with pytest.raises(ConfigError, match="objectives: 'speed' is not one of performance, balance, cost"):
        of(log, objectives=["speed"])
    write(log, [*calls(), call("a", "new", 1.0)])
    (tmp_path / "llms.json").write_text(json.dumps(LLMS))
    with pytest.raises(DataError, match=r"log\.jsonl:25: LLM 'new' is not in llms\.json; add it there"):
        of(log, llms="llms.json")
    with pytest.raises(DataError, match=r"has no gone\.json; name the file by the option llms"):
        of(log, llms="gone.json")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"source 'routing-log': .*none: has no \*\.jsonl; expected: JSON Lines"):
        of(tmp_path / "none")


NAME = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=6)
PROMPT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
ROWS = st.lists(st.tuples(PROMPT, NAME, st.floats(0, 1), st.floats(0, 10)), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(rows=ROWS)
def test_any_log_gives_the_pools_that_stand_in_it_with_the_best_first(
    rows: list[tuple[str, str, float, float]],
) -> None:
    seen: dict[str, dict[str, list[float]]] = {}
    for prompt, model, score, _ in rows:
        seen.setdefault(prompt.strip(), {}).setdefault(model, []).append(score)
    with tempfile.TemporaryDirectory() as folder:
        log = write(Path(folder) / "log.jsonl", [call(*row) for row in rows])
        try:
            problems = of(log, objectives=["performance"]).values()
        except DataError as error:
            assert "no prompt has scores of two LLMs" in str(error)
            assert all(len(models) == 1 for models in seen.values())
            return
    for problem in problems:
        models = {model: fmean(scores) for model, scores in seen[problem.query].items()}
        assert {candidate.docid for candidate in problem.candidates} == models.keys()
        best = {docid for docid, gain in problem.gains.items() if gain == 10}
        assert {m for m, score in models.items() if score == max(models.values())} <= best
