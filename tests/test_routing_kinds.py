"""Hidden kinds of questions: what a router could know, and what the oracle has by luck alone."""

from __future__ import annotations

import numpy as np
import pytest

from r1ranker.evaluation.routing_kinds import Kinds, belonging, best_kinds, fit_kinds, lucky_oracle, reached_by_kind

TWO = Kinds(np.array([0.5, 0.5]), np.array([[0.9, 0.1], [0.2, 0.6]]))


def drawn(kinds: Kinds, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    of = rng.choice(len(kinds.shares), size=count, p=kinds.shares)
    return (rng.random((count, kinds.rates.shape[1])) < kinds.rates[of]).astype(float)


def test_the_oracle_of_coins_is_one_less_all_tails() -> None:
    assert lucky_oracle(Kinds(np.array([1.0]), np.array([[0.5, 0.5, 0.5]]))) == pytest.approx(7 / 8)
    assert lucky_oracle(TWO) == pytest.approx(0.5 * (1 - 0.1 * 0.9) + 0.5 * (1 - 0.8 * 0.4))


def test_who_solved_a_question_says_of_which_kind_it_is() -> None:
    # Solved by the first alone: 0.9 * 0.9 against 0.2 * 0.4.
    (likely,) = belonging(TWO, np.array([[1.0, 0.0]]))
    assert likely == pytest.approx([0.81 / 0.89, 0.08 / 0.89])
    # The best of the first kind solved it, that of the second did not.
    assert reached_by_kind(TWO, np.array([[1.0, 0.0]])) == pytest.approx([0.81 / 0.89])


def test_kinds_that_are_there_are_found_again() -> None:
    there = Kinds(np.array([0.3, 0.7]), np.array([[0.9, 0.9, 0.1, 0.1, 0.9, 0.1], [0.2, 0.1, 0.8, 0.9, 0.2, 0.7]]))
    train, dev, test = (drawn(there, 3000, seed) for seed in range(3))
    kinds = best_kinds(train, dev, sizes=(1, 2, 4))
    order = np.argsort(kinds.shares)
    assert kinds.shares[order] == pytest.approx(there.shares, abs=0.04)
    assert kinds.rates[order] == pytest.approx(there.rates, abs=0.04)
    assert reached_by_kind(kinds, test).mean() == pytest.approx(0.9, abs=0.02)
    assert lucky_oracle(kinds) == pytest.approx(test.any(axis=1).mean(), abs=0.02)


def test_where_all_is_luck_knowing_the_kind_brings_nothing() -> None:
    coins = Kinds(np.array([1.0]), np.full((1, 8), 0.5))
    train, dev, test = (drawn(coins, 2000, seed) for seed in range(3))
    kinds = best_kinds(train, dev, sizes=(1, 4))
    assert len(kinds.shares) == 1
    assert reached_by_kind(kinds, test).mean() == pytest.approx(0.5, abs=0.04)
    assert test.any(axis=1).mean() == pytest.approx(lucky_oracle(kinds), abs=0.01)


def test_rates_stay_within_0_and_1_where_all_solve_all() -> None:
    kinds = fit_kinds(np.ones((5, 3)), 2)
    assert np.isfinite(kinds.rates).all() and kinds.rates.max() < 1 and kinds.rates.min() > 0
