"""Routing measures: what a router's choices cost and score, the hull of its points, the area under it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1ranker.datasets import llmrouter
from r1ranker.errors import DataError
from r1ranker.evaluation.routing import (
    Outcome,
    Point,
    Weights,
    affordable_choices,
    aiq,
    choices_by_price,
    chosen_outcomes,
    expected_by_kind,
    first_choices,
    gap_parts,
    hull,
    llm_points,
    oracle_choices,
    own_costs,
    pareto,
    point,
    quality_within,
    regret,
    solvers,
    tied,
)
from r1ranker.problem import Ranking, Usage

KNOWN = {
    "easy": {"small": Outcome(1.0, 0.1), "middle": Outcome(1.0, 0.3), "large": Outcome(1.0, 0.9)},
    "hard": {"small": Outcome(0.0, 0.1), "middle": Outcome(0.5, 0.3), "large": Outcome(1.0, 0.9)},
}


def ranking(qid: str, *llms: str, cost: float = 0.0) -> Ranking:
    return Ranking(qid, llms, tuple(float(-k) for k in range(len(llms))), usage=Usage(cost=cost))


def test_a_router_is_the_mean_of_what_it_chose() -> None:
    chosen = first_choices([ranking("easy", "small", "large"), ranking("hard", "large", "small")])
    assert chosen == {"easy": "small", "hard": "large"}
    assert point(chosen, KNOWN) == Point(cost=0.5, quality=1.0)
    assert llm_points(KNOWN) == {"small": Point(0.1, 0.5), "middle": Point(0.3, 0.75), "large": Point(0.9, 1.0)}


def test_a_failed_query_scores_nothing_and_still_costs_what_the_router_cost() -> None:
    rankings = [ranking("easy", cost=0.002), ranking("hard", "large", "small", cost=0.004)]
    assert first_choices(rankings)["easy"] == ""
    own = own_costs(rankings, unit=0.02)
    assert own == pytest.approx({"easy": 0.1, "hard": 0.2})
    assert chosen_outcomes(first_choices(rankings), KNOWN, own)["easy"] == pytest.approx(Outcome(0.0, 0.1))
    assert point(first_choices(rankings), KNOWN, own) == pytest.approx(Point(0.6, 0.5))


def test_an_llm_without_an_outcome_is_told() -> None:
    with pytest.raises(DataError, match="query 'easy': no outcome of 'huge' is known"):
        point({"easy": "huge"}, KNOWN)


def test_a_budget_takes_the_best_ranked_llm_that_it_pays_for() -> None:
    rankings = [ranking("easy", "large", "small", "middle"), ranking("hard", "large", "middle", "small")]
    assert affordable_choices(rankings, KNOWN, 0.3) == {"easy": "small", "hard": "middle"}
    assert affordable_choices(rankings, KNOWN, 0.9) == first_choices(rankings)
    assert affordable_choices(rankings, KNOWN, 0.05) == {"easy": "", "hard": ""}


def test_the_oracle_takes_the_cheapest_of_the_best_and_nobody_loses_less() -> None:
    assert oracle_choices(KNOWN) == {"easy": "small", "hard": "large"}
    # hard: 0.2 - 0.72 with large, 0.1 - 0.24 with middle, 0 - 0.08 with small.
    thrifty = Weights(0.2, 0.8)
    assert oracle_choices(KNOWN, thrifty) == {"easy": "small", "hard": "small"}
    assert regret({"easy": "large", "hard": "small"}, KNOWN) == {"easy": 0.0, "hard": 1.0}
    assert regret({"hard": "middle"}, KNOWN, thrifty) == pytest.approx({"hard": -0.08 + 0.14})
    assert regret(oracle_choices(KNOWN, thrifty), KNOWN, thrifty) == {"easy": 0.0, "hard": 0.0}
    assert regret({"easy": "small"}, KNOWN, Weights(1, 1), own={"easy": 0.25}) == pytest.approx({"easy": 0.25})


SUBJECTS = {
    "sum": {"small": Outcome(1.0, 0.1), "large": Outcome(0.0, 0.9)},
    "root": {"small": Outcome(1.0, 0.1), "large": Outcome(1.0, 0.9)},
    "poem": {"small": Outcome(0.0, 0.2), "large": Outcome(1.0, 0.7)},
    "novel": {"small": Outcome(0.0, 0.2), "large": Outcome(1.0, 0.9)},
    "essay": {"small": Outcome(0.5, 0.2), "large": Outcome(1.0, 0.8)},
}
KINDS = {"sum": "maths", "root": "maths", "poem": "letters", "novel": "letters", "essay": "letters"}


def test_the_best_llm_of_each_data_set_is_that_of_the_queries_that_are_known() -> None:
    # maths: small 1 and large 0.5; letters: small 1 / 6 and large 1; over all: small 0.5, large 0.8.
    asked = {"product": "maths", "ballad": "letters", "dance": "sport", "nameless": ""}
    expected = expected_by_kind(SUBJECTS, KINDS | asked, asked)
    assert expected["product"]["large"] == pytest.approx(Outcome(0.5, 0.9))
    assert expected["ballad"]["small"] == pytest.approx(Outcome(1 / 6, 0.2))
    assert expected["dance"] == expected["nameless"] and expected["dance"]["small"] == pytest.approx((0.5, 0.16))
    best = {"product": "small", "ballad": "large", "dance": "large", "nameless": "large"}
    assert oracle_choices(expected) == best
    assert set(oracle_choices(expected_by_kind(SUBJECTS, {}, asked)).values()) == {"large"}


def test_a_higher_price_of_cost_sends_more_queries_to_the_cheaper_llm() -> None:
    # sum and root tie or are worse with large; the others gain 1, 1 and 0.5 for 0.5, 0.7 and 0.6 more.
    by_price = choices_by_price(SUBJECTS, [0.0, 1.0, 1.5, 3.0])
    dear = [{query for query, llm in chosen.items() if llm == "large"} for chosen in by_price]
    assert dear == [{"poem", "novel", "essay"}, {"poem", "novel"}, {"poem"}, set()]
    assert by_price == [oracle_choices(SUBJECTS, Weights(1.0, price)) for price in (0.0, 1.0, 1.5, 3.0)]
    (cheap,) = choices_by_price(
        {"q": {"dear": Outcome(1.0, 2.0), "cheap": Outcome(1.0, 1.0)}, "r": KNOWN["hard"]}, [0.0]
    )
    assert cheap == {"q": "cheap", "r": "large"}, "ties go to the cheaper one; pools may differ"
    points = [point(chosen, SUBJECTS) for chosen in by_price]
    assert points[0] == pytest.approx((2.6 / 5, 1.0)) and points[-1] == pytest.approx((0.8 / 5, 0.5))
    # A straight line from 0.16 to 0.26 (quality 0.5 to 0.7), to 0.4 (0.9), to 0.52 (1.0), by the trapezium rule.
    area = 0.1 * 0.6 + 0.14 * 0.8 + 0.12 * 0.95
    assert aiq(points, 0.16, 0.52) == pytest.approx(area / 0.36)


def test_the_gap_to_the_oracle_is_split_by_level_and_by_how_many_solve() -> None:
    four = {llm: Outcome(1.0, 0.1) for llm in ("a", "b", "c", "d")}
    known = {
        "many": four | {"e": Outcome(0.0, 0.1)},  # four solve it
        "three": four | {"d": Outcome(0.4, 0.1), "e": Outcome(0.0, 0.1)},  # three: 0.4 is not solved
        "none": {llm: Outcome(0.4 if llm == "a" else 0.1, 0.1) for llm in "abcde"},
        "all": four | {"e": Outcome(1.0, 0.1)},
    }
    assert [solvers(of_query) for of_query in known.values()] == [4, 3, 0, 5]
    assert [tied(of_query) for of_query in known.values()] == [4, 3, 1, 5]
    single = dict.fromkeys(known, "e")
    level = dict.fromkeys(known, "e") | {"three": "d"}
    assert gap_parts(single, level, known) == {
        "level": {"many": 0.0, "three": 0.4, "none": 0.0, "all": 0.0},
        "few": {"many": 0.0, "three": 0.6, "none": 0.0, "all": 0.0},
        "rest": {"many": 1.0, "three": 0.0, "none": pytest.approx(0.3), "all": 0.0},
    }


def test_dominated_points_are_not_on_the_pareto_curve() -> None:
    points = [Point(3, 0.8), Point(1, 0.5), Point(2, 0.4), Point(3, 0.7), Point(4, 0.8)]
    assert pareto(points) == [Point(1, 0.5), Point(3, 0.8)]


def test_the_hull_begins_with_no_answer_skips_what_mixing_beats_and_never_falls() -> None:
    points = [Point(1, 0.6), Point(2, 0.65), Point(3, 0.9), Point(4, 0.2)]
    assert hull(points) == [Point(0, 0), Point(1, 0.6), Point(3, 0.9)]
    assert hull([Point(2, 0.5), Point(4, 1.0), Point(3, 0.75)]) == [Point(0, 0), Point(4, 1.0)]
    assert hull([]) == [Point(0, 0)]


def test_quality_within_a_budget_mixes_two_routers_and_wastes_the_rest() -> None:
    points = [Point(1, 0.6), Point(3, 0.9)]
    assert quality_within(points, 0.5) == pytest.approx(0.3)
    assert quality_within(points, 2) == pytest.approx(0.75)
    assert quality_within(points, 50) == pytest.approx(0.9)


def test_aiq_is_the_area_under_the_hull_by_its_width() -> None:
    points = [Point(1, 0.6), Point(3, 0.9)]
    # From 1 to 3 a trapezium of mean 0.75, from 3 to 5 flat at 0.9.
    assert aiq(points, 1, 5) == pytest.approx((2 * 0.75 + 2 * 0.9) / 4)
    # From 0.5 to 1 the router is mixed with no answer: mean 0.45.
    assert aiq(points, 0.5, 1) == pytest.approx(0.45)
    assert aiq([Point(1, 0.6)], 1, 9) == pytest.approx(0.6)
    assert aiq([*points, Point(2, 0.5)], 1, 5) == aiq(points, 1, 5), "a point below the hull changes nothing"
    assert aiq(points, 3, 3) == 0.9, "all LLMs cost the same"
    with pytest.raises(DataError, match="AIQ needs bounds with 0 <= low <= high, not 3 and 2"):
        aiq(points, 3, 2)


def test_the_source_gives_score_and_cost_of_each_question(tmp_path: Path) -> None:
    llms = {name: {"size": "", "feature": "", "input_price": p, "output_price": p} for name, p in (("a", 1), ("b", 4))}
    rows = [{"question": f"what is {n}", "scores": {"a": n % 2, "b": 1 - n % 2}} for n in range(20)]
    (tmp_path / "llm_candidates.json").write_text(json.dumps(llms))
    (tmp_path / "train.json").write_text(json.dumps(rows))
    test = llmrouter.load(tmp_path)["test"]
    known = llmrouter.outcomes(tmp_path, [problem.qid for problem in test])
    assert known.keys() == {problem.qid for problem in test}
    for problem in test:
        number = int(problem.query.removeprefix("what is "))
        assert known[problem.qid] == {"a": (number % 2, 0.25), "b": (1 - number % 2, 1.0)}


def test_an_llm_has_a_place_where_it_answered_every_query() -> None:
    known = {"a": {"x": Outcome(1.0, 0.1), "y": Outcome(0.0, 0.25)}, "b": {"y": Outcome(1.0, 0.75)}}
    assert llm_points(known) == {"y": Point(0.5, 0.5)}


def test_of_equal_scores_the_cheaper_is_chosen_whatever_rounding_says() -> None:
    known = {"q": {"dear": Outcome(0.1 + 0.2, 2.0), "cheap": Outcome(0.3, 1.0)}}
    assert choices_by_price(known, [0.0]) == [oracle_choices(known)] == [{"q": "cheap"}]
