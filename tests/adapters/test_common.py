"""What all adapters share, without any of their libraries."""

from __future__ import annotations

import pytest

from known_order import BEST_FIRST, QUERY, TEXTS, broken, by_shared_words, falls
from r1ranker import BackendError, ConfigError, DataError, IRanker
from r1ranker.adapters.common import order, orders, ranker_of
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.prompts import Prompt
from r1ranker.ranking.rankers import Depth
from r1ranker.ranking.spec import RankerSpec


def test_texts_come_best_first_with_falling_scores() -> None:
    placed = order(by_shared_words(), QUERY, TEXTS)
    assert [at for at, _ in placed] == BEST_FIRST
    assert falls([score for _, score in placed])


def test_the_best_are_the_first_of_all() -> None:
    ranker = by_shared_words()
    assert order(ranker, QUERY, TEXTS, 2) == order(ranker, QUERY, TEXTS)[:2]
    assert len(order(ranker, QUERY, TEXTS, 99)) == len(TEXTS)


def test_places_that_are_thrown_away_are_not_asked_for() -> None:
    asked: list[int] = []

    def weigh(prompt: Prompt, k: int) -> float:
        asked.append(k)
        return 2.0**k

    ranker = IRanker(ScriptedBackend(weigh=weigh), ask="best")
    whole = order(ranker, QUERY, TEXTS)
    calls = len(asked)
    asked.clear()
    assert [at for at, _ in order(ranker, QUERY, TEXTS, 1)] == [at for at, _ in whole[:1]] == [3]
    assert len(asked) == len(TEXTS) < calls, "one step names the best"


def test_equal_texts_keep_places_of_their_own() -> None:
    assert sorted(at for at, _ in order(by_shared_words(), QUERY, ["owls", "owls", "mice"])) == [0, 1, 2]


def test_each_query_has_its_own_order_and_one_without_texts_has_none() -> None:
    found = orders(by_shared_words(), [(QUERY, TEXTS), ("anything", []), ("tractors", TEXTS)])
    assert [[at for at, _ in placed][:1] for placed in found] == [[3], [], [0]]


def test_a_failed_model_is_an_error_and_no_order() -> None:
    with pytest.raises(BackendError, match="the model is gone"):
        order(broken(), QUERY, TEXTS)


def test_a_text_that_no_model_can_read_fails_its_query() -> None:
    with pytest.raises(BackendError, match=r"could not be ranked.*half a character"):
        orders(by_shared_words(), [(QUERY, TEXTS), ("owls", ["cut \ud83d", "whole"])])


@pytest.mark.parametrize("query", ["", " \n", None])
def test_a_blank_query_is_refused(query: str) -> None:
    with pytest.raises(DataError, match="give a text to rank for"):
        order(by_shared_words(), query, TEXTS)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"text 1 of query .* is nan"):
        order(by_shared_words(), QUERY, ["owls", float("nan")])  # type: ignore[list-item]


def test_the_best_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        order(by_shared_words(), QUERY, TEXTS, 0)


def test_a_name_or_a_spec_stands_for_a_ranker() -> None:
    ranker = by_shared_words()
    assert ranker_of(ranker) is ranker
    assert [at for at, _ in order(ranker_of(RankerSpec(depth=2)), QUERY, TEXTS)][2:] == [2, 3]
    assert isinstance(ranker_of(RankerSpec(depth=2)), Depth)
    assert len(order(ranker_of("nano"), QUERY, TEXTS)) == len(TEXTS)
