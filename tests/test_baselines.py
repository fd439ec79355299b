"""Baselines: fair where they know nothing, right where they know something, the same each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

import pytest

from conftest import save_bert, small_problem
from r1ranker.baselines import BASELINES
from r1ranker.evaluation.measures import evaluate
from r1ranker.problem import Candidate, Problem

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
    problems = [small_problem(5, qid=f"q{k}", task="ab"[k % 2]) for k in range(6)]
    rankings = BASELINES[name](problems)
    assert [ranking.qid for ranking in rankings] == [problem.qid for problem in problems]
    assert all(sorted(ranking.docids) == ["d1", "d2", "d3", "d4", "d5"] for ranking in rankings)
    assert [r.docids for r in BASELINES[name](problems)] == [r.docids for r in rankings]
    assert BASELINES[name]([]) == []


@pytest.mark.parametrize("name", BASELINES)
def test_the_order_of_the_pool_does_not_matter(name: str) -> None:
    problems = [small_problem(6, qid=f"q{k}", scenario="routing") for k in range(8)]
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


def test_without_a_prior_passages_fall_back_to_bm25_and_others_to_chance() -> None:
    problem = small_problem(candidates=FRUIT, query="ripe bananas")
    assert BASELINES["prior"]([problem])[0].docids[0] == "d2"
    routing = [replace(problem, qid=f"q{k}", scenario="routing") for k in range(100)]
    assert len({ranking.docids[0] for ranking in BASELINES["prior"](routing)}) == 4


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
        rank([small_problem()])
    assert capfd.readouterr() == ("", "")


def test_oracle_cannot_be_exceeded() -> None:
    problem = small_problem(4, gains={"d2": 1, "d3": 3})
    (ranking,) = BASELINES["oracle"]([problem])
    assert ranking.docids[:2] == ("d3", "d2")
    assert evaluate([ranking], [problem])["nDCG@10"]["q1"] == pytest.approx(1)
