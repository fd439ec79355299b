"""Prompts to token ids, identifiers to tries, rows to batches."""

from __future__ import annotations

import gc
import math
import random
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from r1ranker.backends.encoding import Encoder, batches, build_trie
from r1ranker.backends.transformers_ import TransformersBackend, identifier_probabilities
from r1ranker.errors import BackendError
from r1ranker.problem import Problem
from r1ranker.prompts import Prompt, build_prompt

TEMPLATE = "{% for m in messages %}<U>{{ m.content }}</U>{% endfor %}{% if add_generation_prompt %}<A>{% endif %}"


def test_one_token_identifiers_fork_once(tiny: TransformersBackend) -> None:
    trie = tiny.encoder.trie((2, 7, 13))
    assert all(len(path) == 1 for path in trie.paths.values())
    assert trie.branches == {(): tuple(sorted(path[0] for path in trie.paths.values()))}
    assert trie.allowed(7) == (trie.branches[()],)


def test_many_token_identifiers_fork_where_they_differ(plain: TransformersBackend) -> None:
    pool = tuple(range(1, 21))
    trie = plain.encoder.trie(pool)
    assert max(len(path) for path in trie.paths.values()) > 2
    for k, path in trie.paths.items():
        assert plain.encoder.decode(path) == f"[{k}]"
        assert len(trie.allowed(k)) == len(path)
        for i, choices in enumerate(trie.allowed(k)):
            assert path[i] in choices
            expected = {other[i] for other in trie.paths.values() if other[:i] == path[:i]}
            assert set(choices) == expected


def test_a_path_without_a_fork_has_no_branch() -> None:
    trie = build_trie({1: (5, 6, 7), 2: (5, 6, 8)})
    assert trie.branches == {(5, 6): (7, 8)}
    assert trie.allowed(2) == ((5,), (6,), (7, 8))
    assert identifier_probabilities(build_trie({4: (5, 6)}), {}) == {4: 1.0}


@pytest.mark.parametrize("paths", [{1: (5, 6), 12: (5, 6)}, {1: (5,), 12: (5, 6)}, {12: (5, 6), 1: (5,)}])
def test_identifiers_that_cannot_be_told_apart_are_refused(paths: dict[int, tuple[int, ...]]) -> None:
    with pytest.raises(BackendError, match="apart; use another model"):
        build_trie(paths)


PATHS = st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3).map(tuple), min_size=1, max_size=12, unique=True)


@given(PATHS, st.randoms(use_true_random=False))
def test_probabilities_of_any_trie_sum_to_one(paths: list[tuple[int, ...]], rng: random.Random) -> None:
    trie = build_trie(dict(enumerate(paths, 1)))
    logprobs = {}
    for node, children in trie.branches.items():
        weights = [rng.random() + 0.01 for _ in children]
        logprobs[node] = {c: math.log(w / sum(weights)) for c, w in zip(children, weights, strict=True)}
    assert sum(identifier_probabilities(trie, logprobs).values()) == pytest.approx(1)


def test_a_prompt_is_text_then_transcript_then_prefill(
    backend: TransformersBackend, make_problem: Callable[..., Problem]
) -> None:
    prompt = build_prompt(
        make_problem(3), (1, 2), "iranker", layout="append", think=False, past=["<answer>[3]</answer>"]
    )
    assert prompt.transcript
    decoded = backend.encoder.decode(backend.encoder.encode(prompt))
    assert decoded == f"{prompt.text}\n{prompt.transcript}<answer>".lower()  # as its tokenizer reads all


def test_the_chat_template_is_used_where_there_is_one(tiny_dir: Path, make_problem: Callable[..., Problem]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_dir))
    tokenizer.chat_template = TEMPLATE
    encoder = Encoder(tokenizer)
    prompt = build_prompt(make_problem(2), (1, 2), "iranker", layout="append", think=False, past=["past\n"])
    assert encoder.decode(encoder.encode(prompt)) == f"<U>{prompt.text}</U><A>past\n<answer>".lower()


def test_the_beginning_token_stands_first_where_there_is_one(
    tiny_dir: Path, make_problem: Callable[..., Problem]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_dir), bos_token="<|end|>")
    ids = Encoder(tokenizer).encode(build_prompt(make_problem(2), (1, 2), "iranker"))
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


@given(st.lists(st.sampled_from(["text", "number ", "[1]", "é", "<think>", " "]), max_size=60), st.integers(1, 30))
def test_a_beginning_is_beyond_what_the_whole_prompt_is_beyond(
    tiny: TransformersBackend, parts: list[str], most: int
) -> None:
    prompt = Prompt("".join(parts))
    found = tiny.encoder.beyond(prompt, most)
    assert found == 0 or most < found <= tiny.encoder.length(prompt)


def test_only_a_text_too_long_for_any_tokens_is_told_by_its_beginning(tiny: TransformersBackend) -> None:
    words = "text number " * 100
    assert tiny.encoder.beyond(Prompt(words), 10) > 10
    assert tiny.encoder.beyond(Prompt(words[:80]), 10) == 0, "so short a text is read whole"
    assert tiny.encoder.beyond(Prompt(words, blocks=("a", "b")), 10) == 0, "blocks stand side by side"
    assert tiny.encoder.beyond(Prompt("é" * 1000), 10) > 10, "without a space in it"


def test_tokens_of_short_texts_are_kept_and_those_of_long_ones_are_not(tiny_dir: Path) -> None:
    encoder = Encoder(AutoTokenizer.from_pretrained(str(tiny_dir)))
    encoder.encode(Prompt("text"))  # what is made once is there
    gc.collect()
    tracemalloc.start()
    try:
        for i in range(12):
            encoder.encode(Prompt(f"text {i} number " * 3000))
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000, "a dozen whole prompts are more"
    assert encoder._head_ids("text number") is encoder._head_ids("text number")


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_batches_hold_every_index_once_within_the_limit(lengths: list[int], limit: int) -> None:
    groups = list(batches(lengths, limit))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= limit
    longest = [max(lengths[i] for i in group) for group in groups]
    assert longest == sorted(longest)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=30), st.integers(1, 120))
def test_a_batch_is_closed_only_when_the_next_row_does_not_fit(lengths: list[int], limit: int) -> None:
    groups = list(batches(lengths, limit))
    for group, after in pairwise(groups):
        assert lengths[after[0]] * (len(group) + 1) > limit
