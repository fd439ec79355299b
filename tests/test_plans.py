"""Cheaper, steadier and longer rankings: whatever is composed, the pool stays whole and the cost is counted."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1ranker.backends.base import Backend, Choice
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import ConfigError
from r1ranker.problem import Candidate, Problem, Ranking
from r1ranker.prompts import Prompt
from r1ranker.ranking.plans import Budget, OutOfTime, Reply, judged
from r1ranker.ranking.rankers import (
    DRanker,
    First,
    Fitted,
    Hybrid,
    IRanker,
    Ranker,
    Shuffled,
    Tournament,
    Windows,
    Within,
)
from r1ranker.ranking.spec import RankerSpec, parse_spec

MakeProblem = Callable[..., Problem]


def texts(prompt: Prompt) -> dict[int, str]:
    lines = [line for line in prompt.text.split("\n") if line.startswith("[")]
    return {int(line[1 : line.index("]")]): line for line in lines}


def by_number(prompt: Prompt, k: int) -> float:
    """The larger the number in the candidate's own text, the worse it is, whatever its identifier."""
    number = int(texts(prompt)[k].rsplit(" ", 1)[1])
    return float(2.0 ** (-number if "Rank all" in prompt.text else number))


BACKEND = ScriptedBackend(weigh=by_number)


def eliminating(**knobs: object) -> IRanker:
    return IRanker(BACKEND, think=False, **knobs)  # type: ignore[arg-type]


def shuffle(problem: Problem, seed: int = 0) -> Problem:

    candidates = list(problem.candidates)
    random.Random(seed).shuffle(candidates)
    return dataclasses.replace(problem, candidates=tuple(candidates))


def plain_problem(n: int) -> Problem:
    candidates = tuple(Candidate(f"d{k}", f"text {k}") for k in range(1, n + 1))
    return Problem("q", "toy", "passage", candidates, query="what")


def in_order(n: int) -> tuple[str, ...]:
    return tuple(f"d{k}" for k in range(1, n + 1))


RANKERS: dict[str, Callable[[], Ranker]] = {
    "drop": lambda: eliminating(drop=3),
    "append drop": lambda: eliminating(drop=4, layout="append"),
    "budget": lambda: Within(eliminating(), Budget(calls=4)),
    "head": lambda: Hybrid(eliminating(), DRanker(BACKEND, think=False), 5),
    "tail": lambda: Hybrid(eliminating(), DRanker(BACKEND, think=False), 5, "tail"),
    "tournament": lambda: Tournament(eliminating(), 6),
    "shuffled": lambda: Shuffled(eliminating(), 3),
    "shuffled windows": lambda: Shuffled(Windows(DRanker(BACKEND, think=False), 8, 4), 2),
}


@pytest.mark.parametrize("name", RANKERS)
def test_a_perfect_judge_ranks_perfectly_however_it_is_asked(name: str, make_problem: MakeProblem) -> None:
    problem = shuffle(make_problem(12))
    ranking = RANKERS[name]().rank(problem)
    if name == "tournament":  # it orders what it keeps; losers stand by round
        assert ranking.docids[:6] == in_order(6)
    elif name == "shuffled windows":  # one pass brings only the best to the head
        assert ranking.docids[:4] == in_order(4)
    else:
        assert ranking.docids == in_order(12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 31), st.sampled_from(sorted(RANKERS)), st.integers(0, 99))
def test_no_candidate_is_lost_or_doubled_and_every_step_speaks_of_the_whole_pool(n: int, name: str, seed: int) -> None:

    weights = random.Random(seed)
    backend = ScriptedBackend(lambda prompt: "[1] > [2]</answer>", lambda prompt, k: weights.random() + 0.01)
    ranker = RANKERS[name]()
    point_at(ranker, backend)
    problem = plain_problem(n)
    ranking = ranker.rank(problem)
    check_whole(ranking, problem)
    for step in ranking.steps:
        assert set(step.removed) <= set(step.pool) <= set(problem.identifiers)
        assert set(step.probabilities) in (set(), set(step.pool))
    assert ranking.usage.calls == len(ranking.steps)


