"""Is a difference more than chance, and how wide is a mean. In: values of queries. Out: p-values, intervals.

Queries are the unit throughout. Everything random is drawn from a seed, so a table can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EXACT = 14
"""Number of differences up to which every one of the 2**n sign patterns is tried."""
SIGN_PATTERNS = 99_999
"""Many, since Holm's adjustment multiplies the least p that can be found, 1 / 100 000, by the tests of a table."""
BATCH = 4096
BOOTSTRAP_SAMPLES = 2000
LEVEL = 0.95


def paired_randomisation(differences: Sequence[float] | Floats, *, seed: int = 0) -> float:
    """Two-sided p-value of the paired randomisation (sign-flip) test on the sum of `differences`.

    Exact for up to `EXACT` differences; else over `SIGN_PATTERNS` drawn ones and the observed one. Queries
    without a difference say nothing and are left out; without any difference p is 1.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    n = len(values)
    observed = abs(values.sum()) * (1 - 1e-9)  # patterns that tie but for rounding count as extreme
    if n <= EXACT:
        flips = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(_sums(values, flips) >= observed))
    rng = np.random.default_rng(seed)
    extreme = 1
    for start in range(0, SIGN_PATTERNS, BATCH):
        size = min(BATCH, SIGN_PATTERNS - start)
        bits = np.frombuffer(rng.bytes(size * (n // 8 + 1)), dtype=np.uint8).reshape(size, -1)
        extreme += int(np.sum(_sums(values, np.unpackbits(bits, axis=1, count=n)) >= observed))
    return extreme / (SIGN_PATTERNS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p-values, in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def bootstrap_means(values: Sequence[float] | Floats, *, seed: int = 0) -> Floats:
    """Means of `BOOTSTRAP_SAMPLES` samples of the values, drawn with replacement; shape (BOOTSTRAP_SAMPLES,)."""
    known = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    batches = np.array_split(np.arange(BOOTSTRAP_SAMPLES), max(1, BOOTSTRAP_SAMPLES * len(known) // 1_000_000))
    means = [known[rng.integers(0, len(known), (len(batch), len(known)))].mean(axis=1) for batch in batches]
    return np.concatenate(means)


def percentile_interval(means: Floats) -> tuple[float, float]:
    """The middle 95 % of bootstrap means."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def confidence_interval(values: Sequence[float] | Floats, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    return percentile_interval(bootstrap_means(values, seed=seed))


def _sums(values: Floats, flips: NDArray[Any]) -> Floats:
    """Absolute sum of the values with the signs of `flips` (patterns, n) turned where it is 1."""
    sums: Floats = np.abs(values.sum() - 2 * (flips.astype(np.float64) @ values))
    return sums
