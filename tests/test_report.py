"""The page: one file that loads nothing, escapes everything, and shows charts and traces."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup

from conftest import small_problem
from r1ranker.baselines import BASELINES
from r1ranker.elimination import ranking_from
from r1ranker.evaluation.charts import (
    Dot,
    Interval,
    interval_chart,
    line_chart,
    log_ticks,
    number,
    scatter_chart,
    ticks,
)
from r1ranker.evaluation.report import (
    Trace,
    colours,
    cost_charts,
    cost_table,
    headline,
    kinds_of,
    thinned,
    write_report,
)
from r1ranker.evaluation.results import COSTS, Row, comparison, rows_of, score
from r1ranker.problem import Answer, Candidate, Problem, Ranking, Step, Usage

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Checked(HTMLParser):
    """Fails on tags that do not nest; collects tag names, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def eliminated(problem: Problem) -> Ranking:
    steps = [
        Step((1, 2, 3), Answer("missing"), (2,), thought="I wonder about <b>two</b>", completion="<think>no answer"),
        Step((1, 3), Answer("valid", (3,)), (3,), probabilities={1: 0.25, 3: 0.75}),
    ]
    return ranking_from(problem, (1, 3, 2), steps, Usage(2, 300, 40, 0.2))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    evil = tuple(Candidate(f"d{k}", f"<script>alert({k})</script> \"text\" & 'more' {k}") for k in (1, 2, 3))
    problems = [
        small_problem(qid=f"{task}-{k}", task=task, candidates=evil, prior={"d2": 1.0})
        for task in ("t&1", "t2")
        for k in range(8)
    ]
    rankings = {name: BASELINES[name](problems) for name in ("random", "prior", "bm25", "oracle")}
    rankings["iranker"] = [eliminated(problem) for problem in problems]
    systems = {name: score(of_system, problems) for name, of_system in rankings.items()}
    log = [{"step": step, "reward": step / 10, "kl": 0.1, "other<key>": 1.0} for step in range(5)]
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    write_report(
        path,
        rows=[row for name, values in systems.items() for row in rows_of(name, "test", values)],
        comparisons=comparison("random", systems),
        curves={"run <1>": log, "empty": []},
        traces=[Trace(problems[0], rankings["iranker"][0], "iranker"), Trace(problems[1], rankings["bm25"][1], "bm25")],
        provenance={"config": {"ppo": {"lr": 1e-6}}, "revision": None},
        title="Results <of> a test",
    )
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_the_page_nests_and_loads_nothing(page: str) -> None:
    checked = Checked(page)
    assert not checked.tags & {"script", "link", "img", "iframe"}
    assert not checked.attributes & {"src", "srcset", "data"}
    assert not re.search(r"https?://|@import|url\(", page)


def test_text_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert "<script>alert(1)</script>" in Checked(page).text
    assert "Results &lt;of&gt; a test" in page
    assert "run &lt;1&gt;" in page


def test_traces_can_be_read_step_by_step(page: str) -> None:
    text = " ".join(Checked(page).text.split())
    assert "first relevant at 1 of 3 · 2 steps · 1 broken" in text
    assert "Step 1 of 2, 3 in the pool: [2]" in text
    assert "I wonder about <b>two</b>" in text
    assert "<think>no answer" in text
    assert "missing" in text
    assert "75.0 %" in text
    assert "left at step 2" in text
    assert page.count('class="out"') == 2


def test_results_costs_training_and_provenance_are_there(page: str) -> None:
    text = " ".join(Checked(page).text.split())
    assert "5 systems on 16 queries of 2 tasks, split test" in text
    assert "MRR of iranker, the best system; 1.000 to 1.000" in text
    assert "of the steps of iranker had a broken answer" in text
    assert "1 more logged values" in text
    assert "config.ppo.lr" in text
    assert "against random (paired randomisation, Holm)" in text
    for chart in ("MRR against tokens per query", "MRR and nDCG@10 of t&amp;1", "step: run &lt;1&gt;"):
        assert f'aria-label="{chart}' in page


def test_a_page_without_data_has_no_empty_parts(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", rows=[], title="Nothing yet")
    checked = Checked((tmp_path / "report.html").read_text())
    assert "section" not in checked.tags
    assert "footer" not in checked.tags


def test_the_headline_names_the_best_whatever_it_is() -> None:
    rows = [Row("a", name, "test", "MRR", value, 9, value, value) for name, value in (("prior", 0.6), ("iranker", 0.5))]
    assert headline(rows, [])[0].label.startswith("MRR of prior")


def test_long_logs_are_thinned_to_means_and_gaps_are_left_out() -> None:
    points = thinned([(float(x), math.nan if x == 3 else float(x)) for x in range(1000)])
    assert len(points) <= 300
    assert points[0] == (1.75, 1.75)  # the mean of 0, 1, 2 and 4


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(-0.06, 1.06) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(130, 1490) == [500, 1000]
    assert log_ticks(700, 22_000) == [1000, 2000, 5000, 10_000, 20_000]
    assert log_ticks(0.05, 90) == [0.1, 1, 10]


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0, 0.5667, 11.333, 1110, 15_443, 2_500_000)] == [
        "0",
        "0.567",
        "11.3",
        "1110",
        "15.44k",
        "2.5M",
    ]
    assert [number(v) for v in (999.96, 9999.9, 999_996, 2.5e10)] == ["1000", "10k", "1M", "25000M"]


def of_system(name: str, **values: float) -> list[Row]:
    return [Row("a", name, "test", measure, value, 9, value, value) for measure, value in values.items()]