def ended_after(ranker: Ranker, problem: Problem, asks: int) -> Ranking | None:
    """What a plan makes of so many replies when it is told that the time is up; None where it asks no more."""
    plan = ranker.plan(problem)
    ask = next(plan)
    try:
        for _ in range(asks):
            assert ask.pool is not None
            ask = plan.send(Reply(BACKEND.choose([ask.prompt], [ask.pool])[0], 0.0))
    except StopIteration:
        return None
    with pytest.raises(StopIteration) as done:
        plan.throw(OutOfTime())
    return done.value.value  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", RANKERS)
def test_a_plan_that_is_told_the_time_is_up_asks_no_more_and_keeps_what_it_knows(
    name: str, make_problem: MakeProblem
) -> None:
    problem, asks = shuffle(make_problem(12)), 0
    while ranking := ended_after(RANKERS[name](), problem, asks):
        check_whole(ranking, problem)
        assert ranking.usage.cut_short == 1
        assert len(ranking.steps) <= asks
        asks += 1
    assert asks > 2
    assert RANKERS[name]().rank(problem).usage.cut_short == 0


def test_a_random_order_that_was_not_ranked_in_time_counts_nothing(make_problem: MakeProblem) -> None:
    problem = make_problem(6)
    for asks in (0, 5, 10):  # none, one and two whole rounds
        ranking = ended_after(Shuffled(eliminating(), 3), problem, asks)
        assert ranking is not None
        assert ranking.docids == in_order(6), "the order given, or that of the whole rounds"


def test_a_list_that_is_cut_keeps_what_was_named(make_problem: MakeProblem) -> None:
    problem = shuffle(make_problem(6))
    ranking = ended_after(DRanker(BACKEND), problem, 2)
    assert ranking is not None
    assert ranking.docids == in_order(6), "two that were named, the others by the last probabilities"
    assert (ranking.steps[0].answer.kind, len(ranking.steps[0].answer.ids)) == ("incomplete", 2)


def point_at(ranker: Ranker, backend: ScriptedBackend) -> None:
    for part in (getattr(ranker, "inner", None), getattr(ranker, "first", None)):
        if part is not None:
            point_at(part, backend)
    if isinstance(ranker, (IRanker, DRanker)):
        ranker.backend = backend


def check_whole(ranking: Ranking, problem: Problem) -> None:
    assert sorted(ranking.docids) == sorted(c.docid for c in problem.candidates)


def test_drop_takes_the_likeliest_at_once_and_stops_at_top_k(make_problem: MakeProblem) -> None:
    ranking = eliminating(drop=4, top_k=3).rank(make_problem(12))
    assert [step.removed for step in ranking.steps] == [(12, 11, 10, 9), (8, 7, 6, 5), (4,)]
    assert ranking.docids == in_order(12)


def test_append_with_drop_writes_down_each_removal(make_problem: MakeProblem) -> None:
    seen: list[str] = []

    def weigh(prompt: Prompt, k: int) -> float:
        seen.append(prompt.transcript)
        return by_number(prompt, k)

    IRanker(ScriptedBackend(weigh=weigh), think=False, layout="append", drop=2).rank(make_problem(6))
    assert seen[-1].count("</answer>") == 4
    assert [f"[{k}]" in seen[-1] for k in range(1, 7)] == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("budget", "steps"), [(Budget(calls=3), 3), (Budget(tokens=1), 1), (Budget(seconds=1e-9), 1), (Budget(), 11)]
)
def test_a_budget_ends_the_steps_and_the_rest_is_ordered_by_what_is_known(
    budget: Budget, steps: int, make_problem: MakeProblem
) -> None:
    ranking = Within(eliminating(), budget).rank(make_problem(12))
    assert len(ranking.steps) == steps
    assert ranking.docids == in_order(12)  # without a step: pool order


