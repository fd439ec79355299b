"""Splits by group, seeded draws, cut texts: the promises every source relies on."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from r1ranker.datasets.common import check_disjoint, cut_pool, limit_per_task, split_groups, take
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.text import cut
from r1ranker.problem import Candidate, Problem, rng_for

groups = st.sets(st.text(min_size=1, max_size=6), max_size=60)


def problem(qid: str, task: str = "t", group: str = "") -> Problem:
    return Problem(qid, task, "passage", (Candidate("a", "x"),), query="q", group=group)


@given(groups, st.integers(0, 5), st.randoms())
def test_every_group_has_one_split_whatever_the_order(names: set[str], seed: int, rng: random.Random) -> None:
    shuffled = sorted(names)
    rng.shuffle(shuffled)
    split = split_groups(shuffled + shuffled[:3], seed)
    assert split == split_groups(names, seed)
    assert split.keys() == names
    if len(names) >= 3:
        assert set(split.values()) == {"train", "dev", "test"}


def test_split_sizes_follow_the_fractions_and_the_seed() -> None:
    names = [str(number) for number in range(1000)]
    sides = list(split_groups(names, 0).values())
    assert [sides.count(split) for split in ("train", "dev", "test")] == [700, 100, 200]
    assert split_groups(names, 0) != split_groups(names, 1)
    assert set(split_groups(names, 0, (0.5, 0.0, 0.5)).values()) == {"train", "test"}


def test_fractions_that_do_not_sum_to_one_are_an_error() -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        split_groups(["a"], 0, (0.7, 0.1, 0.1))


@given(
    n=st.integers(3, 40),
    weights=st.tuples(*[st.sampled_from([0, 1, 2, 5, 50, 99])] * 3).filter(any),
)
@example(n=3, weights=(1, 99, 50))
@example(n=5, weights=(0, 1, 1))
def test_a_split_is_empty_where_nothing_was_asked_of_it_and_only_there(n: int, weights: tuple[int, int, int]) -> None:
    train, dev, test = (weight / sum(weights) for weight in weights)
    sides = list(split_groups(map(str, range(n)), 0, (train, dev, test)).values())
    assert len(sides) == n
    assert set(sides) == {name for name, part in zip(("train", "dev", "test"), weights, strict=True) if part}


def test_a_group_in_two_splits_is_an_error() -> None:
    with pytest.raises(DataError, match=r"group 'u1' .* train and in test"):
        check_disjoint({"train": [problem("a", group="u1")], "dev": [], "test": [problem("b", group="u1")]})


def test_generators_depend_on_all_their_parts() -> None:
    assert rng_for(0, "a").random() == rng_for(0, "a").random()
    assert rng_for(0, "a").random() != rng_for(0, "b").random()


@given(st.lists(st.integers(), max_size=20), st.none() | st.integers(1, 25))
def test_take_keeps_the_order_and_the_limit(items: list[int], limit: int | None) -> None:
    numbered = list(enumerate(items))
    taken = take(numbered, limit, rng_for(0))
    assert taken == sorted(taken)
    assert len(taken) == (len(items) if limit is None else min(limit, len(items)))


def test_limit_counts_per_task_and_split() -> None:
    problems = [problem(f"{task}{number}", task) for number in range(5) for task in ("a", "b")]
    limited = limit_per_task({"train": problems, "test": problems[:2]}, 3, seed=0)
    assert [p.task for p in limited["train"]] == ["a"] * 3 + ["b"] * 3
    assert len(limited["test"]) == 2


@given(st.text(alphabet="ab \n", max_size=40), st.integers(0, 40))
def test_cut_is_a_prefix_at_a_word_boundary(text: str, limit: int) -> None:
    short = cut(text, limit)
    assert len(short) <= limit
    assert text.startswith(short)
    if limit >= len(text):
        assert short == text


def test_cut_keeps_whole_words() -> None:
    assert [cut("one two three", n) for n in (3, 6, 7, 8)] == ["one", "one", "one two", "one two"]
    assert cut("abcdef", 4) == "abcd"


@given(st.lists(st.text(alphabet="abc ", max_size=50), min_size=1, max_size=9), st.integers(9, 300))
def test_a_cut_pool_fits_and_long_texts_share_what_short_ones_leave(texts: list[str], limit: int) -> None:
    short = cut_pool(texts, limit)
    assert sum(map(len, short)) <= limit
    assert all(text.startswith(part) for text, part in zip(texts, short, strict=True))
    if sum(map(len, texts)) <= limit:
        assert short == texts
