"""Completions read case by case (`cases/answers.jsonl`), and what holds for any text at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1ranker.answers import completed_order, parse_ranking, parse_removal, removal_of, thought_of
from r1ranker.problem import Answer, AnswerKind
from r1ranker.prompts import NO_THOUGHT

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "cases" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
]
PARSERS = {"remove": parse_removal, "rank": parse_ranking}

pools = st.lists(st.integers(1, 25), min_size=1, max_size=8, unique=True)
tags = ["<think>", "</think>", "<answer>", "</answer>"]
brackets = ["[1]", "[2]", "[0]", "[99]", "[1, 2]", "[3", "[", "]"]
words = ["4", "9" * 5000, "²", "３", "1. ", "Passage ", "to", "the top 2 of 5"]
marks = [" > ", ", ", ".", "-", " ", "\n", "\n\n"]
fragments = st.sampled_from([*tags, *brackets, *words, *marks])
completions = st.one_of(
    st.text(),
    st.lists(fragments, max_size=25).map("".join),
    st.lists(fragments, max_size=15).map(lambda parts: f"<think>x</think><answer>{''.join(parts)}</answer>"),
)


def test_there_are_enough_cases_and_they_reach_every_kind() -> None:
    assert len(CASES) >= 170
    assert {case["kind"] for case in CASES} == set(get_args(AnswerKind))


@pytest.mark.parametrize("case", CASES, ids=[f"line{n}-{c['mode']}" for n, c in enumerate(CASES, 1)])
def test_case_is_read_as_stated(case: dict) -> None:
    answer = PARSERS[case["mode"]](case["completion"], case["pool"], case["truncated"])
    assert answer == Answer(case["kind"], tuple(case["value"] or ()))


@settings(deadline=None)
@given(completions, pools, st.booleans())
def test_any_text_gives_distinct_identifiers_of_the_pool(text: str, pool: list[int], truncated: bool) -> None:
    for parse in PARSERS.values():
        answer = parse(text, pool, truncated)
        assert len(set(answer.ids)) == len(answer.ids)
        assert set(answer.ids) <= set(pool)
        if answer.kind in ("missing", "truncated", "malformed"):
            assert answer.ids == ()
        assert truncated or answer.kind != "truncated"


@settings(deadline=None)
@given(completions, pools, st.booleans())
def test_a_removal_is_one_identifier_or_none(text: str, pool: list[int], truncated: bool) -> None:
    answer = parse_removal(text, pool, truncated)
    assert len(answer.ids) == (answer.kind == "valid")
    assert removal_of(answer, pool) == (answer.ids[0] if answer.kind == "valid" else pool[-1])


@settings(deadline=None)
@given(completions, pools, st.booleans())
def test_no_order_loses_or_doubles_a_candidate_and_none_changes_uncounted(
    text: str, pool: list[int], truncated: bool
) -> None:
    answer = parse_ranking(text, pool, truncated)
    order = completed_order(answer, pool)
    assert sorted(order) == sorted(pool)
    assert order[: len(answer.ids)] == answer.ids
    if answer.kind == "valid":
        assert order == answer.ids
    if answer.kind == "incomplete":
        assert 0 < len(answer.ids) < len(pool)


@settings(deadline=None)
@given(st.permutations(range(1, 21)), st.sampled_from([" > ", ">", ", ", "\n", " "]), st.booleans())
def test_a_written_order_is_read_back(order: list[int], separator: str, brackets: bool) -> None:
    text = separator.join(f"[{k}]" if brackets else str(k) for k in order)
    answer = parse_ranking(f"<think>x</think><answer>{text}</answer>", range(1, 21))
    assert answer == Answer("valid", tuple(order))


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="<")), st.integers(1, 20))
def test_a_thought_never_changes_the_answer(thought: str, identifier: int) -> None:
    text = f"<think>{thought}</think><answer>[{identifier}]</answer>"
    assert parse_removal(text, range(1, 21)) == Answer("valid", (identifier,))
    assert thought_of(text) == thought.strip()


@pytest.mark.parametrize(
    ("completion", "thought"),
    [
        ("<think> three is off topic\n</think><answer>[3]</answer>", "three is off topic"),
        ("three is off topic</think><answer>[3]</answer>", "three is off topic"),
        ("<think>three is off", "three is off"),
        ("<think>a</think><answer>[3]</answer><think>b</think>", "a\nb"),
        ("<answer>[3]</answer>", ""),
        (f"{NO_THOUGHT}[3]</answer>", ""),
        ("", ""),
    ],
)
def test_thought_of(completion: str, thought: str) -> None:
    assert thought_of(completion) == thought


def test_the_stated_rule_for_broken_rankings() -> None:
    assert completed_order(Answer("incomplete", (4, 2)), (1, 2, 3, 4)) == (4, 2, 1, 3)
    assert completed_order(Answer("missing"), (3, 1, 2)) == (3, 1, 2)


@pytest.mark.parametrize("kind", ["unknown_id", "missing", "truncated", "malformed"])
def test_the_stated_rule_for_broken_removals(kind: AnswerKind) -> None:
    assert removal_of(Answer(kind), (7, 2, 5)) == 5
    assert removal_of(Answer("valid", (7,)), (7, 2, 5)) == 7
