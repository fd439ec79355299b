"""Tidy rows, their files and comparisons, and the tables made of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from conftest import small_problem
from r1ranker.baselines import BASELINES
from r1ranker.elimination import ranking_from
from r1ranker.errors import DataError
from r1ranker.evaluation.measures import MEASURES
from r1ranker.evaluation.results import (
    AVERAGE,
    COSTS,
    UNASKED,
    Comparison,
    Row,
    TaskValues,
    all_rows,
    comparison,
    read_csv,
    read_results,
    relative_gain,
    rows_of,
    score,
    units_of,
    write_csv,
    write_results,
)
from r1ranker.evaluation.table import markdown_table, percent, results_table, stars
from r1ranker.problem import Answer, Problem, Step, Usage

COLUMNS = ["task", "system", "split", "measure", "value", "n", "ci_low", "ci_high"]


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return [
        small_problem(6, qid=f"{task}-{k}", task=task, positive=k % 6 + 1)
        for task, size in (("one", 30), ("two", 10))
        for k in range(size)
    ]


@pytest.fixture(scope="module")
def systems(problems: list[Problem]) -> dict[str, TaskValues]:
    return {name: score(BASELINES[name](problems), problems) for name in ("random", "oracle")}


@pytest.fixture(scope="module")
def rows(systems: dict[str, TaskValues]) -> list[Row]:
    return [row for name, values in systems.items() for row in rows_of(name, "test", values)]


def test_every_task_and_their_average_has_every_measure(rows: list[Row]) -> None:
    found = {(row.task, row.measure) for row in rows if row.system == "random"}
    assert found == {(task, measure) for task in ("one", "two", AVERAGE) for measure in (*MEASURES, *COSTS)}
    assert all(row.ci_low <= row.value <= row.ci_high for row in rows)


def test_the_average_weighs_tasks_alike_and_counts_all_queries(rows: list[Row]) -> None:
    mrr = {row.task: row for row in rows if (row.system, row.measure) == ("random", "MRR")}
    assert mrr[AVERAGE].value == pytest.approx((mrr["one"].value + mrr["two"].value) / 2)
    assert [mrr[task].n for task in ("one", "two", AVERAGE)] == [30, 10, 40]


def test_costs_are_means_per_query() -> None:
    problems = [small_problem(3, qid="a"), small_problem(3, qid="b")]
    steps = [Step((1, 2, 3), Answer("missing"), (3,)), Step((1, 2), Answer("valid", (2,)), (2,))]
    rankings = [
        ranking_from(problems[0], (1, 2, 3), steps, Usage(2, 100, 10, 0.5)),
        ranking_from(problems[1], (1, 2, 3), (), Usage(1, 50, 0, 0.1)),
    ]
    values = {row.measure: row.value for row in rows_of("s", "test", score(rankings, problems)) if row.task == "toy"}
    assert [values[name] for name in COSTS] == pytest.approx([0.25, 0, 1.5, 75, 5, 0.3, 0, 0])


def test_results_json_is_a_plain_list_of_rows(tmp_path: Path, rows: list[Row], systems: dict[str, TaskValues]) -> None:
    path = tmp_path / "out" / "results.json"
    tests = comparison("random", systems)
    write_results(path, rows, {"per_query": systems, "comparisons": tests})
    written = json.loads(path.read_text())
    assert isinstance(written, list)
    assert all(list(row) == COLUMNS for row in written)
    assert read_results(path) == rows
    assert json.loads((tmp_path / "out" / "per_query.json").read_text()) == systems
    assert json.loads((tmp_path / "out" / "comparisons.json").read_text())[0]["baseline"] == "random"


def test_a_file_that_is_not_results_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('[{"task": "one"}]')
    with pytest.raises(DataError, match=r"results\.json: not a list of results rows"):
        read_results(tmp_path / "results.json")
    (tmp_path / "results.csv").write_text("task,value\none,high\n")
    with pytest.raises(DataError, match=r"results\.csv: not a table of results rows"):
        read_csv(tmp_path / "results.csv")


def test_csv_has_the_same_columns_and_values(tmp_path: Path, rows: list[Row]) -> None:
    write_csv(tmp_path / "results.csv", rows)
    assert read_csv(tmp_path / "results.csv") == rows
    with (tmp_path / "results.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == COLUMNS
    assert float(read[0]["value"]) == rows[0].value


def test_a_comparison_is_paired_and_adjusted(systems: dict[str, TaskValues], rows: list[Row]) -> None:
    tests = comparison("random", systems, measures=("MRR",))
    assert [(one.task, one.system, one.n) for one in tests] == [
        ("one", "oracle", 30),
        ("two", "oracle", 10),
        (AVERAGE, "oracle", 40),
    ]
    value = {(row.task, row.system): row.value for row in rows if row.measure == "MRR"}
    for one in tests:
        assert one.difference == pytest.approx(value[one.task, "oracle"] - value[one.task, "random"])
        assert one.p <= one.p_holm <= min(1, 3 * one.p) + 1e-12
    assert tests[-1].p_holm < 0.01


def test_with_one_task_each_hypothesis_is_tested_once(systems: dict[str, TaskValues]) -> None:
    one = {name: {"one": values["one"]} for name, values in systems.items()}
    tests = comparison("random", one | {"mine": one["oracle"]}, measures=["MRR"])
    assert [(test.task, test.system) for test in tests] == [("one", "oracle"), ("one", "mine")]
    assert all(test.p_holm == test.p for test in tests)


def test_the_family_is_the_systems_under_test_and_references_do_not_weigh_on_it(
    systems: dict[str, TaskValues],
) -> None:
    mine = {"mine": systems["oracle"], "worse": systems["random"]}
    alone = comparison("prior", mine | {"prior": systems["random"]}, measures=["MRR"])
    everything = comparison("prior", systems | mine | {"prior": systems["random"], "bm25": systems["oracle"]})
    found = {(one.task, one.system): one.p_holm for one in everything if one.measure == "MRR"}
    assert all(found[one.task, one.system] == one.p_holm for one in alone)
    assert {system for _, system in found} == {"random", "oracle", "mine", "worse", "bm25"}


def test_the_relative_difference_of_the_average_is_the_mean_of_the_tasks(
    systems: dict[str, TaskValues], rows: list[Row]
) -> None:
    tests = {one.task: one for one in comparison("random", systems, measures=["MRR"])}
    assert tests[AVERAGE].relative == pytest.approx(relative_gain(rows, "oracle", "random"))
    value = {(row.task, row.system): row.value for row in rows if row.measure == "MRR"}
    assert tests["one"].relative == pytest.approx(value["one", "oracle"] / value["one", "random"] - 1)
    nothing = {"one": {"MRR": {"q": 0.0}}}
    assert comparison("prior", {"prior": nothing, "mine": nothing}, measures=["MRR"])[0].relative is None


def test_a_baseline_that_lacks_a_task_is_compared_on_the_others_and_has_no_average(
    systems: dict[str, TaskValues],
) -> None:
    part = {"prior": {"two": systems["random"]["two"]}, "mine": systems["oracle"]}
    assert [one.task for one in comparison("prior", part, measures=["MRR"])] == ["two"]
    averages = [row.system for row in all_rows(part, "test") if (row.task, row.measure) == (AVERAGE, "MRR")]
    assert averages == ["mine"]


def test_a_query_without_a_ranking_counts_0_and_has_failed(problems: list[Problem]) -> None:
    rankings = BASELINES["oracle"](problems[:20])
    values = {row.measure: row for row in rows_of("s", "test", score(rankings, problems)) if row.task == "one"}
    assert (values["MRR"].n, values["MRR"].value, values["failed"].value) == (
        30,
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
    )


def test_costs_of_a_run_file_are_not_known(problems: list[Problem]) -> None:
    values = score(BASELINES["oracle"](problems), problems, costs=False)
    assert values["one"].keys() == {*MEASURES, "failed"}


def test_only_a_model_can_have_asked_nothing(problems: list[Problem]) -> None:
    rankings = BASELINES["oracle"](problems)
    assert UNASKED not in score(rankings, problems)["one"]
    assert set(score(rankings, problems, model=True)["one"][UNASKED].values()) == {1.0}
    single = [small_problem(1, qid="single")]
    assert UNASKED not in score(BASELINES["oracle"](single), single, model=True)["toy"]


def test_tables_mark_systems_whose_figures_are_not_what_they_seem() -> None:
    rows = [row("a", name, 0.5) for name in ("silent", "broken", "short", "fine")]
    rows += [Row("a", "silent", "test", UNASKED, 1, 10, 1, 1), Row("a", "broken", "test", "broken", 0.45, 10, 0, 1)]
    rows += [Row("a", "short", "test", "failed", 0.3, 10, 0, 1), Row("a", "fine", "test", "broken", 0.1, 10, 0, 1)]
    markdown = markdown_table(rows, measures=["MRR"])
    assert markdown.startswith("| task | measure | silent † | broken † | short † | fine |")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(results_table(rows))
    for text in (markdown, " ".join(console.export_text().split())):
        assert "† silent asked nothing about 10 of 10 queries" in text
        assert "† short has no ranking of 3 of 10 queries, which count 0" in text
        assert "† broken gave many broken answers" in text and "45 % on a" in text
    assert [percent(share) for share in (0, 0.00001, 0.004, 0.125, 0.9995, 1)] == [
        *("0 %", "<0.1 %", "0.4 %", "12.5 %", ">99.9 %", "100 %"),
    ]


def test_a_system_equal_to_the_baseline_has_p_1(systems: dict[str, TaskValues]) -> None:
    tests = comparison("random", {"random": systems["random"], "twin": systems["random"]})
    assert {(one.difference, one.p, one.p_holm) for one in tests} == {(0, 1, 1)}


def test_comparisons_need_the_same_queries_and_a_known_baseline(systems: dict[str, TaskValues]) -> None:
    with pytest.raises(DataError, match="not run on the same queries"):
        comparison("random", systems | {"part": {"one": {m: {"x": 0.0} for m in MEASURES}}})
    with pytest.raises(DataError, match="baseline 'bm25'; there are oracle, random"):
        comparison("bm25", systems)


def row(task: str, system: str, value: float, split: str = "test") -> Row:
    return Row(task, system, split, "MRR", value, 10, value - 0.1, value + 0.1)


def test_relative_gain_is_the_mean_over_tasks() -> None:
    rows = [row("a", "new", 0.6), row("b", "new", 0.5), row(AVERAGE, "new", 0.55)]
    rows += [row("a", "old", 0.5), row("b", "old", 0.25), row(AVERAGE, "old", 0.375)]
    assert relative_gain(rows, "new", "old") == pytest.approx((0.2 + 1.0) / 2)
    with pytest.raises(DataError, match="task 'c': 'old' has no MRR above 0"):
        relative_gain([*rows, row("c", "new", 0.1), row("c", "old", 0)], "new", "old")
    with pytest.raises(DataError, match="'none' has no MRR"):
        relative_gain(rows, "none", "old")


def test_a_task_cannot_take_the_name_of_the_average(systems: dict[str, TaskValues]) -> None:
    with pytest.raises(DataError, match="rename it"):
        rows_of("s", "test", {AVERAGE: systems["random"]["one"]})


def test_the_markdown_table_marks_the_best_beside_the_oracle() -> None:
    rows = [row("a", "oracle", 1.0), row("a", "random", 0.2), row("a", "x|y", 0.6)]
    table = markdown_table(rows, measures=["MRR"]).splitlines()
    assert table[0] == "| task | measure | random | oracle | x\\|y |"
    assert table[2] == "| a | MRR | 0.200 ±0.100 | 1.000 ±0.100 | **0.600 ±0.100** |"


def test_stars_say_better_and_worse(systems: dict[str, TaskValues], rows: list[Row]) -> None:
    against_random = markdown_table(rows, comparison("random", systems), ["MRR"])
    assert "1.000 ±0.000 \\*\\*" in against_random
    assert "paired randomisation, Holm" in against_random
    assert "↓\\*\\*" in markdown_table(rows, comparison("oracle", systems), ["MRR"])


def test_the_terminal_table_prints_names_as_they_are(rows: list[Row]) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(results_table([*rows, row("[red]task", "random", 0.5)]))
    text = console.export_text()
    assert "[red]task" in text
    assert text.index("average") > text.index("[red]task")


def test_a_table_is_of_one_split() -> None:
    with pytest.raises(DataError, match="dev, test"):
        markdown_table([row("a", "random", 0.5), row("a", "random", 0.4, split="dev")])


def test_the_interval_of_the_average_is_that_of_tasks_drawn_apart() -> None:
    values = {task: {"MRR": {f"{task}{k}": float(k % 2) for k in range(100)}} for task in ("a", "b")}
    half = {row.task: (row.ci_high - row.ci_low) / 2 for row in rows_of("s", "test", values)}
    assert half["a"] == pytest.approx(1.96 * 0.05, rel=0.1)
    assert half[AVERAGE] == pytest.approx(1.96 * 0.05 / 2**0.5, rel=0.1)


def copied(values: Sequence[float], times: int, task: str = "a") -> tuple[dict[str, float], dict[str, str]]:
    """Values of as many queries a unit, by qid, and the units."""
    of_query = {f"{task}{k}.{i}": value for k, value in enumerate(values) for i in range(times)}
    return of_query, {qid: qid.removeprefix(task).partition(".")[0] for qid in of_query}


def test_several_queries_of_one_unit_count_as_one() -> None:
    values = [float(k % 3 == 0) for k in range(60)]
    once, _ = copied(values, 1)
    four, units = copied(values, 4)
    alone = rows_of("s", "test", {"a": {"MRR": once}})[0]
    together = rows_of("s", "test", {"a": {"MRR": four}}, units=units)[0]
    apart = rows_of("s", "test", {"a": {"MRR": four}})[0]
    assert (together.ci_low, together.ci_high, together.n) == (alone.ci_low, alone.ci_high, 240)
    assert apart.ci_high - apart.ci_low < 0.6 * (alone.ci_high - alone.ci_low)
    p = []
    for of_query, known in ((once, {}), (four, units), (four, {})):
        both = {"s": {"a": {"MRR": of_query}}, "b": {"a": {"MRR": dict.fromkeys(of_query, 0.3)}}}
        p.append(comparison("b", both, measures=["MRR"], units=known)[0].p)
    assert p[1] == pytest.approx(p[0], rel=0.1)
    assert p[2] < p[0] / 2


def test_tasks_that_ask_the_same_questions_make_an_average_no_surer_than_one_of_them() -> None:
    values = [float(k % 2) for k in range(100)]
    parts = {task: copied(values, 1, task) for task in ("a", "b")}
    per_query = {task: {"MRR": of_query} for task, (of_query, _) in parts.items()}
    units = {qid: unit for _, of in parts.values() for qid, unit in of.items()}
    half = {row.task: (row.ci_high - row.ci_low) / 2 for row in rows_of("s", "test", per_query, units=units)}
    assert half["a"] == pytest.approx(half["b"]) == pytest.approx(half[AVERAGE])
    base = {task: {"MRR": dict.fromkeys(of["MRR"], 0.4)} for task, of in per_query.items()}
    tests = {one.task: one for one in comparison("b", {"s": per_query, "b": base}, measures=["MRR"], units=units)}
    assert tests[AVERAGE].p == pytest.approx(tests["a"].p, rel=0.1)


def test_units_are_groups_of_more_than_one_query(problems: list[Problem]) -> None:
    assert units_of(problems) == {}
    pair = [small_problem(4, qid="x#0", group="x"), small_problem(4, qid="x#1", group="x"), small_problem(4, qid="y")]
    assert units_of(pair) == {"x#0": "x", "x#1": "x"}


def test_one_star_is_below_five_percent_and_two_below_one() -> None:
    found = [stars(Comparison("t", "s", "b", "MRR", 0.1, 9, 0.001, p)) for p in (0.009, 0.01, 0.049, 0.05)]
    assert found == ["**", "*", "*", ""]
