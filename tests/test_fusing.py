"""Fusion with the first stage: right by hand, never against what both say, and only where there is a first stage."""

from __future__ import annotations

from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import small_problem
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.elimination import ranking_from
from r1ranker.errors import ConfigError, DataError
from r1ranker.evaluation.fusion import choose_weight
from r1ranker.evaluation.systems import parse_system
from r1ranker.io.config import RunConfig
from r1ranker.problem import Problem, Ranking, Usage
from r1ranker.ranking.fusing import Fusion, _reciprocal, fuse, parse_fusion
from r1ranker.ranking.rankers import Fused, IRanker
from r1ranker.ranking.spec import RankerSpec

WAYS: tuple[Fusion, ...] = ("rrf", 0.0, 0.3, 0.5, 1.0)


def problem_with(prior: dict[str, float], n: int = 0, **fields: object) -> Problem:
    return small_problem(n or len(prior), prior=prior, **fields)


def ranked(problem: Problem, *order: int) -> Ranking:
    return ranking_from(problem, order, (), Usage(calls=len(order)))


def order_of(ranking: Ranking) -> list[int]:
    return [int(docid.removeprefix("d")) for docid in ranking.docids]


def test_reciprocal_ranks_by_hand() -> None:
    problem = problem_with({"d1": 1.0, "d2": 9.0, "d3": 5.0, "d4": 3.0})  # the first stage: 2 3 4 1
    # d1 1/61 + 1/64 = 0.0320, d2 1/64 + 1/61 = 0.0320, d3 1/62 + 1/62 = 0.0323, d4 1/63 + 1/63 = 0.0317
    assert order_of(fuse(problem, ranked(problem, 1, 3, 4, 2), "rrf")) == [3, 1, 2, 4]  # of equals the model's first


def test_weights_by_hand() -> None:
    problem = problem_with({"d1": 0.0, "d2": 10.0, "d3": 8.0})  # from 0 to 1: 0, 1, 0.8
    ranking = ranked(problem, 1, 3, 2)  # 1, 0.5, 0 for d1, d3, d2
    assert order_of(fuse(problem, ranking, 0.5)) == [3, 1, 2]  # d3 0.65; d1 and d2 0.5
    assert order_of(fuse(problem, ranking, 0.2)) == [2, 3, 1]  # d2 0.80, d3 0.74, d1 0.20
    assert order_of(fuse(problem, ranking, 0.9)) == [1, 3, 2]  # d1 0.90, d3 0.53, d2 0.10


def test_the_ends_of_the_weight_are_the_two_orders() -> None:
    problem = problem_with({"d1": 1.0, "d2": 1.0, "d3": 7.0}, n=4)  # d4 is not known, and so last with the lowest
    ranking = ranked(problem, 4, 2, 1, 3)
    assert order_of(fuse(problem, ranking, 1)) == [4, 2, 1, 3]
    assert order_of(fuse(problem, ranking, 0)) == [3, 4, 2, 1]


@given(st.lists(st.integers(0, 4) | st.none(), min_size=2, max_size=6), st.randoms(), st.sampled_from(WAYS))
def test_what_both_say_stays(scores: list[int | None], rng: object, how: Fusion) -> None:
    prior = {f"d{k}": float(score) for k, score in enumerate(scores, 1) if score is not None}
    problem = problem_with(prior or {"d1": 1.0}, n=len(scores))
    order = [*problem.identifiers]
    rng.shuffle(order)  # type: ignore[attr-defined]
    fused = fuse(problem, ranked(problem, *order), how)
    place = {k: i for i, k in enumerate(order_of(fused))}
    known = {k: problem.prior.get(f"d{k}", -1.0) for k in order}
    for i, better in enumerate(order):
        for worse in order[i + 1 :]:
            assert known[better] < known[worse] or place[better] < place[worse]
    assert all(a > b for a, b in zip(fused.scores, fused.scores[1:], strict=False))


def test_the_order_of_the_pool_does_not_decide_ties_of_the_prior() -> None:
    problem = problem_with({"d1": 1.0, "d2": 1.0, "d3": 1.0})
    for order, how in product(permutations((1, 2, 3)), WAYS):
        assert order_of(fuse(problem, ranked(problem, *order), how)) == list(order)


def test_without_a_prior_a_weight_is_refused_and_ranks_take_the_order_given() -> None:
    problem = small_problem(3)
    with pytest.raises(DataError, match=r"'q1' of task 'toy': has no prior"):
        fuse(problem, ranked(problem, 3, 2, 1), 0.5)
    assert order_of(fuse(problem, ranked(problem, 2, 3, 1), "rrf")) == [2, 1, 3]  # d1 and d3: 1/61 + 1/63, 2/62 + ...


def test_a_ranking_that_failed_stays_failed() -> None:
    problem = problem_with({"d1": 1.0, "d2": 2.0})
    failed = Ranking("q1", (), (), error="no answer")
    assert fuse(problem, failed, "rrf") is failed


