"""Measures against values worked out by hand, and the TREC rules on ties, unjudged and missing documents."""

from __future__ import annotations

from math import log2

import pytest

from conftest import small_problem
from r1ranker.errors import DataError
from r1ranker.evaluation.measures import MEASURES, evaluate, evaluate_by_task
from r1ranker.problem import Problem, Ranking


def ranking(qid: str, *docids: str, scores: tuple[float, ...] = ()) -> Ranking:
    return Ranking(qid, docids, scores or tuple(float(-place) for place in range(len(docids))))


def value(problem: Problem, measure: str, *docids: str) -> float:
    return evaluate([ranking(problem.qid, *docids)], [problem])[measure][problem.qid]


def test_graded_ndcg_divides_by_the_ideal_order() -> None:
    problem = small_problem(gains={"d1": 3, "d2": 1, "d3": 2}, relevant_at=2)
    ideal = 3 + 2 / log2(3) + 1 / log2(4)
    assert value(problem, "nDCG@10", "d2", "d1", "d4", "d3") == pytest.approx((1 + 3 / log2(3) + 2 / log2(5)) / ideal)


def test_binary_measures_count_gains_from_relevant_at() -> None:
    problem = small_problem(gains={"d1": 1, "d4": 2}, relevant_at=2)
    order = ("d1", "d2", "d4", "d3")
    assert value(problem, "MRR", *order) == pytest.approx(1 / 3)
    assert [value(problem, f"hit@{k}", *order) for k in (1, 3, 5)] == [0, 1, 1]


def test_any_of_several_tied_best_counts() -> None:
    problem = small_problem(gains={"d1": 1, "d3": 1})
    assert value(problem, "MRR", "d3", "d2", "d1", "d4") == 1
    assert value(problem, "nDCG@5", "d3", "d1", "d2", "d4") == pytest.approx(1)


def test_a_gain_outside_the_pool_lowers_ndcg_only() -> None:
    problem = small_problem(gains={"d1": 1, "elsewhere": 2})
    assert value(problem, "nDCG@10", "d1", "d2", "d3", "d4") == pytest.approx(1 / (2 + 1 / log2(3)))
    assert value(problem, "MRR", "d1", "d2", "d3", "d4") == 1


def test_unjudged_documents_count_as_not_relevant() -> None:
    problem = small_problem(gains={"d2": 1})
    assert value(problem, "MRR", "d3", "d2", "d1", "d4") == 0.5


@pytest.mark.parametrize("gains", [{}, {"d1": 0}, {"d1": 1}], ids=["none", "zero", "below relevant_at"])
def test_a_query_without_a_relevant_document_stays_with_the_value_0(gains: dict[str, int]) -> None:
    problems = [small_problem(qid="empty", gains=gains, relevant_at=2), small_problem(gains={"d1": 2}, relevant_at=2)]
    values = evaluate([ranking(p.qid, "d2", "d1") for p in problems], problems)
    assert values["MRR"] == {"empty": 0, "q1": 0.5}
    assert all(list(values[measure]) == ["empty", "q1"] for measure in MEASURES)


def test_the_order_counts_even_where_scores_tie_as_32_bit_floats() -> None:
    problem = small_problem(gains={"d1": 1})
    close = ranking("q1", "d1", "d9", scores=(1.0, 1.0 - 1e-12))
    assert evaluate([close], [problem])["hit@1"]["q1"] == 1


def test_names_may_hold_spaces_and_any_letters() -> None:
    problem = small_problem(qid="frage 1", gains={"d 1\tß": 1})
    assert value(problem, "MRR", "x y", "d 1\tß") == 0.5


def test_tasks_are_evaluated_apart() -> None:
    problems = [small_problem(qid="a", task="one"), small_problem(qid="b", task="two", gains={"d1": 3}, relevant_at=3)]
    values = evaluate_by_task([ranking("b", "d1"), ranking("a", "d2", "d1"), ranking("other", "d1")], problems)
    assert {task: of_task["MRR"] for task, of_task in values.items()} == {"one": {"a": 0.5}, "two": {"b": 1}}


@pytest.mark.parametrize(
    ("rankings", "problems", "message"),
    [
        (["q1"], [small_problem(), small_problem()], "'q1' names 2 problems"),
        (["q1", "q1"], [small_problem()], "more than one ranking"),
        (["a", "b"], [small_problem(qid="a"), small_problem(qid="b", relevant_at=2)], r"found \[1, 2\]"),
    ],
)
def test_errors_name_what_is_wrong(rankings: list[str], problems: list[Problem], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate([ranking(qid, "d1") for qid in rankings], problems)


def test_a_query_without_a_ranking_counts_0() -> None:
    problems = [small_problem(qid="a"), small_problem(qid="b")]
    values = evaluate([ranking("a", "d1")], problems)
    assert all(of_measure == {"a": 1, "b": 0} for of_measure in values.values())


@pytest.mark.parametrize("level", [0, -1])
def test_what_is_unjudged_cannot_be_relevant(level: int) -> None:
    with pytest.raises(DataError, match="relevant_at must be at least 1"):
        small_problem(relevant_at=level)


def test_qids_that_collide_over_tasks_are_an_error() -> None:
    with pytest.raises(DataError, match="names 2 problems"):
        evaluate_by_task([ranking("q1", "d1")], [small_problem(), small_problem(task="other")])


def test_nothing_in_nothing_out() -> None:
    assert evaluate_by_task([], []) == {}


@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_a_cutoff_counts_its_last_place_and_none_behind(k: int) -> None:
    order = tuple(f"d{n}" for n in range(1, 13))
    for place in (k, k + 1):
        problem = small_problem(12, positive=place)
        found = evaluate([Ranking("q1", order, tuple(float(-n) for n in range(12)))], [problem])
        assert found[f"hit@{k}"]["q1"] == (place == k)
        if k >= 5:
            assert found[f"nDCG@{k}"]["q1"] == pytest.approx((place == k) / log2(place + 1))
