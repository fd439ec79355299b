"""Our loop writes what `generate` of transformers writes, and samples what the model says."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from r1ranker.backends.base import STOP
from r1ranker.backends.sampling import Settings, Written, pick
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.problem import Problem, Splits
from r1ranker.prompts import Prompt, build_prompt

MakeProblem = Callable[..., Problem]


@pytest.fixture(scope="module")
def nano() -> TransformersBackend:
    return TransformersBackend.load("nano", device="cpu")


def by_library(backend: TransformersBackend, rows: list[list[int]], settings: Settings) -> list[Written]:
    return backend._generate(rows, settings)


def ids(written: list[Written]) -> list[list[int]]:
    return [row.token_ids for row in written]


def prompts_of(nano: TransformersBackend, splits: Splits, *, think: bool) -> list[list[int]]:
    """Of all tasks and of many lengths; the first three are one prompt."""
    rows = []
    for problem in splits["test"]:
        for size in (len(problem.candidates), 2):
            pool = problem.identifiers[:size]
            rows.append(nano.encoder.encode(build_prompt(problem, pool, "iranker", think=think)))
        rows.append(nano.encoder.encode(build_prompt(problem, problem.identifiers, "dranker", think=think)))
    assert max(map(len, rows)) > 2.5 * min(map(len, rows))
    return [rows[0], rows[0], *rows]


@pytest.mark.parametrize("think", [True, False])
def test_greedy_writing_is_that_of_transformers(nano: TransformersBackend, mini_splits: Splits, think: bool) -> None:
    rows = prompts_of(nano, mini_splits, think=think)
    settings = nano._settings(40, 0.0, traced=False)
    assert ids(nano._write(rows, settings)) == ids(by_library(nano, rows, settings))


def test_prompts_of_a_single_token_are_written_on(nano: TransformersBackend) -> None:
    assert len(nano.encoder.encode(Prompt(""))) == 1
    alone, beside = (nano.generate([Prompt(""), Prompt(text)], max_new_tokens=5)[0] for text in ("", "what is it"))
    assert alone.text == beside.text


def test_random_prompts_of_very_different_lengths_are_written_on_as_each_alone(backend: TransformersBackend) -> None:
    rng = random.Random(0)
    tokens = range(4, len(backend.encoder.tokenizer))
    rows = [rng.choices(tokens, k=length) for length in (2, 300, 17, 90, 2, 33, 300)]
    settings = backend._settings(25, 0.0, traced=False)
    together = ids(backend._write(rows, settings))
    assert together == [ids(by_library(backend, [row], settings))[0] for row in rows]
    assert len({len(token_ids) for token_ids in together}) >= 1


def test_rows_that_leave_do_not_change_the_others(tiny: TransformersBackend) -> None:
    """Most tokens end a row, so the batch shrinks at almost every token."""
    rng = random.Random(1)
    rows = [rng.choices(range(4, 300), k=rng.randint(3, 40)) for _ in range(40)]
    settings = dataclasses.replace(tiny._settings(30, 0.0, traced=True), stop_ids=tuple(range(0, 400, 5)))
    written = tiny._write(rows, settings)
    assert len({len(row.token_ids) for row in written}) > 5
    for row, prompt in zip(written, rows, strict=True):
        assert row.token_ids == tiny._write([prompt], settings)[0].token_ids
        assert not set(row.token_ids[:-1]) & set(settings.stop_ids)
        assert row.token_ids[-1] in settings.stop_ids or len(row.token_ids) == 30
        with torch.no_grad():
            whole = torch.tensor([prompt + row.token_ids])
            out = tiny.network(input_ids=whole, output_hidden_states=True)
        said = out.logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = [float(said[t, token]) for t, token in enumerate(row.token_ids)]
        assert row.logprobs == pytest.approx(expected, abs=1e-4)
        hidden = out.hidden_states[-1][0, len(prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack(row.hidden), hidden, atol=1e-3, rtol=1e-3)


def test_a_closing_tag_of_several_tokens_ends_a_row_with_its_last(plain: TransformersBackend) -> None:
    tag = plain.encoder.encode_text(STOP)
    assert len(tag) > 1
    stopped = plain._settings(9, 0.0, traced=False).stopped
    assert stopped is not None
    before = plain.encoder.encode_text("a long thought about [1] and [2] and what fits <answer>[2]")
    assert [stopped([*before, *tag[:end]]) for end in range(len(tag) + 1)] == [False] * len(tag) + [True]


def test_tokens_are_drawn_as_often_as_the_softmax_says() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, -torch.inf, 0.5])
    draws = 40_000
    for temperature in (1.0, 0.5, 2.0):
        seen = Counter(pick(logits.expand(draws, -1), temperature).tolist())
        expected = (logits / temperature).softmax(-1)
        for token, p in enumerate(expected.tolist()):
            assert seen[token] / draws == pytest.approx(p, abs=4 * (p * (1 - p) / draws) ** 0.5)
    assert pick(logits.expand(3, -1), 0.0).tolist() == [0, 0, 0]


def test_a_first_sampled_token_follows_the_model(nano: TransformersBackend, mini_splits: Splits) -> None:
    row = prompts_of(nano, mini_splits, think=False)[-1]
    draws = 2000
    torch.manual_seed(0)
    written = nano._write([row] * draws, nano._settings(1, 1.0, traced=False))
    seen = Counter(token for (token,) in ids(written))
    with torch.no_grad():
        expected = nano.network(input_ids=torch.tensor([row])).logits[0, -1].softmax(-1)
    likely = expected.topk(5)
    assert float(likely.values[1]) > 0.02  # a real choice
    for p, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        assert seen[token] / draws == pytest.approx(p, abs=4 * (p * (1 - p) / draws) ** 0.5 + 1e-4)


def test_the_seed_decides_what_is_sampled(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    problem = make_problem(4)
    prompts = [build_prompt(problem, problem.identifiers, "iranker", think=True)] * 5
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append([out.completion_ids for out in tiny.generate_ids(prompts, max_new_tokens=8, temperature=1.0)])
    assert outs[0] == outs[1] != outs[2]


def test_only_what_is_asked_for_is_traced(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    problem = make_problem(4)
    prompts = [build_prompt(problem, problem.identifiers, "iranker", think=True)]
    (plain,) = tiny.generate_ids(prompts, max_new_tokens=8, temperature=1.0)
    (traced,) = tiny.generate_ids(prompts, max_new_tokens=8, temperature=1.0, traced=True)
    assert plain.trace is None
    assert traced.trace is not None
    T = len(traced.completion_ids)
    assert traced.trace.logprobs_T.shape == (T,)
    assert traced.trace.hidden_T_H.shape == (T, tiny.network.config.hidden_size)
