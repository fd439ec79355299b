"""Both designs over a scripted backend and a small real model."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.answers import parse_ranking
from r1ranker.backends.base import Backend, Choice, Completion
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import BackendError
from r1ranker.problem import Problem, Ranking
from r1ranker.prompts import LAYOUTS, NO_THOUGHT, Prompt
from r1ranker.ranking.rankers import DRanker, IRanker, Ranker, Tournament

MakeProblem = Callable[..., Problem]


def listed(prompt: Prompt) -> list[int]:
    return [int(k) for k in re.findall(r"^\[(\d+)\]", prompt.text, re.MULTILINE)]


def left(prompt: Prompt) -> list[int]:
    """Identifiers still in the pool, read from the prompt in either layout."""
    gone = {int(k) for k in re.findall(r"<answer>\[(\d+)\]</answer>", prompt.transcript)}
    return [k for k in listed(prompt) if k not in gone]


def largest_first(prompt: Prompt) -> str:
    return f"<think>out with the largest</think><answer>[{max(left(prompt))}]</answer>"


class Watched(Backend):
    """A backend that notes the size of every call."""

    name = "watched"

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.sizes: list[int] = []

    def generate(self, prompts: Sequence[Prompt], **settings: object) -> list[Completion]:
        self.sizes.append(len(prompts))
        return self.inner.generate(prompts, **settings)  # type: ignore[arg-type]

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        self.sizes.append(len(prompts))
        return self.inner.choose(prompts, pools)


def check_whole(ranking: Ranking, problem: Problem) -> None:
    assert sorted(ranking.docids) == sorted(c.docid for c in problem.candidates)
    assert len(ranking.scores) == len(ranking.docids)
    assert all(a > b for a, b in pairwise(ranking.scores))
    assert ranking.qid == problem.qid


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("think", [True, False])
def test_iranker_ranks_the_last_removed_second(layout: str, think: bool, make_problem: MakeProblem) -> None:
    backend = ScriptedBackend(largest_first, lambda prompt, k: 2.0**k)
    problem = make_problem(6)
    ranking = IRanker(backend, think=think, layout=layout).rank(problem)  # type: ignore[arg-type]
    assert ranking.docids == ("d1", "d2", "d3", "d4", "d5", "d6")
    check_whole(ranking, problem)
    assert [step.removed for step in ranking.steps] == [(6,), (5,), (4,), (3,), (2,)]
    assert [step.pool for step in ranking.steps] == [tuple(range(1, n + 1)) for n in (6, 5, 4, 3, 2)]
    assert ranking.usage.calls == 5
    assert ranking.broken == 0
    assert ranking.steps[0].thought == ("out with the largest" if think else "")


def test_append_shows_each_step_what_was_said_before(make_problem: MakeProblem) -> None:
    seen: list[Prompt] = []

    def write(prompt: Prompt) -> str:
        seen.append(prompt)
        return largest_first(prompt)

    ranking = IRanker(ScriptedBackend(write), layout="append", think=True).rank(make_problem(4))
    said = [f"{step.completion}\n" for step in ranking.steps]
    assert [prompt.transcript for prompt in seen] == ["", said[0], said[0] + said[1]]
    assert len({prompt.text for prompt in seen}) == 1


def test_usage_adds_up_over_steps(make_problem: MakeProblem) -> None:
    tokens: list[tuple[int, int]] = []
    scripted = ScriptedBackend(largest_first)

    class Counting(Watched):
        def generate(self, prompts: Sequence[Prompt], **settings: object) -> list[Completion]:
            completions = super().generate(prompts, **settings)
            tokens.extend((c.prompt_tokens, c.generated_tokens) for c in completions)
            return completions

    ranking = IRanker(Counting(scripted), think=True).rank(make_problem(5))
    assert len(tokens) == ranking.usage.calls == 4
    assert ranking.usage.prompt_tokens == sum(prompt for prompt, _ in tokens)
    assert ranking.usage.generated_tokens == sum(generated for _, generated in tokens)
    assert ranking.usage.seconds > 0


def test_seconds_are_shared_by_a_batch_not_counted_twice(make_problem: MakeProblem) -> None:
    class Slow(Watched):
        def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
            time.sleep(0.02)
            return super().choose(prompts, pools)

    problems = [make_problem(2, qid=f"q{i}") for i in range(10)]
    began = time.perf_counter()
    rankings = IRanker(Slow(ScriptedBackend()), think=False).rank_many(problems)
    elapsed = time.perf_counter() - began
    assert 0.02 <= sum(r.usage.seconds for r in rankings) <= elapsed


@pytest.mark.parametrize("think", [True, False])
def test_finished_problems_leave_the_batch(think: bool, make_problem: MakeProblem) -> None:
    watched = Watched(ScriptedBackend(largest_first))
    problems = [make_problem(n, qid=f"q{n}") for n in (2, 5, 3, 1)]
    IRanker(watched, think=think).rank_many(problems)
    assert watched.sizes == [3, 2, 1, 1]


def test_waiting_problems_take_the_places_of_finished_ones(make_problem: MakeProblem) -> None:
    watched = Watched(ScriptedBackend(largest_first))
    problems = [make_problem(n, qid=f"q{i}") for i, n in enumerate((2, 4, 2, 2, 2))]
    rankings = IRanker(watched, batch_size=2, think=True).rank_many(problems)
    assert watched.sizes == [2, 2, 2, 1]
    assert [r.qid for r in rankings] == [p.qid for p in problems]


def test_top_k_stops_early_and_orders_survivors_by_removal_probability(make_problem: MakeProblem) -> None:
    weight = {1: 3.0, 2: 1.0, 3: 2.0, 4: 8.0, 5: 9.0}
    watched = Watched(ScriptedBackend(weigh=lambda prompt, k: weight[k]))
    problem = make_problem(5)
    ranking = IRanker(watched, think=False, top_k=3).rank(problem)
    assert ranking.docids == ("d2", "d3", "d1", "d4", "d5")
    assert watched.sizes == [1, 1]
    check_whole(ranking, problem)


def test_top_k_with_thoughts_leaves_survivors_in_pool_order(make_problem: MakeProblem) -> None:
    backend = ScriptedBackend(lambda prompt: f"<think></think><answer>[{listed(prompt)[1]}]</answer>")
    ranking = IRanker(backend, top_k=3, think=True).rank(make_problem(5))
    assert ranking.docids == ("d1", "d4", "d5", "d3", "d2")


def test_top_k_of_the_whole_pool_asks_nothing(make_problem: MakeProblem) -> None:
    watched = Watched(ScriptedBackend())
    ranking = IRanker(watched, top_k=9, think=True).rank(make_problem(4))
    assert ranking.docids == ("d1", "d2", "d3", "d4")
    assert (watched.sizes, ranking.steps) == ([], ())


def test_a_batch_of_problems_with_nothing_to_ask_does_not_end_the_job(make_problem: MakeProblem) -> None:
    problems = [make_problem(n, qid=f"q{i}") for i, n in enumerate((3, 3, 3, 3, 7, 3))]
    rankings = IRanker(ScriptedBackend(), think=False, top_k=5, batch_size=2).rank_many(problems)
    assert [r.qid for r in rankings] == [p.qid for p in problems]


def test_a_broken_removal_is_counted_and_takes_the_last_listed(make_problem: MakeProblem) -> None:
    said = {4: "<think>", 3: "<think></think><answer>[9]</answer>", 2: "<think></think><answer>[1] [2]</answer>"}
    backend = ScriptedBackend(lambda prompt: said[len(left(prompt))])
    ranking = IRanker(backend, think=True).rank(make_problem(4))
    assert ranking.docids == ("d1", "d2", "d3", "d4")
    assert [step.answer.kind for step in ranking.steps] == ["missing", "unknown_id", "malformed"]
    assert ranking.broken == 3


def test_a_removal_cut_by_the_limit_is_truncated(make_problem: MakeProblem) -> None:
    backend = ScriptedBackend(lambda prompt: "<think> one two three </think> <answer>[1]</answer>")
    ranking = IRanker(backend, max_new_tokens=3, think=True).rank(make_problem(2))
    assert [step.answer.kind for step in ranking.steps] == ["truncated"]
    assert ranking.docids == ("d1", "d2")


def test_an_identifier_already_removed_is_unknown(make_problem: MakeProblem) -> None:
    backend = ScriptedBackend(lambda prompt: "<think></think><answer>[1]</answer>")
    ranking = IRanker(backend, layout="append", think=True).rank(make_problem(3))
    assert [step.answer.kind for step in ranking.steps] == ["valid", "unknown_id"]
    assert ranking.docids == ("d2", "d3", "d1")


def test_dranker_takes_the_order_as_written_in_one_call(make_problem: MakeProblem) -> None:
    watched = Watched(ScriptedBackend(lambda prompt: "<think>hm</think><answer>[3] > [1] > [2]</answer>"))
    problem = make_problem(3)
    ranking = DRanker(watched, think=True).rank(problem)
    assert ranking.docids == ("d3", "d1", "d2")
    check_whole(ranking, problem)
    assert (ranking.usage.calls, ranking.broken, watched.sizes) == (1, 0, [1])
    assert ranking.steps[0].thought == "hm"
    assert ranking.steps[0].removed == ()


def test_dranker_without_a_thought_chooses_each_identifier_among_those_not_named_yet(make_problem: MakeProblem) -> None:
    asked: list[Prompt] = []

    def weigh(prompt: Prompt, identifier: int) -> float:
        asked.append(prompt)
        return float(identifier)

    ranking = DRanker(ScriptedBackend(weigh=weigh), think=False).rank(make_problem(3))
    assert ranking.docids == ("d3", "d2", "d1")
    assert (ranking.broken, ranking.usage.calls) == (0, 1)
    (step,) = ranking.steps
    assert parse_ranking(step.completion, (1, 2, 3)) == step.answer
    assert [p.transcript + p.prefill for p in dict.fromkeys(asked)] == [NO_THOUGHT, f"{NO_THOUGHT}[3]>"]
    assert len({p.text for p in asked}) == 1


@pytest.mark.parametrize(
    ("answer", "order", "kind"),
    [
        ("[3]", (3, 1, 2, 4), "incomplete"),
        ("[3] > [9] > [2]", (3, 2, 1, 4), "unknown_id"),
        ("[2] > [2] > [1]", (2, 1, 3, 4), "duplicate"),
        ("none of them", (1, 2, 3, 4), "malformed"),
    ],
)
def test_dranker_completes_a_broken_ranking_in_pool_order(
    answer: str, order: tuple[int, ...], kind: str, make_problem: MakeProblem
) -> None:
    backend = ScriptedBackend(lambda prompt: f"<think></think><answer>{answer}</answer>")
    ranking = DRanker(backend, think=True).rank(make_problem(4))
    assert ranking.docids == tuple(f"d{k}" for k in order)
    assert (ranking.steps[0].answer.kind, ranking.broken) == (kind, 1)


def test_dranker_batches_by_batch_size(make_problem: MakeProblem) -> None:
    watched = Watched(ScriptedBackend(lambda prompt: "<think></think><answer>[1] > [2]</answer>"))
    DRanker(watched, batch_size=2, think=True).rank_many([make_problem(2, qid=f"q{i}") for i in range(5)])
    assert watched.sizes == [2, 2, 1]


class Broken(Backend):
    """A backend that cannot be reached from its second call on."""

    name = "broken"

    def __init__(self) -> None:
        self.inner = ScriptedBackend(largest_first)
        self.calls = 0

    def generate(self, prompts: Sequence[Prompt], **settings: object) -> list[Completion]:
        self.calls += 1
        if self.calls > 1:
            raise BackendError("the endpoint is gone; start it again")
        return self.inner.generate(prompts)

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        raise BackendError("the endpoint is gone; start it again")


@pytest.mark.parametrize(
    "ranker",
    [
        lambda b: IRanker(b, think=True),
        lambda b: IRanker(b, think=False),
        lambda b: DRanker(b, batch_size=1, think=True),
    ],
)
def test_a_failed_call_raises_and_never_returns_the_input_order(
    ranker: Callable[[Backend], Ranker], make_problem: MakeProblem
) -> None:
    with pytest.raises(BackendError, match="start it again"):
        ranker(Broken()).rank_many([make_problem(3), make_problem(3, qid="q2")])


def test_a_backend_that_loses_an_answer_raises(make_problem: MakeProblem) -> None:
    class Losing(Watched):
        def generate(self, prompts: Sequence[Prompt], **settings: object) -> list[Completion]:
            return super().generate(prompts, **settings)[:-1]

    problems = [make_problem(3), make_problem(3, qid="q2")]
    for ranker in (IRanker(Losing(ScriptedBackend()), think=True), DRanker(Losing(ScriptedBackend()), think=True)):
        with pytest.raises(ValueError, match="shorter"):
            ranker.rank_many(problems)


RANKERS: dict[str, Callable[[Backend], Ranker]] = {
    "iranker chosen": lambda b: IRanker(b, think=False),
    "iranker chosen, append": lambda b: IRanker(b, think=False, layout="append"),
    "iranker thinking": lambda b: IRanker(b, max_new_tokens=6, think=True),
    "iranker top 2": lambda b: IRanker(b, think=False, top_k=2),
    "dranker": lambda b: DRanker(b, max_new_tokens=12, think=True),
    "dranker without a thought": lambda b: DRanker(b, think=False, max_new_tokens=12),
}


@pytest.mark.parametrize("name", RANKERS)
def test_ranking_many_is_ranking_one_by_one(name: str, tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    problems = [make_problem(n, qid=f"q{i}") for i, n in enumerate((5, 2, 7, 1, 3))]
    ranker = RANKERS[name](tiny)
    together = ranker.rank_many(problems)
    for problem, ranking in zip(problems, together, strict=True):
        check_whole(ranking, problem)
        alone = ranker.rank(problem)
        assert (alone.docids, alone.scores) == (ranking.docids, ranking.scores)
        assert [s.completion for s in alone.steps] == [s.completion for s in ranking.steps]
        assert alone.usage.prompt_tokens == ranking.usage.prompt_tokens
    if name == "iranker chosen":
        assert any(
            ranking.docids != tuple(c.docid for c in p.candidates)
            for p, ranking in zip(problems, together, strict=True)
        )


@pytest.mark.parametrize("name", RANKERS)
def test_a_pool_of_one_candidate_is_ranked(name: str, make_problem: MakeProblem) -> None:
    problem = make_problem(1)
    ranking = RANKERS[name](ScriptedBackend()).rank(problem)
    assert ranking.docids == ("d1",)
    check_whole(ranking, problem)


def test_no_problems_give_no_rankings() -> None:
    assert IRanker(ScriptedBackend(), think=True).rank_many([]) == []
    assert DRanker(ScriptedBackend(), think=True).rank_many([]) == []


def test_a_real_model_removes_what_its_probabilities_say(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    for step in IRanker(tiny, think=False).rank(make_problem(6)).steps:
        assert sum(step.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert set(step.probabilities) == set(step.pool)
        assert step.probabilities[step.removed[0]] == max(step.probabilities.values())


ANY_COMPLETION = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "[1]", "[2]", "[3]", "[9]", " > ", "\n", "2", "²"])
    | st.text(max_size=8)
).map("".join)


@given(ANY_COMPLETION)
def test_any_completion_gives_a_permutation(make_problem: MakeProblem, completion: str) -> None:
    problem = make_problem(4)
    backend = ScriptedBackend(lambda prompt: completion)
    for ranker in (
        DRanker(backend, think=True),
        DRanker(backend, think=False),
        IRanker(backend, think=True),
        IRanker(backend, layout="append", think=True),
    ):
        check_whole(ranker.rank(problem), problem)


@pytest.mark.parametrize("think", [True, False])
def test_of_an_empty_pool_nothing_is_asked(make_problem: MakeProblem, think: bool) -> None:
    watched = Watched(ScriptedBackend(largest_first))
    problems = [make_problem(3), make_problem(qid="q2", candidates=(), nothing_found=True)]
    for ranker in (IRanker(watched, think=think), Tournament(DRanker(watched, think=think))):
        watched.sizes.clear()
        assert ranker.rank_many(problems)[1] == Ranking("q2", (), ())
        assert max(watched.sizes) == 1
