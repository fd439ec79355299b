"""Is a difference more than chance, and how wide is a mean. In: values of queries. Out: p-values, intervals.

Queries are the unit throughout. Everything random is drawn from a seed, so a table can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test

Floats = NDArray[np.float64]
RESAMPLES = 9999
LEVEL = 0.95


def paired_randomisation(
    differences: Sequence[float] | Floats, *, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """Two-sided p-value of the paired randomisation (sign-flip) test on the sum of `differences`.

    Exact where the 2**n sign patterns are at most `resamples`, else drawn, with the observed pattern counted
    in. Queries without a difference say nothing and are left out; without any difference p is 1.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    test = permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        n_resamples=resamples,
        batch=1000,
        vectorized=True,
        rng=seed,
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p-values, in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def bootstrap_means(values: Sequence[float] | Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Means of `resamples` samples of the values, drawn with replacement; shape (resamples,)."""
    known = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    batches = np.array_split(np.arange(resamples), max(1, resamples * len(known) // 1_000_000))
    means = [known[rng.integers(0, len(known), (len(batch), len(known)))].mean(axis=1) for batch in batches]
    return np.concatenate(means)


def percentile_interval(means: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of bootstrap means."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def confidence_interval(values: Sequence[float] | Floats, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    return percentile_interval(bootstrap_means(values, seed=seed))