@pytest.mark.parametrize(("size", "drop", "calls"), [(1, 1, 1), (3, 1, 3), (3, 2, 2), (99, 1, 11)])
def test_the_first_few_are_known_after_as_many_selections(
    size: int, drop: int, calls: int, make_problem: MakeProblem
) -> None:
    best = ScriptedBackend(weigh=lambda prompt, k: 1 / by_number(prompt, k))
    ranker = IRanker(best, ask="best", drop=drop)
    for inner in (ranker, Within(Fitted(ranker, 10_000), Budget(seconds=60))):
        ranking = First(inner, size).rank(make_problem(12))
        assert (ranking.usage.calls, ranking.docids[:size], ranking.usage.cut_short) == (calls, in_order(12)[:size], 0)
    worst = First(eliminating(), size).rank(make_problem(12))
    assert (worst.usage.calls, worst.docids) == (11, in_order(12)), "removing the worst ends at the last"


def test_a_window_of_the_whole_list_asks_what_the_inner_ranker_asks(make_problem: MakeProblem) -> None:
    problem = shuffle(make_problem(9))
    assert Windows(eliminating(), 9, 4).rank(problem).steps == eliminating().rank(problem).steps


def test_windows_slide_from_the_end_and_reach_the_head(make_problem: MakeProblem) -> None:
    pools = [step.pool for step in Windows(DRanker(BACKEND, think=False), 6, 3).rank(make_problem(14)).steps]
    assert [(min(pool), max(pool)) for pool in pools] == [(9, 14), (6, 11), (3, 8), (1, 5)]


def test_shuffles_take_out_what_the_place_in_the_pool_did(make_problem: MakeProblem) -> None:
    first_wins = ScriptedBackend(weigh=lambda prompt, k: 5.0 ** (k + 2 * (by_number(prompt, k) > 2.0**6)))
    problem = shuffle(make_problem(12))
    once = IRanker(first_wins, think=False).rank(problem)
    often = Shuffled(IRanker(first_wins, think=False), 40).rank(problem)

    def misplaced(ranking: Ranking) -> int:
        return sum(docid in in_order(6) for docid in ranking.docids[6:])

    assert misplaced(often) <= misplaced(once)
    assert often.docids == Shuffled(IRanker(first_wins, think=False), 40).rank(problem).docids  # and by seed the same