def test_a_part_of_the_pool_is_no_ranking_to_fuse() -> None:
    problem = problem_with({"d1": 1.0, "d2": 2.0})
    with pytest.raises(DataError, match="its whole pool"):
        fuse(problem, Ranking("q1", ("d1",), (1.0,)), "rrf")


def test_a_fused_ranker_asks_what_the_inner_one_asks() -> None:
    problem = problem_with({"d1": 1.0, "d2": 9.0, "d3": 5.0, "d4": 3.0})
    inner = IRanker(ScriptedBackend(), think=False)
    plain, fused = inner.rank(problem), Fused(inner, "rrf").rank(problem)
    assert fused.docids == fuse(problem, plain, "rrf").docids
    assert fused.steps == plain.steps
    assert (fused.usage.calls, fused.usage.prompt_tokens) == (plain.usage.calls, plain.usage.prompt_tokens)


def test_a_fused_ranker_misses_the_prior_before_it_asks() -> None:
    def never(*_: object) -> float:
        raise AssertionError("asked")

    with pytest.raises(DataError, match="has no prior"):
        Fused(IRanker(ScriptedBackend(weigh=never), think=False), 0.5).rank(small_problem(3))


@pytest.mark.parametrize("how", ["mean", "1.5", "-0.1", "nan"])
def test_what_is_no_way_to_fuse_is_refused(how: str) -> None:
    with pytest.raises(ConfigError, match="neither rrf nor the model's weight"):
        parse_fusion(how)
    with pytest.raises(ConfigError, match="fuse"):
        parse_system(f"x=iranker:nano,fuse={how}", RunConfig()).spec.around(ScriptedBackend())


def test_a_spec_names_the_fusion() -> None:
    assert parse_system("x=iranker:nano,fuse=rrf", RunConfig()).spec.fuse == "rrf"
    assert parse_system("x=iranker:nano,fuse=0.3", RunConfig()).spec.fuse == 0.3
    ranker = RankerSpec(fuse=parse_fusion("0.25"), window=20).around(ScriptedBackend())
    assert isinstance(ranker, Fused)
    assert ranker.how == 0.25


def test_the_weight_chosen_on_dev_is_that_of_the_better_one() -> None:
    """The relevant one is d1: the prior is right and the model wrong, or the other way round."""
    right, wrong = {"d1": 3.0, "d2": 2.0, "d3": 1.0}, {"d1": 1.0, "d2": 2.9, "d3": 3.0}
    by_prior = [problem_with(right, qid=f"q{i}") for i in range(3)]
    by_model = [problem_with(wrong, qid=f"q{i}") for i in range(3)]
    assert choose_weight([ranked(p, 3, 2, 1) for p in by_prior], by_prior) < 0.5
    assert choose_weight([ranked(p, 1, 2, 3) for p in by_model], by_model) > 0.5
    assert choose_weight([ranked(p, 1, 2, 3) for p in by_prior], by_prior) == 0.5  # nothing to choose
    with pytest.raises(DataError, match="have no ranking"):
        choose_weight([ranked(by_prior[0], 1, 2, 3)], by_prior)
    empty = Problem("empty", "t", "passage", (), query="q", gains={"x": 1}, nothing_found=True)
    assert choose_weight([ranked(p, 3, 2, 1) for p in by_prior], [*by_prior, empty]) < 0.5


def test_a_weight_is_chosen_over_tasks_not_over_queries() -> None:
    right, wrong = {"d1": 3.0, "d2": 2.0, "d3": 1.0}, {"d1": 1.0, "d2": 2.9, "d3": 3.0}
    many = [small_problem(3, prior=right, qid=f"a{i}", task="many") for i in range(3)]
    model = [small_problem(3, prior=wrong, qid=f"b{i}", task=f"t{i}") for i in range(2)]
    rankings = [ranking_from(p, (3, 2, 1), (), Usage()) for p in many]
    rankings += [ranking_from(p, (1, 2, 3), (), Usage()) for p in model]
    assert choose_weight(rankings, [*many, *model]) > 0.5


def test_reciprocal_ranks_are_by_sixty_and_ties_share_their_mean() -> None:
    assert _reciprocal({1: 3.0, 2: 2.0, 3: 2.0}) == pytest.approx({1: 1 / 61, 2: 1 / 62.5, 3: 1 / 62.5})


def test_what_lies_below_the_depth_is_not_fused_into_the_head() -> None:
    problem = problem_with({"d1": 1.0, "d2": 2.0, "d3": 9.0, "d4": 8.0})
    ranker = RankerSpec(depth=2, fuse="rrf", think=False).around(ScriptedBackend())
    docids = ranker.rank(problem).docids
    assert {*docids[:2]} == {"d1", "d2"}
    assert docids[2:] == ("d3", "d4")
