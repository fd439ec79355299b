"""Keeping keys and values between calls changes what is computed, never what comes out."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, MistralConfig

from r1ranker.backends.prefix import PrefixCache, Row, can_reuse
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.elimination import sampled_pool
from r1ranker.problem import Problem, Ranking
from r1ranker.prompts import build_prompt, sampled_past
from r1ranker.ranking.rankers import IRanker

MakeProblem = Callable[..., Problem]


def recomputing(backend: TransformersBackend) -> TransformersBackend:
    other = copy.copy(backend)
    other._prefixes = None
    return other


def rank(backend: TransformersBackend, problems: list[Problem], **knobs: object) -> list[Ranking]:
    return IRanker(backend, layout="append", **knobs).rank_many(problems)  # type: ignore[arg-type]


@pytest.fixture
def problems(make_problem: MakeProblem) -> list[Problem]:
    return [make_problem(n, qid=f"q{n}") for n in (5, 12, 3, 12, 8, 2, 11)]


def test_orders_and_probabilities_are_those_of_recomputation(
    backend: TransformersBackend, problems: list[Problem]
) -> None:
    # three at a time: rows finish at different steps and others take their place
    kept = rank(backend, problems, think=False, batch_size=3)
    anew = rank(recomputing(backend), problems, think=False, batch_size=3)
    for a, b in zip(kept, anew, strict=True):
        assert a.docids == b.docids
        for step, other in zip(a.steps, b.steps, strict=True):
            assert step.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_thoughts_are_those_of_recomputation(backend: TransformersBackend, problems: list[Problem]) -> None:
    kept = rank(backend, problems, think=True, batch_size=3, max_new_tokens=9)
    anew = rank(recomputing(backend), problems, think=True, batch_size=3, max_new_tokens=9)
    for a, b in zip(kept, anew, strict=True):
        assert [step.completion for step in a.steps] == [step.completion for step in b.steps]
        assert a.usage.generated_tokens == b.usage.generated_tokens


def test_only_what_is_new_is_computed(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    problem = make_problem(20)
    ranking = rank(tiny, [problem], think=False)[0]
    first = build_prompt(problem, problem.identifiers, "iranker", layout="append", think=False)
    prefix = len(tiny.encoder.encode(first))
    entry = len(tiny.encoder.encode_text("[1]</answer><answer>"))
    assert ranking.usage.prompt_tokens == prefix + 18 * entry
    assert rank(recomputing(tiny), [problem], think=False)[0].usage.prompt_tokens > 18 * prefix


def test_two_queries_with_the_same_text_are_kept_apart(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    twins = [make_problem(9, qid="q1"), make_problem(9, qid="q1")]
    a, b = rank(tiny, twins, think=False)
    assert a.docids == b.docids == rank(recomputing(tiny), twins[:1], think=False)[0].docids


def test_a_past_that_changed_is_taken_back(backend: TransformersBackend, make_problem: MakeProblem) -> None:
    problem, rng = make_problem(12), random.Random(3)
    for _ in range(12):
        pool = sampled_pool(problem, rng.randint(2, 11), rng)
        past = sampled_past(problem, pool, rng, think=False)
        prompt = build_prompt(problem, pool, "iranker", layout="append", think=False, past=past)
        kept = backend.choose([prompt], [pool])[0]
        anew = recomputing(backend).choose([prompt], [pool])[0]
        assert kept.probabilities == pytest.approx(anew.probabilities, abs=1e-4)


def test_holes_are_packed_when_they_are_most_of_the_columns(tiny: TransformersBackend) -> None:
    cache = PrefixCache(tiny.network, tiny.pad_id, 64)
    rng = random.Random(0)
    rows: list[list[int]] = []
    for step in range(30):
        common = 3 if step % 2 else 30
        rows = [[*(row[:common] or [5] * common), *rng.choices(range(2, 300), k=40)] for row in rows or [[], []]]
        logits, _ = cache.next_logits([Row(str(i), row) for i, row in enumerate(rows)])
        for i, row in enumerate(rows):
            with torch.no_grad():
                alone = tiny.network(input_ids=torch.tensor([row])).logits[0, -1]
            assert torch.allclose(logits[i, 0], alone, atol=1e-3)
    assert cache.mask_B_L.shape[1] < 200


def test_after_an_update_nothing_old_is_used(tiny_dir: str, make_problem: MakeProblem) -> None:
    backend = TransformersBackend.load(str(tiny_dir))
    problem = make_problem(6)
    prompt = build_prompt(problem, problem.identifiers, "iranker", layout="append", think=False)
    backend.choose([prompt], [problem.identifiers])
    with torch.no_grad():
        for parameter in backend.network.parameters():
            parameter.mul_(1.5)
    backend.forget()
    kept = backend.choose([prompt], [problem.identifiers])[0]
    anew = recomputing(backend).choose([prompt], [problem.identifiers])[0]
    assert kept.probabilities == pytest.approx(anew.probabilities, abs=1e-4)


def test_networks_with_a_window_are_not_trusted_with_holes() -> None:
    class Network:
        def __init__(self, config: object) -> None:
            self.config = config

    assert can_reuse(Network(LlamaConfig(num_hidden_layers=2)))
    assert not can_reuse(Network(MistralConfig(num_hidden_layers=2, sliding_window=64)))
