"""`reproduce routing`: every question counts and is paid for, nothing is fitted to test questions, all is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from conftest import save_bert
from r1ranker.baselines.notes import load_splits
from r1ranker.cli.reproduce import reproduce
from r1ranker.datasets.common import split_groups
from r1ranker.errors import ConfigError, DataError
from r1ranker.evaluation.results import read_results
from r1ranker.experiments.routing_bench import BY_CALL, BY_PRICE, UNKNOWN, benches
from r1ranker.io.config import DataConfig

APP = typer.Typer()
APP.command()(reproduce)
LLMS = {
    name: {"size": "", "feature": "", "input_price": price, "output_price": price}
    for name, price in (("cheap", 1), ("middle", 2), ("dear", 4))
}
QUESTIONS = [f"{'sum' if n % 2 else 'poem'} number {n}" for n in range(60)]
SIDES = split_groups((f"q{n}" for n in range(60)), 0)


def scores_of(number: int) -> dict[str, float]:
    """Sums are for `cheap` and poems for `middle`, but on test `dear` alone is right; every tenth all are wrong."""
    if number % 10 == 0:
        return {"cheap": 0.0, "middle": 0.0, "dear": 0.0}
    if SIDES[f"q{number}"] == "test":
        return {"cheap": 0.0, "middle": 0.0, "dear": 1.0}
    return {"cheap": float(number % 2 == 1), "middle": float(number % 2 == 0), "dear": 0.0}


def row_of(number: int) -> dict[str, Any]:
    costs = {"cheap": 0.001, "middle": 0.002, "dear": 0.004 + number / 1e5}
    dataset = "maths" if number % 2 else "letters"
    return {"question": QUESTIONS[number], "scores": scores_of(number), "cost_usd": costs, "dataset": dataset}


def folder(path: Path) -> DataConfig:
    path.mkdir(parents=True, exist_ok=True)
    (path / "llm_candidates.json").write_text(json.dumps(LLMS))
    (path / "outcomes.jsonl").write_text("".join(json.dumps(row_of(n)) + "\n" for n in range(60)))
    return DataConfig(source="llmrouter", path=path, show=("prior",))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment on the folder, with a tiny encoder as MiniLM and with `nano` as a ranker under test."""
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("sklearn")
    root = tmp_path_factory.mktemp("routing")
    save_bert(root / "minilm")
    data = folder(root / "data").model_dump(mode="json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("R1RANKER_CACHE", str(root))
        given = ["routing", "--out", str(root / "out"), "-s", f"data={json.dumps([data])}", "-s", "model=nano"]
        result = CliRunner().invoke(APP, [*given, "--system", "mine=iranker:nano", "--json", str(root / "result.json")])
    assert result.exit_code == 0, result.output
    return root


def quality(root: Path, measure: str = "quality") -> dict[str, float]:
    rows = read_results(root / "out" / "routing" / "results.json")
    return {row.system: row.value for row in rows if row.measure == measure}


TEST = [number for number in range(60) if SIDES[f"q{number}"] == "test"]


def test_what_is_best_on_test_alone_is_chosen_by_the_oracle_alone(finished: Path) -> None:
    found = quality(finished)
    solvable = fmean(float(number % 10 != 0) for number in TEST)
    assert 0 < solvable < 1, "questions that nobody solves count"
    assert found["oracle"] == pytest.approx(solvable)
    assert found["random"] == pytest.approx(solvable / 3)
    assert [found[name] for name in ("best-single", "dataset-oracle", "knn", "kmeans")] == [0.0] * 4


def test_a_cost_is_that_of_the_very_call_for_a_thousand(finished: Path) -> None:
    dear = [4 + number / 100 for number in TEST]
    paid = [1.0 if number % 10 == 0 else cost for number, cost in zip(TEST, dear, strict=True)]
    assert quality(finished, "cost")["oracle"] == pytest.approx(fmean(paid)), "the cheapest where all are wrong"
    assert quality(finished, "cost")["random"] == pytest.approx(fmean((1 + 2 + cost) / 3 for cost in dear))


def test_tables_tests_curves_and_a_picture_are_written(finished: Path) -> None:
    out = finished / "out" / "routing"
    titles = [table["title"].split(":")[0] for table in json.loads((out / "tables.json").read_text())]
    weights = "Utility at each weight of quality"
    assert titles == ["Routers", "Quality against cost", weights, "The gap to the oracle", "What no router can know"]
    tests = json.loads((out / "comparisons.json").read_text())
    assert {test["baseline"] for test in tests} == {"best-single", "dataset-oracle"}
    assert {"mine", "knn", "kmeans"} <= {test["system"] for test in tests}
    curves = json.loads((out / "curves.json").read_text())
    assert sum(point["system"] == "mine" for point in curves) == 3, "a ranker has a point for each objective"
    assert sum(point["system"] == "knn" for point in curves) == 32
    picture = (out / "curve-route.svg").read_text()
    assert all(f">{name}</text>" in picture for name in ("oracle", "knn", "mine")) and "NaN" not in picture
    assert (finished / "result.json").is_file() and "## routing" in (finished / "out" / "results.md").read_text()


def test_everyone_is_held_to_the_utility_of_each_weight(finished: Path) -> None:
    """Costs there are shares of the dearest on the question, whatever money the curves are in."""
    tables = json.loads((finished / "out" / "routing" / "tables.json").read_text())
    (table,) = (table for table in tables if table["title"].startswith("Utility"))
    assert table["columns"][:5] == ["router", "performance (1)", "balance (0.5)", "cost (0.2)", "mean"]
    lines = {row[0]: row for row in table["rows"]}
    assert lines.keys() == {"random", "best-single", "dataset-oracle", "knn", "kmeans", "oracle", "mine"}

    def best(number: int, weight: float) -> float:
        costs = row_of(number)["cost_usd"]
        shares = {llm: cost / costs["dear"] for llm, cost in costs.items()}
        return max(weight * score - (1 - weight) * shares[llm] for llm, score in scores_of(number).items())

    reached = [fmean(best(number, weight) for number in TEST) for weight in (1, 0.5, 0.2)]
    assert [float(cell) for cell in lines["oracle"][1:4]] == pytest.approx(reached, abs=6e-4)
    assert quality(finished, "utility")["oracle"] == pytest.approx(fmean(reached))
    assert float(lines["random"][1]) == pytest.approx(quality(finished)["random"], abs=6e-4)
    # Where price matters most, all that learnt choose the cheapest, which nobody need be asked for.
    cheapest = fmean(-0.8 / (4 + number / 100) for number in TEST)
    assert [float(lines[name][3]) for name in ("best-single", "knn")] == pytest.approx([cheapest] * 2, abs=6e-4)


def test_a_ranker_is_asked_at_the_weights_of_the_source(tmp_path: Path) -> None:
    data = folder(tmp_path)
    (bench,) = benches([data.model_copy(update={"options": {"objectives": [0.25, 1, "cost"]}})], None)
    assert list(bench.problems["test"]) == ["1", "0.25", "cost"], "quality alone first"
    assert [tuple(weights) for weights in bench.weights.values()] == [(1, 0), (0.25, 0.75), (0.2, 0.8)]
    assert (
        next(iter(bench.known["test"])).endswith(":1")
        and bench.in_shares().known["test"].keys() == bench.known["test"].keys()
    )
    with pytest.raises(ConfigError, match="add performance, or 1, to the option objectives"):
        benches([data.model_copy(update={"options": {"objectives": [0.25]}})], None)


def test_the_parts_of_the_gap_add_up(finished: Path) -> None:
    tables = json.loads((finished / "out" / "routing" / "tables.json").read_text())
    (gap,) = (table for table in tables if table["title"].startswith("The gap"))
    *parts, whole = (float(row[1].split()[0]) for row in gap["rows"])
    assert sum(parts) == pytest.approx(whole, abs=0.002) and whole == pytest.approx(
        quality(finished)["oracle"], abs=1e-3
    )
    assert [float(row[3]) for row in gap["rows"]][1] == sum(number % 10 != 0 for number in TEST)


def test_prices_stand_in_where_nobody_knows_what_a_call_cost(tmp_path: Path) -> None:
    (bench,) = benches([priced(tmp_path)], None)
    assert bench.unit == BY_PRICE and not bench.datasets
    first = next(iter(bench.known["test"].values()))
    assert {llm: outcome.cost for llm, outcome in first.items()} == {"cheap": 0.25, "middle": 0.5, "dear": 1.0}


def priced(path: Path) -> DataConfig:
    """The folder without what calls cost, as `train.json`."""
    (path / "llm_candidates.json").write_text(json.dumps(LLMS))
    rows = [{key: row_of(number)[key] for key in ("question", "scores")} for number in range(60)]
    (path / "train.json").write_text(json.dumps(rows))
    return DataConfig(source="llmrouter", path=path)


@pytest.mark.parametrize(
    ("prices", "right"),
    [((0.1, 1.0), "dear"), ((0.0, 0.0), "both"), ((1.0, 1.0), "both")],
    ids=["one LLM solves all", "nothing costs anything", "all cost the same"],
)
def test_llms_that_leave_nothing_to_choose_are_no_obstacle(
    prices: tuple[float, float], right: str, tmp_path: Path
) -> None:
    names = ("cheap", "dear")
    priced = [{"size": "7B", "feature": "x", "input_price": price, "output_price": price} for price in prices]
    llms = dict(zip(names, priced, strict=True))
    (tmp_path / "llm_candidates.json").write_text(json.dumps(llms))
    scores = [{n: float(n == right or (right == "both" and k % 2)) for n in names} for k in range(40)]
    rows = [{"question": f"question {k} of owls", "scores": one} for k, one in enumerate(scores)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    data = json.dumps([{"source": "llmrouter", "path": str(tmp_path)}])
    given = ["routing", "--out", str(tmp_path / "out"), "-s", f"data={data}", "-s", "model=nano"]
    result = CliRunner().invoke(APP, given)
    assert result.exit_code == 0, result.output
    found = quality(tmp_path, "AIQ")
    assert found["oracle"] == pytest.approx(found["best-single"])


def test_each_source_shows_its_own_places(tmp_path: Path) -> None:
    named = [
        folder(tmp_path / "a").model_copy(update={"options": {"task": "one"}}),
        DataConfig(source="mini", show=("bm25",)),
    ]
    assert [bench.show for bench in benches(named, None)] == [("prior",), ("bm25",)]


def test_a_bench_splits_as_training_does_and_keeps_ties(tmp_path: Path) -> None:
    data = folder(tmp_path)
    (bench,) = benches([data], None)
    assert bench.unit == BY_CALL and set(bench.datasets.values()) == {"maths", "letters"}
    loaded = load_splits([data])
    for split, of_split in bench.problems.items():
        groups = [[problem.group for problem in problems] for problems in of_split.values()]
        assert groups[0] == groups[1] == groups[2]
        assert {problem.group for problem in loaded[split]} <= set(groups[0])
        assert len(groups[0]) == sum(side == split for side in SIDES.values())
    few = benches([data.model_copy(update={"limit": 5})], 3)[0]
    assert [len(of_split) for of_split in few.known.values()] == [5, 5, 3]


def test_a_log_of_calls_is_a_bench_of_the_prompts_that_all_llms_answered(tmp_path: Path) -> None:
    lines = [
        {"prompt": f"prompt {n}", "model": model, "score": float(n % 2), "cost": cost}
        for n in range(40)
        for model, cost in (("small", 0.001), ("large", 0.004), *([("extra", 0.002)] if n % 4 else []))
    ]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (bench,) = benches([DataConfig(source="routing-log", path=tmp_path / "calls.jsonl")], None)
    assert sum(map(len, bench.known.values())) == 30
    assert all(set(of_query) == {"small", "large", "extra"} for of_query in bench.known["test"].values())
    assert next(iter(bench.known["test"].values()))["large"].cost == pytest.approx(4.0)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="routing needs outcomes of LLMs"):
        benches([DataConfig(source="jsonl", path=tmp_path)], None)
    with pytest.raises(ConfigError, match="both called 'route'; give one the option task"):
        benches([folder(tmp_path), folder(tmp_path)], None)
    with pytest.raises(DataError, match="does not exist; set its path"):
        benches([DataConfig(source="llmrouter", path=tmp_path / "none")], None)
    given = ["main", "--scale", "small", "--system", "mine=iranker:nano", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(APP, given)
    assert result.exit_code == 1 and "--system is for recommendation and routing" in re.sub(r"\s+", " ", result.output)


def test_a_log_without_costs_is_compared_by_quality_alone_and_shows_no_money(tmp_path: Path) -> None:
    calls = [
        {"prompt": f"prompt {n} of owls", "model": model, "score": float((n + k) % 3 == 0)}
        for n in range(40)
        for k, model in enumerate(("small", "large"))
    ]
    calls[5]["cost"] = 0.5  # of one call: no other can be compared with it
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    data = {"source": "routing-log", "path": str(tmp_path / "calls.jsonl"), "options": {"objectives": ["performance"]}}
    (bench,) = benches([DataConfig(**data)], None)
    assert bench.unit == UNKNOWN
    assert {outcome.cost for of_query in bench.known["test"].values() for outcome in of_query.values()} == {0.0}
    given = ["routing", "--out", str(tmp_path / "out"), "-s", f"data={json.dumps([data])}", "-s", "model=nano"]
    result = CliRunner().invoke(APP, given)
    assert result.exit_code == 0, result.output
    tables = json.loads((tmp_path / "out" / "routing" / "tables.json").read_text())
    assert not any(table["title"].startswith("Quality against cost") for table in tables)
    assert {row[tables[0]["columns"].index("cost")] for row in tables[0]["rows"]} == {""}
    assert "cost: not known" in tables[0]["note"] and "money" not in tables[0]["note"]
    assert not quality(tmp_path, "cost") and quality(tmp_path, "AIQ")["oracle"] == quality(tmp_path)["oracle"]
    with pytest.raises(DataError, match=r"calls\.jsonl:1: has no cost; write it"):
        benches([DataConfig(**data | {"options": {}})], None)
