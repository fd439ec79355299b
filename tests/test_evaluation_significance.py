"""The paired test against an enumeration by itertools, Holm by hand, intervals around their mean."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from r1ranker.evaluation.significance import EXACT, bootstrap_means, confidence_interval, holm, paired_randomisation

DIFFERENCES = [0.5, -0.1, 0.3, 0.2, 0.25, 0.4, -0.05]


def enumerated(differences: list[float]) -> float:
    observed = abs(sum(differences)) - 1e-9
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(abs(total) >= observed for total in sums) / len(sums)


def test_a_small_sample_is_tested_exactly() -> None:
    assert paired_randomisation(DIFFERENCES) == pytest.approx(enumerated(DIFFERENCES))


def test_a_large_sample_comes_close_to_the_enumeration() -> None:
    differences = [round(d, 3) for d in np.random.default_rng(0).normal(0.1, 0.3, EXACT + 1)]
    assert paired_randomisation(differences) == pytest.approx(enumerated(differences), abs=0.005)


def test_the_test_is_two_sided_seeded_and_blind_to_ties() -> None:
    large = list(np.random.default_rng(1).normal(0.1, 0.5, 50))
    assert paired_randomisation(large, seed=3) == paired_randomisation(large, seed=3)
    assert paired_randomisation(large) == paired_randomisation([-d for d in large])
    assert paired_randomisation([*DIFFERENCES, 0, 0]) == paired_randomisation(DIFFERENCES)


def test_no_difference_has_p_1() -> None:
    assert paired_randomisation([0.0] * 30) == paired_randomisation([]) == 1


def test_a_p_value_is_never_0() -> None:
    assert paired_randomisation([1.0] * 200) == pytest.approx(1e-5)


def test_holm_steps_down_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.6, 0.6]) == [1, 1]
    assert holm([]) == []


def test_the_interval_holds_the_mean_and_narrows_with_more_queries() -> None:
    values = np.random.default_rng(0).random(400)
    low, high = confidence_interval(values)
    assert low < values.mean() < high
    narrow = 2 * 1.96 * values.std() / len(values) ** 0.5
    assert high - low == pytest.approx(narrow, rel=0.1)
    few = confidence_interval(values[:40])
    assert few[1] - few[0] > 2 * (high - low)


def test_the_bootstrap_is_seeded() -> None:
    assert (bootstrap_means([0, 1, 2], seed=1) == bootstrap_means([0, 1, 2], seed=1)).all()
    assert confidence_interval([0.5]) == (0.5, 0.5)


def test_sums_that_differ_by_rounding_alone_are_equal() -> None:
    assert paired_randomisation([0.1, 0.1, 0.1, -0.1]) == 10 / 16  # |sum| is 0.4 twice, 0.2 eight times, else 0
