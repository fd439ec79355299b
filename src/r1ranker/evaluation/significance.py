"""Is a difference more than chance, and how wide is a mean. In: values of queries. Out: p-values, intervals.

The unit is whatever may be taken as drawn by itself: a query, or all queries that ask the same thing (`Units`).
Everything random is drawn from a seed, so a table can be made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Units = Mapping[str, str]
"""The unit of a query by its qid, where several queries share one: a question that three tasks ask, a user."""
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


def unit_sums(values: Mapping[str, float], units: Units) -> dict[str, float]:
    """The sum over each unit's queries. A sign test on them turns the signs of all queries of a unit together."""
    sums: dict[str, float] = {}
    for qid, value in values.items():
        unit = units.get(qid, qid)
        sums[unit] = sums.get(unit, 0.0) + value
    return sums


def bootstrap_tasks(tasks: Mapping[str, Mapping[str, float]], units: Units, *, seed: int = 0) -> dict[str, Floats]:
    """Means of each task in `BOOTSTRAP_SAMPLES` samples whose units are drawn with replacement; shape (samples,).

    tasks: values by qid. Tasks that share units are drawn together, others apart. A sample that holds none of a task's
    units says nothing of it, and has the task's own mean.
    """
    numbers = {task: number for number, task in enumerate(tasks)}
    means: dict[str, Floats] = {}
    for together in _sharing(tasks, units):
        sums = {task: unit_sums(tasks[task], units) for task in together}
        counts = {task: unit_sums(dict.fromkeys(tasks[task], 1.0), units) for task in together}
        drawn_from = list(dict.fromkeys(unit for of_task in sums.values() for unit in of_task))
        table = np.array([[of.get(unit, 0.0) for unit in drawn_from] for of in (*sums.values(), *counts.values())])
        totals = _resampled(table, np.random.default_rng(seed + numbers[together[0]]))
        for place, task in enumerate(together):
            total, n = totals[place], totals[len(together) + place]
            own = sum(tasks[task].values()) / len(tasks[task])
            means[task] = np.divide(total, n, out=np.full_like(total, own), where=n > 0)
    return {task: means[task] for task in tasks}


def _sharing(tasks: Mapping[str, Mapping[str, float]], units: Units) -> list[list[str]]:
    """Tasks in groups: no two groups have a unit in common."""
    groups: list[tuple[list[str], set[str]]] = []
    for task, values in tasks.items():
        names, known = [task], {units.get(qid, qid) for qid in values}
        for group in [group for group in groups if group[1] & known]:
            groups.remove(group)
            names, known = [*group[0], *names], group[1] | known
        groups.append((names, known))
    return [sorted(names, key=list(tasks).index) for names, _ in groups]


def _resampled(table: Floats, rng: np.random.Generator) -> Floats:
    """Sums over units drawn with replacement of each row of a table (rows, units); shape (rows, samples)."""
    n = table.shape[1]
    batches = np.array_split(np.arange(BOOTSTRAP_SAMPLES), max(1, BOOTSTRAP_SAMPLES * n // 1_000_000))
    parts = []
    for batch in batches:
        drawn = rng.integers(0, n, (len(batch), n))
        parts.append(np.stack([row[drawn].sum(axis=1) for row in table]))
    return np.concatenate(parts, axis=1)


def bootstrap_means(values: Sequence[float] | Floats, *, seed: int = 0) -> Floats:
    """Means of `BOOTSTRAP_SAMPLES` samples of the values, drawn with replacement; shape (BOOTSTRAP_SAMPLES,)."""
    known = {str(place): float(value) for place, value in enumerate(values)}
    return bootstrap_tasks({"": known}, {}, seed=seed)[""]


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
