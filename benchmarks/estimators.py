"""Every estimator of the policy gradient against the truth, which small pools know: all n! orders are enumerated.

    python benchmarks/estimators.py --json estimators.json      # a few minutes

The policy is Plackett-Luce over scores, the best named first, as a judge in layout `blocks` gives it. The truth is the
gradient, by the scores, of an expected reward: nDCG, reciprocal rank, or the sum of the steps' selection rewards. What
an estimator makes of sampled orders is compared with it, over random pools and policies:

- off: length of (mean - truth) over that of the truth, the mean at its best scale, since a learning rate undoes one;
- noise: root of the variance of what one order gives, over the length of the mean;
- rewards: how many rewards it computes for one order. Passes of the model are the same for all.

Means and variances of what one order gives are exact; estimators that compare a group of orders are drawn 2000 times,
and their noise is given for one order (times the root of the group), so that all stand at equal passes of the model.

In: nothing. Out: a table, and one row for each estimator, objective and kind of pool.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from r1ranker.cli.common import write_json
from r1ranker.io.provenance import provenance
from r1ranker.training.algorithms import in_group
from r1ranker.training.algorithms.gae import gae
from r1ranker.training.algorithms.log_expected import log_expected_loss
from r1ranker.training.algorithms.moved_up import moved
from r1ranker.training.algorithms.pl_rank import pl_rank
from r1ranker.training.algorithms.truth import Earned, Order, Pool, ndcg, surrogate

GROUP, DRAWS = 8, 2000


def reciprocal_rank(gains: Sequence[int], before: Order, k: int) -> float:
    """1 over its place where it is the first relevant one."""
    return 1 / (len(before) + 1) if gains[k] > 0 and not any(gains[j] > 0 for j in before) else 0.0


def steps(gains: Sequence[int], before: Order, k: int) -> float:
    """`rewards.graded_selection_reward` among those left, over the number of steps; equal gains earn nothing here."""
    left = [gain for j, gain in enumerate(gains) if j not in before]
    spread = max(left) - min(left)
    return (gains[k] - min(left)) / spread / (len(gains) - 1) if spread else 0.0


OBJECTIVES: dict[str, Earned] = {"nDCG": ndcg, "MRR": reciprocal_rank, "steps": steps}


def expected(pool: Pool) -> Tensor:
    """`ppo.answer: expected` of an elimination: each candidate by what naming it now earns."""
    return pool.credited(surrogate, pool.own)


def log_expected(pool: Pool) -> Tensor:
    """`ppo.objective: log`: the same, of the logarithm of the expectation at each place."""
    return pool.credited(log_expected_loss, pool.own)


def moved_up(pool: Pool) -> Tensor:
    """`ppo.answer: expected` of a list: each by the list in which it moves up to here."""

    def credit(order: Order) -> Tensor:
        n = range(len(order))
        return torch.tensor([[sum(pool.parts(moved(order, i, k))) for k in n] for i in n], dtype=torch.float64)

    return pool.credited(surrogate, credit)


def by_pl_rank(pool: Pool) -> Tensor:
    """PL-Rank-3."""
    each = zip(pool.logprobs, pool.orders, strict=True)
    return torch.stack([pl_rank(logprobs, order, pool.own(order)) for logprobs, order in each])


def expected_to_go(pool: Pool) -> Tensor:
    """What naming each now earns, all credited; and what came after it, credited to what was named (PL-Rank with the
    present place in expectation)."""
    return expected(pool) + pool.sampled(lambda parts: [sum(parts[i + 1 :]) for i in range(len(parts))])


def sampled(pool: Pool) -> Tensor:
    """`ppo.answer: sampled` with GAE (gamma and lambda 1) and a critic that knows the mean of each place."""
    return pool.sampled(lambda parts: gae(torch.tensor(parts, dtype=torch.float64), pool.values)[0])


ALONE: dict[str, tuple[Callable[[Pool], Tensor], str]] = {
    "expected": (expected, "n(n+1)/2"),
    "expected, log": (log_expected, "n(n+1)/2"),
    "expected + to go": (expected_to_go, "n(n+1)/2"),
    "PL-Rank-3": (by_pl_rank, "n"),
    "moved up": (moved_up, "n(n+1)/2"),
    "sampled, GAE": (sampled, "1"),
}
GROUPED: dict[str, tuple[str, str]] = {
    "RLOO": ("rloo", "1"),
    "GRPO": ("grpo", "1"),
    "Dr. GRPO": ("dr_grpo", "1"),
    "MaxRL": ("maxrl", "1"),
    "Rank-GRPO, own place": ("rank_grpo", "n"),
}


def moments(pool: Pool, estimate: Callable[[Pool], Tensor]) -> tuple[Tensor, float]:
    """Mean, and variance of what one order gives (summed over the scores), both exact."""
    found = estimate(pool)
    mean = pool.mean(found)
    return mean, float(pool.mean((found - mean) ** 2).sum())


def moments_in_groups(pool: Pool, estimator: str, rng: np.random.Generator) -> tuple[Tensor, float]:
    """The same for groups, drawn; the variance is that of a group times its size."""
    chances = pool.chances.numpy()
    draws = rng.choice(len(pool.orders), size=(DRAWS, GROUP), p=chances / chances.sum())
    found = pool.in_groups(in_group(estimator), [[pool.orders[i] for i in group] for group in draws])
    mean = found.mean(0)
    return mean, float(((found - mean) ** 2).sum(-1).mean()) * GROUP


def compared(pool: Pool, mean: Tensor, variance: float) -> dict[str, float]:
    """How far the mean is off at its best scale, and the noise."""
    length = float(mean.norm())
    return {"off": pool.off(mean), "noise": math.sqrt(max(variance, 0.0)) / length if length > 1e-12 else math.inf}


def pools(kind: str, n: int, count: int, earned: Earned, seed: int) -> list[Pool]:
    """Random policies over random gains: one relevant candidate, or grades 0 to 3."""
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        scores, gains = rng.normal(size=n), rng.integers(0, 4, size=n)
        if kind == "one relevant":
            gains = np.eye(n, dtype=int)[rng.integers(n)]
        if gains.max() > gains.min() == 0:
            found.append(Pool(tuple(scores.tolist()), tuple(map(int, gains)), earned))
    return found


def rows(n: int, count: int, seed: int) -> list[dict[str, Any]]:
    """One row an estimator, objective and kind of pool; medians over pools."""
    out = []
    for kind, (objective, earned) in itertools.product(("one relevant", "graded"), OBJECTIVES.items()):
        drawn = pools(kind, n, count, earned, seed)
        for name in (*ALONE, *GROUPED):
            rng, found = np.random.default_rng(seed), []
            for pool in drawn:
                if name in ALONE:
                    mean, variance = moments(pool, ALONE[name][0])
                else:
                    mean, variance = moments_in_groups(pool, GROUPED[name][0], rng)
                found.append(compared(pool, mean, variance))
            cost = (ALONE | GROUPED)[name][1]  # type: ignore[operator]
            middle = {key: median(one[key] for one in found) for key in ("off", "noise")}
            out.append({"estimator": name, "objective": objective, "pool": kind, "n": n, **middle, "rewards": cost})
    return out


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    """Off and noise by objective; an estimator a line."""
    columns = list(dict.fromkeys((row["pool"], row["objective"]) for row in found))
    shown = Table("estimator", *(f"{pool}\n{objective}" for pool, objective in columns), "rewards")
    for name in dict.fromkeys(row["estimator"] for row in found):
        of_name = [row for row in found if row["estimator"] == name]
        shown.add_row(name, *(f"{row['off']:.2f} / {row['noise']:.1f}" for row in of_name), of_name[0]["rewards"])
    return shown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=5, help="size of a pool; all orders are enumerated")
    parser.add_argument("--pools", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = rows(args.candidates, args.pools, args.seed)
    Console().print(table(found))
    write_json(args.json, {"rows": found, "provenance": provenance()})


if __name__ == "__main__":
    main()