def test_a_page_marks_broken_answers_and_percentages_read_as_such(tmp_path: Path) -> None:
    rows = of_system("model", MRR=0.5, calls=1, prompt_tokens=1, generated_tokens=1, seconds=1, broken=1, failed=0)
    write_report(tmp_path / "report.html", rows=rows)
    text = " ".join(Checked((tmp_path / "report.html").read_text()).text.split())
    assert "model †" in text and "e+02" not in text
    assert "100 %of the steps of model had a broken answer" in text
    assert "model gave many broken answers" in text and "100 % on a" in text


def test_costs_that_nobody_knows_are_unknown_and_drawn_as_unknown_not_as_free() -> None:
    spent = dict.fromkeys(COSTS, 0.0) | {"prompt_tokens": 5, "seconds": 0.1}
    rows = of_system("model", MRR=0.5, **spent) + of_system("theirs", MRR=0.6, failed=0)
    table = cost_table(rows)
    assert table["theirs"] == ["unknown", "0 %", *["unknown"] * 6]
    assert "unknown" not in table["model"]
    for chart in cost_charts(rows, kinds_of(["model", "theirs"])):
        assert "theirs ?" in chart.svg and chart.svg.count('class="unknown"') == 1
        assert 'class="level"' not in chart.svg and chart.svg.count("<circle") == 1


def test_a_system_has_one_colour_on_the_whole_page_and_no_other_has_it(tmp_path: Path) -> None:
    names = [f"system{k}" for k in range(12)]
    rows = [row for name in names for row in of_system(name, MRR=0.5, **{"nDCG@10": 0.6})]
    log = [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2}]
    write_report(tmp_path / "report.html", rows=rows, curves={"system11": log, "another run": log})
    page = (tmp_path / "report.html").read_text()
    kinds = kinds_of([*names, "another run"])
    assert len(set(kinds.values())) == len(set(colours(kinds).values())) == 13
    assert f'<div class="{kinds["system11"]}"><i></i><span>system11' in page
    assert f'<g class="{kinds["system11"]}"><polyline' in page
    assert f".{kinds['another run']} {{ color: hsl(" in page


def test_charts_survive_single_points_equal_values_and_names_with_markup() -> None:
    assert line_chart({"a": [(1, 2)]}, {}, "step").count("<circle") == 1
    assert line_chart({"a": [(0, math.nan)]}, {}, "step") == Markup("")
    same = scatter_chart([Dot("<i>", 5, 0.0), Dot("b", 5, 0.0)], "tokens", "MRR")
    assert "&lt;i&gt;" in same
    assert "nan" not in same
    assert "0.100 to 0.300" in interval_chart([Interval("a", 0.2, 0.1, 0.3)], "label")


def test_marks_tell_their_values_on_hover() -> None:
    svg = line_chart({"run": [(1, 0.5), (2, 0.75)]}, {"run": "c0"}, "step")
    assert "<title>run, 2: 0.75</title>" in svg


def names_in(svg: str) -> list[tuple[float, float, float]]:
    """(left, right, baseline) of each name in a chart."""
    found = re.findall(
        r'<text class="name" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">(?:<title>.*?</title>)?(.*?)<', svg
    )
    boxes = []
    for x, y, anchor, text in found:
        left = float(x) - (6.0 * len(text) if anchor == "end" else 0)
        boxes.append((left, left + 6.0 * len(text), float(y)))
    return boxes


def test_names_in_a_chart_stay_inside_it_and_cover_no_other() -> None:
    dots = [Dot(f"system-{k}", 100.0 + k, 0.70 + k / 1000, "c0") for k in range(6)]
    dots += [Dot("free", 0, 0.3), Dot("theirs", None, 0.31)]
    boxes = names_in(scatter_chart(dots, "tokens", "MRR"))
    assert len(boxes) == 8
    for n, (left, right, y) in enumerate(boxes):
        assert left >= 0 and right <= 400 and 0 < y < 230
        for other in boxes[n + 1 :]:
            assert abs(y - other[2]) >= 11 or right <= other[0] or left >= other[1]


def test_axes_begin_where_the_data_do() -> None:
    svg = interval_chart([Interval("a", 0.72, 0.7, 0.74), Interval("b", 0.8, 0.78, 0.82)], "label")
    assert min(map(float, re.findall(r'class="tick"[^>]*>([\d.]+)<', svg))) >= 0.69
    assert ">0<" not in scatter_chart([Dot("a", 10, 0.7), Dot("b", 20, 0.8)], "tokens", "MRR")


def test_a_long_name_is_cut_to_fit_and_told_whole_on_hover() -> None:
    name = "a-system-with-a-name-that-is-longer-than-any-margin"
    svg = interval_chart([Interval(name, 0.5, 0.4, 0.6)], "label")
    assert f"<title>{name}</title>" in svg and "…</text>" in svg
    assert min(left for left, _, _ in names_in(svg)) >= 0


def test_shares_read_as_percentages() -> None:
    assert ">40 %<" in line_chart({"run": [(1, 0.25), (2, 0.75)]}, {}, "step", shares=True)


def test_a_system_that_ranked_some_tasks_has_no_mean_cost_and_it_is_not_called_unknown() -> None:
    rows = [Row(task, "all", "test", "seconds", 0.1, 9, 0.1, 0.1) for task in ("a", "b", "average")]
    rows.append(Row("a", "some", "test", "seconds", 0.1, 9, 0.1, 0.1))
    assert cost_table(rows)["some"][COSTS.index("seconds")] == "–"
