"""Reading probabilities of identifiers off tokens, where structured output lets through more than one spelling."""

from __future__ import annotations

import math

import pytest

from r1ranker.backends.likeliest import probabilities


def token(text: str, **likeliest: float) -> dict[str, object]:
    """A token that was written among the likeliest, by probability."""
    top = [{"token": name, "logprob": math.log(p)} for name, p in likeliest.items()]
    return next(t for t in top if t["token"] == text) | {"top_logprobs": top}


@pytest.mark.parametrize(
    "written",
    [
        [token("[1]", **{"[1]": 0.3, "[2]": 0.1, "[": 0.6})],
        [
            token("[", **{"[1]": 0.3, "[2]": 0.1, "[": 0.6}),
            token("2", **{"2": 0.9, "1": 0.1}),
            token("]", **{"]": 1.0}),
        ],
    ],
)
def test_a_second_spelling_of_identifiers_is_left_out(written: list[dict[str, object]]) -> None:
    identifier = 1 if len(written) == 1 else 2
    assert probabilities(written, identifier, (1, 2)) == pytest.approx({1: 0.75, 2: 0.25})


def test_a_beginning_that_some_identifier_needs_counts() -> None:
    """[12] and [13] have tokens of their own, [1] has none."""
    first = token("1", **{"1": 0.5, "12": 0.3, "13": 0.2})
    tokens = [token("[", **{"[": 1.0}), first, token("]", **{"]": 0.8, "2": 0.2})]
    assert probabilities(tokens, 1, (1, 12, 13)) == pytest.approx({1: 0.4, 12: 0.4, 13: 0.2})