def test_composed_rankers_share_batches(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    sizes: list[int] = []
    inner = tiny.choose

    def choose(prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        sizes.append(len(prompts))
        return inner(prompts, pools)

    class Watched(Backend):
        name = "watched"
        generate = tiny.generate

    watched = Watched()
    watched.choose = choose  # type: ignore[attr-defined]
    ranker = Tournament(IRanker(watched, think=False), 4)  # type: ignore[arg-type]
    ranker.rank_many([make_problem(8, qid=f"q{i}") for i in range(3)])
    assert set(sizes) == {3}


def test_a_spec_builds_what_it_names() -> None:
    whole = RankerSpec(head=5, window=20, shuffles=2, max_calls=7, drop=2).around(BACKEND)
    assert isinstance(whole, Within) and whole.budget == Budget(calls=7)
    ranker = whole.inner
    assert isinstance(ranker, Shuffled)
    assert isinstance(ranker.inner, Windows)
    assert ranker.inner.stride == 10
    assert isinstance(ranker.inner.inner, Hybrid)
    assert ranker.inner.inner.inner == eliminating(drop=2)
    assert RankerSpec(design="iranker", max_calls=7).around(BACKEND) == Within(eliminating(), Budget(calls=7))


@pytest.mark.parametrize("parts", [{"window": 6}, {"tournament": 6}, {"shuffles": 3}])
def test_a_budget_is_of_the_whole_query_however_it_is_ranked(parts: dict[str, int], make_problem: MakeProblem) -> None:
    problem = make_problem(20)
    ranking = RankerSpec(design="iranker", max_calls=4, **parts).around(BACKEND).rank(problem)  # type: ignore[arg-type]
    assert ranking.usage.calls == len(ranking.steps) == 4
    assert sorted(ranking.docids) == sorted(c.docid for c in problem.candidates)
    assert not ranking.usage.cut_short, "no deadline came"
    free, ample = (RankerSpec(design="iranker", max_calls=most, **parts) for most in (None, 1000))  # type: ignore[arg-type]
    assert free.around(BACKEND).rank(problem).steps == ample.around(BACKEND).rank(problem).steps


def test_a_design_that_the_model_chooses_may_have_a_budget() -> None:
    RankerSpec(model="nano", design=None, max_seconds=2, top_k=2).check()
    ranker = RankerSpec(design=None, max_seconds=2).around(BACKEND)
    assert isinstance(ranker, Within) and isinstance(ranker.inner, DRanker)


def test_a_choice_of_thoughts_without_any_is_refused() -> None:
    with pytest.raises(ConfigError, match="give thoughts too"):
        RankerSpec(model="nano", recall="random").check()


@pytest.mark.parametrize("parts", [{"window": 5}, {"depth": 5}, {"head": 5}])
def test_where_the_best_is_asked_for_a_part_of_top_k_is_asked_about(
    parts: dict[str, int], make_problem: MakeProblem
) -> None:
    ranker = RankerSpec(design="iranker", ask="best", top_k=5, **parts).around(BACKEND)  # type: ignore[arg-type]
    assert ranker.rank(make_problem(8)).usage.calls > 0


@pytest.mark.parametrize("merged", [{"fuse": "rrf"}, {"shuffles": 3}])
def test_where_places_are_merged_top_k_changes_no_place(merged: dict[str, Any], make_problem: MakeProblem) -> None:
    problem = make_problem(9)
    few, whole = (RankerSpec(design="iranker", ask="best", top_k=k, **merged).around(BACKEND) for k in (2, 1))
    assert few.rank(problem).docids == whole.rank(problem).docids


def test_a_judge_that_may_leave_all_is_not_asked(make_problem: MakeProblem) -> None:
    plan = judged(make_problem(3), "worst", top_k=5)
    with pytest.raises(StopIteration) as done:
        next(plan)
    assert done.value.value.usage.calls == 0
    assert done.value.value.docids == ("d1", "d2", "d3")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"window": 4, "tournament": 4}, "not both"),
        ({"stride": 4}, "needs a window"),
        ({"window": 4, "stride": 5}, "stride of 1 to 4"),
        ({"design": "dranker", "head": 3}, "needs the design iranker"),
        ({"drop": 2, "think": True}, "needs think=False"),
        ({"drop": 0}, "at least 1"),
        ({"tournament": 1}, "at least 2"),
        ({"window": 1}, "asks nothing; give 2 or more"),
        ({"depth": 1}, "asks nothing; give 2 or more"),
        ({"truncate": -1}, "at least 1 token"),
        ({"window": 5, "top_k": 5}, "window=5 with top_k=5 asks nothing"),
        ({"tournament": 4, "top_k": 9}, "tournament=4 with top_k=9 asks nothing"),
        ({"head": 1}, "head=1 with top_k=1 asks nothing"),
        ({"depth": 10, "top_k": 10}, "depth=10 with top_k=10 asks nothing"),
        ({"batch_size": 0}, "batch_size=0 ranks nothing"),
        ({"prices": Path("prices.yaml")}, "prices are of endpoints"),
        ({"readout": "identifier", "layout": "relist"}, "readout=identifier is of layout blocks, not of relist"),
        ({"design": "dranker", "drop": 2, "top_k": 5}, "top_k and drop means nothing to the design dranker"),
        ({"design": "dranker", "max_calls": 5}, "a budget means nothing to the design dranker"),
        ({"max_calls": 0}, "a budget of 0 calls asks nothing"),
        ({"max_calls": 0, "window": 4}, "a budget of 0 calls asks nothing"),
        ({"max_tokens": -5}, "a budget of -5 tokens asks nothing"),
        ({"max_seconds": 0.0}, "a budget of 0.0 seconds asks nothing"),
        ({"layout": "apend"}, "layout 'apend' is not one of relist"),
        ({"design": "ranker"}, "design 'ranker' is not one of dranker, iranker"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RankerSpec(**knobs).around(BACKEND)  # type: ignore[arg-type]


def test_a_spec_is_read_from_text_and_names_what_it_does_not_know() -> None:
    spec = parse_spec(RankerSpec(), ["layout=append", "top_k=5", "base_urls=[http://a/v1]", "max_seconds=0.5"])
    assert spec == RankerSpec(layout="append", top_k=5, base_urls=("http://a/v1",), max_seconds=0.5)
    for text, message in [("topk=5", "did you mean 'top_k'"), ("top_k=x", "top_k"), ("layout", "key=value")]:
        with pytest.raises(ConfigError, match=message):
            parse_spec(RankerSpec(), [text])


def test_a_hybrid_of_two_models_is_refused_and_not_asked_of_one() -> None:
    other = ScriptedBackend(weigh=lambda prompt, identifier: 1.0)
    with pytest.raises(ConfigError, match="same backend"):
        Hybrid(eliminating(), DRanker(other, think=False), 5)


def test_texts_are_cut_evenly_to_the_longest_that_fits(make_problem: MakeProblem) -> None:
    texts = ("short", "word " * 40, "x" * 300, "word " * 9)
    problem = make_problem(4, candidates=tuple(Candidate(f"d{k}", text) for k, text in enumerate(texts)), gains={})
    seen: list[str] = []

    def weigh(prompt: Prompt, k: int) -> float:
        seen.append(prompt.text)
        return 1.0

    spec = RankerSpec(truncate=160, top_k=3)
    ranking = spec.around(ScriptedBackend(weigh=weigh)).rank(problem)
    assert ranking.usage.cut == 1 and sorted(ranking.docids) == ["d0", "d1", "d2", "d3"]
    assert "short" in seen[0] and ("word " * 9).strip() in seen[0]
    assert 150 <= len(seen[0].encode()) // 3 <= 160
    longest = [len(text) for text in re.findall(r"word(?: word)+|x+", seen[0])]
    assert max(longest) - sorted(longest)[-2] <= len("word "), "both long texts end at one length"
    assert RankerSpec(truncate=500, top_k=3).around(ScriptedBackend()).rank(problem).usage.cut == 0


@pytest.mark.parametrize(
    "knobs",
    [
        {"layout": "relist"},
        {"layout": "append"},
        {"layout": "blocks"},
        {"layout": "blocks", "readout": "identifier"},
        {"design": "dranker"},
        {"think": True, "max_new_tokens": 20, "max_calls": 1},
    ],
)
def test_whatever_the_texts_they_are_cut_to_the_models_context(
    tiny: TransformersBackend, make_problem: MakeProblem, knobs: dict[str, Any]
) -> None:
    texts = ["word " * 900, "x" * 3000, "short", *(f"{k} words " * 200 for k in range(4))]
    problem = make_problem(7, candidates=tuple(Candidate(f"d{i}", text) for i, text in enumerate(texts)))
    fitted = RankerSpec(truncate="context", **knobs).around(tiny).rank(problem)
    assert (fitted.error, len(fitted.docids), fitted.usage.cut) == ("", 7, 1)
    assert "context of 1536 tokens" in RankerSpec(**knobs).around(tiny).rank(problem).error
    brief = make_problem(7)
    assert RankerSpec(truncate="context", **knobs).around(tiny).rank(brief).usage.cut == 0


def test_what_an_endpoint_can_read_is_not_known_and_nothing_is_cut(make_problem: MakeProblem) -> None:
    problem = make_problem(3, candidates=tuple(Candidate(f"d{i}", "word " * 9999) for i in range(3)))
    assert RankerSpec(truncate="context").around(ScriptedBackend()).rank(problem).usage.cut == 0


def test_the_better_halves_go_on_and_losers_keep_their_order(make_problem: MakeProblem) -> None:
    ranking = Tournament(eliminating(), 3).rank(make_problem(12))
    assert ranking.docids == in_order(12)
    assert ranking.usage.calls == 8 + 5 + 3 + 2  # groups of 3, 3, 3, 3; 3, 3, 2; 3, 2; 3
