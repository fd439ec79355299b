"""Baselines: fair where they know nothing, right where they know something, the same each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

import pytest

from conftest import save_bert, small_problem
from r1ranker.baselines import BASELINES
from r1ranker.baselines.ordering import undecided_by_coin
from r1ranker.elimination import ranking_from
from r1ranker.errors import DataError
from r1ranker.evaluation.measures import evaluate
from r1ranker.problem import Answer, Candidate, Problem, Ranking, Step, Usage
from r1ranker.scenarios import SCENARIOS

FRUIT = tuple(
    Candidate(f"d{k}", text)
    for k, text in enumerate(["a red car", "ripe bananas and honey", "the blue sea", "a tall tree"], start=1)
)


@pytest.fixture(autouse=True, scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder that holds an encoder of a few thousand random weights as `minilm`."""
    pytest.importorskip("sentence_transformers")
    cache = tmp_path_factory.mktemp("cache")
    save_bert(cache / "minilm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("R1RANKER_CACHE", str(cache))
        yield


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_ranks_every_pool_whole_and_alike_each_time(name: str) -> None:
    problems = [small_problem(5, qid=f"q{k}", task="ab"[k % 2], prior={"d2": 1.0}) for k in range(6)]
    rankings = BASELINES[name](problems)
    assert [ranking.qid for ranking in rankings] == [problem.qid for problem in problems]
    assert all(sorted(ranking.docids) == ["d1", "d2", "d3", "d4", "d5"] for ranking in rankings)
    assert [r.docids for r in BASELINES[name](problems)] == [r.docids for r in rankings]
    assert BASELINES[name]([]) == []


@pytest.mark.parametrize("name", BASELINES)
def test_the_order_of_the_pool_does_not_matter(name: str) -> None:
    problems = [small_problem(6, qid=f"q{k}", scenario="routing", prior={"d2": 1.0}) for k in range(8)]
    turned = [replace(problem, candidates=problem.candidates[::-1]) for problem in problems]
    assert [r.docids for r in BASELINES[name](problems)] == [r.docids for r in BASELINES[name](turned)]


def test_random_has_the_mrr_of_chance() -> None:
    n = 10
    problems = [small_problem(n, qid=f"q{k}") for k in range(1500)]
    chance = sum(1 / k for k in range(1, n + 1)) / n
    assert fmean(evaluate(BASELINES["random"](problems), problems)["MRR"].values()) == pytest.approx(chance, abs=0.025)


def test_prior_follows_the_scores_and_puts_the_unknown_last() -> None:
    problem = small_problem(4, prior={"d1": -5.0, "d2": 2.5, "d4": 2.0})
    assert BASELINES["prior"]([problem])[0].docids == ("d2", "d4", "d1", "d3")


def test_ties_of_the_prior_are_broken_fairly() -> None:
    problems = [small_problem(3, qid=f"q{k}", prior={"d1": 1, "d2": 1, "d3": 0}) for k in range(600)]
    rankings = BASELINES["prior"](problems)
    assert {ranking.docids[2] for ranking in rankings} == {"d3"}
    first = Counter(ranking.docids[0] for ranking in rankings)
    assert abs(first["d1"] - 300) < 4 * (600 / 4) ** 0.5  # four standard deviations of a fair coin


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_task_without_a_prior_has_no_ranking_by_it(scenario: str) -> None:
    known = small_problem(candidates=FRUIT, query="ripe bananas", prior={"d3": 1.0})
    none = [small_problem(qid=f"q{k}", task="b", scenario=scenario, prior={"gone": 1.0}) for k in range(3)]
    with pytest.raises(DataError, match="no prior in task 'b'"):
        BASELINES["prior"]([known, *none])


@pytest.mark.parametrize(
    "fields",
    [
        {"query": "Bananas?"},
        {"query": "", "history": ("Yellow bananas", "Honey"), "scenario": "recommendation"},
        {"query": "which one", "objective": "cheap bananas", "scenario": "routing"},
    ],
    ids=["query", "history", "objective"],
)
def test_bm25_puts_the_match_of_words_first(fields: dict[str, object]) -> None:
    problem = small_problem(candidates=FRUIT, **fields)  # type: ignore[arg-type]
    assert BASELINES["bm25"]([problem])[0].docids[0] == "d2"


def test_bm25_knows_rare_words_from_the_whole_task() -> None:
    pool = (Candidate("common", "river water"), Candidate("rare", "river quartz"))
    others = [
        small_problem(qid=f"q{k}", candidates=(Candidate("x", f"water of lake {k}"), Candidate("y", "old lake")))
        for k in range(9)
    ]
    problem = small_problem(candidates=pool, query="water quartz")
    assert BASELINES["bm25"]([problem, *others])[0].docids[0] == "rare"


@pytest.mark.parametrize("query", ["the of", "nowhere"])
@pytest.mark.parametrize("texts", [("a red car", "a tree"), ("the", "")])
def test_bm25_without_a_matching_word_is_a_fair_coin(query: str, texts: tuple[str, str]) -> None:
    pool = tuple(Candidate(docid, text) for docid, text in zip(("a", "b"), texts, strict=True))
    problems: list[Problem] = [small_problem(qid=f"q{k}", candidates=pool, query=query) for k in range(40)]
    assert {ranking.docids[0] for ranking in BASELINES["bm25"](problems)} == {"a", "b"}


def test_baselines_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for rank in BASELINES.values():
        rank([small_problem(prior={"d1": 1.0})])
    assert capfd.readouterr() == ("", "")


def test_oracle_cannot_be_exceeded() -> None:
    problem = small_problem(4, gains={"d2": 1, "d3": 3})
    (ranking,) = BASELINES["oracle"]([problem])
    assert ranking.docids[:2] == ("d3", "d2")
    assert evaluate([ranking], [problem])["nDCG@10"]["q1"] == pytest.approx(1)


def left_as_given(k: int, *steps: Step) -> tuple[Problem, Ranking]:
    """A pool of four with the relevant candidate first, and a ranker that left it in that order."""
    problem = small_problem(qid=f"q{k}")
    return problem, ranking_from(problem, problem.identifiers, steps, Usage())


def firsts(*steps: Step) -> Counter[str]:
    cases = (left_as_given(k, *steps) for k in range(400))
    return Counter(undecided_by_coin(*case, "model").docids[0] for case in cases)


def test_what_was_never_asked_about_is_ordered_by_a_coin_that_ignores_the_order_given() -> None:
    counts = firsts()
    assert all(abs(counts[docid] - 100) < 4 * (400 * 3 / 16) ** 0.5 for docid in ("d1", "d2", "d3", "d4"))
    problem, ranking = left_as_given(1)
    other = replace(ranking, docids=ranking.docids[::-1])
    assert undecided_by_coin(problem, ranking, "a").docids == undecided_by_coin(problem, other, "a").docids
    assert undecided_by_coin(problem, ranking, "a").scores == ranking.scores


def test_a_candidate_that_no_step_saw_may_stand_anywhere_but_a_tail_stays_behind_its_head() -> None:
    behind = Step((2, 3, 4), Answer("valid", (2, 3, 4)))
    assert firsts(behind).keys() == {"d1", "d2"}
    head = Step((1, 2), Answer("valid", (1, 2)))
    problem, ranking = left_as_given(1, head)
    assert undecided_by_coin(problem, ranking, "model") == ranking


def test_candidates_that_thoughts_left_over_tie_and_chosen_ones_do_not() -> None:
    thought = Step((1, 2, 3, 4), Answer("valid", (4,)), (4,))
    assert firsts(thought).keys() == {"d1", "d2", "d3"}
    problem, ranking = left_as_given(1, replace(thought, probabilities={1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}))
    assert undecided_by_coin(problem, ranking, "model") == ranking


def test_an_unasked_candidate_may_come_to_stand_anywhere() -> None:
    behind = Step((2, 3, 4), Answer("valid", (2, 3, 4)))
    cases = (left_as_given(k, behind) for k in range(400))
    places = Counter(undecided_by_coin(*case, "m").docids.index("d1") for case in cases)
    assert sorted(places) == [0, 1, 2, 3] and all(abs(n - 100) < 35 for n in places.values())
