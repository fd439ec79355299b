"""Every estimator of the policy gradient against the truth, which small pools know: all n! orders are enumerated.

    python benchmarks/estimators.py --json estimators.json      # 10 minutes on a busy core

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
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from r1ranker.cli.common import write_json
from r1ranker.io.provenance import provenance
from r1ranker.training.advantages import group_relative

Vector = npt.NDArray[np.float64]
Order = tuple[int, ...]
Earned = Callable[[Sequence[int], Order, int], float]
"""What naming a candidate earns, behind the candidates named before it. In: gains, those before, the candidate."""
GROUP, DRAWS = 8, 2000


def ndcg(gains: Sequence[int], before: Order, k: int) -> float:
    """Its share of the list's nDCG."""
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(sorted(gains, reverse=True)))
    return gains[k] / math.log2(len(before) + 2) / ideal


def reciprocal_rank(gains: Sequence[int], before: Order, k: int) -> float:
    """1 over its place where it is the first relevant one."""
    return 1 / (len(before) + 1) if gains[k] > 0 and not any(gains[j] > 0 for j in before) else 0.0


def steps(gains: Sequence[int], before: Order, k: int) -> float:
    """`rewards.graded_selection_reward` among those left, over the number of steps; equal gains earn nothing here."""
    left = [gain for j, gain in enumerate(gains) if j not in before]
    spread = max(left) - min(left)
    return (gains[k] - min(left)) / spread / (len(gains) - 1) if spread else 0.0


OBJECTIVES: dict[str, Earned] = {"nDCG": ndcg, "MRR": reciprocal_rank, "steps": steps}


@dataclass(eq=False)
class Pool:
    """A policy over a pool: scores and gains by candidate."""

    scores: Vector
    gains: tuple[int, ...]
    earned: Earned

    @cached_property
    def orders(self) -> list[Order]:
        """All of them."""
        return list(itertools.permutations(range(len(self.gains))))

    @cached_property
    def chances(self) -> Vector:
        """How likely the policy names the candidates in each order."""
        return np.array(
            [math.prod(float(self.policy(order[:i])[k]) for i, k in enumerate(order)) for order in self.orders]
        )

    @cached_property
    def to_go(self) -> list[float]:
        """Expected reward from each place on."""
        of_orders = np.array([self.parts(order) for order in self.orders])
        return [float(self.chances @ of_orders[:, i:].sum(1)) for i in range(len(self.gains))]

    @cached_property
    def truth(self) -> Vector:
        """Gradient of the expected reward, over all orders: sum p(order) R(order) d log p(order)."""
        rewards = np.array([sum(self.parts(order)) for order in self.orders])
        pushes = np.array([sum(self.named(order[:i], k) for i, k in enumerate(order)) for order in self.orders])
        return np.asarray((self.chances * rewards) @ pushes)

    @cache  # noqa: B019 - pools are few and small
    def policy(self, before: Order) -> Vector:
        """Probabilities of being named next; 0 for those named before."""
        weights = np.exp(self.scores - self.scores.max())
        weights[list(before)] = 0.0
        return np.asarray(weights / weights.sum())

    @cache  # noqa: B019
    def parts(self, order: Order) -> list[float]:
        """What each place earns."""
        return [self.earned(self.gains, order[:i], k) for i, k in enumerate(order)]

    def pushed(self, before: Order, credit: Vector) -> Vector:
        """Gradient of sum_k pi(k) credit_k, all candidates credited."""
        policy = self.policy(before)
        return np.asarray(policy * (credit - policy @ credit))

    @cache  # noqa: B019
    def named(self, before: Order, k: int) -> Vector:
        """Gradient of log pi(k)."""
        return np.asarray(np.eye(len(self.gains))[k] - self.policy(before))


def by_place(pool: Pool, order: Order, credit: Callable[[Order, int], float]) -> Vector:
    """All candidates left are credited at every place of the order."""
    total = np.zeros(len(order))
    for i in range(len(order) - 1):
        before = order[:i]
        credits = np.array([0.0 if k in before else credit(before, k) for k in range(len(order))])
        total += pool.pushed(before, credits)
    return total


def expected(pool: Pool, order: Order) -> Vector:
    """`ppo.answer: expected` of an elimination: each candidate by what naming it now earns."""
    return by_place(pool, order, lambda before, k: pool.earned(pool.gains, before, k))


def log(pool: Pool, order: Order) -> Vector:
    """`ppo.objective: log`: the same, of the logarithm of the expectation at each place."""
    total = np.zeros(len(order))
    for i in range(len(order) - 1):
        before = order[:i]
        credits = np.array([0.0 if k in before else pool.earned(pool.gains, before, k) for k in range(len(order))])
        mean = float(pool.policy(before) @ credits)
        total += pool.pushed(before, credits) / mean if mean else 0.0
    return total


def moved_up(pool: Pool, order: Order) -> Vector:
    """`ppo.answer: expected` of a list (`rewards.moved_up`): each by the list in which it moves up to here."""

    def credit(before: Order, k: int) -> float:
        return sum(pool.parts((*before, k, *(j for j in order[len(before) :] if j != k))))

    return by_place(pool, order, credit)


def pl_rank(pool: Pool, order: Order) -> Vector:
    """PL-Rank (Oosterhuis 2021, eq. 22; PL-Rank-3 of 2022 sums the same in O(n)), for rewards of places that add up.

    At each place the candidate's own reward now, less what the list earned from here on; and what it earned behind it.
    """
    n, parts = len(order), pool.parts(order)
    total = np.zeros(n)
    for i, k in enumerate(order):
        before, policy = order[:i], pool.policy(order[:i])
        own = np.array([0.0 if j in before else pool.earned(pool.gains, before, j) for j in range(n)])
        total += policy * (own - sum(parts[i:]))
        total[k] += sum(parts[i + 1 :])
    return total


def expected_to_go(pool: Pool, order: Order) -> Vector:
    """What naming each now earns, all credited; and what came after it, credited to what was named (PL-Rank with the
    present place in expectation)."""
    parts = pool.parts(order)
    later = (sum(parts[i + 1 :]) * pool.named(order[:i], k) for i, k in enumerate(order))
    return np.asarray(expected(pool, order) + sum(later))


def sampled(pool: Pool, order: Order) -> Vector:
    """`ppo.answer: sampled` with GAE (gamma and lambda 1) and a critic that knows the mean of each place."""
    parts = pool.parts(order)
    advantages = (sum(parts[i:]) - pool.to_go[i] for i in range(len(order)))
    return np.asarray(sum(a * pool.named(order[:i], k) for i, (k, a) in enumerate(zip(order, advantages, strict=True))))


def in_group(advantages: Callable[[list[list[float]]], Sequence[Sequence[float]]]) -> Callable[..., Vector]:
    """An estimator of a group of orders, from advantages by member and place."""

    def estimate(pool: Pool, group: Sequence[Order]) -> Vector:
        found = advantages([pool.parts(order) for order in group])
        pushes = (
            a * pool.named(order[:i], k)
            for order, of_order in zip(group, found, strict=True)
            for i, (k, a) in enumerate(zip(order, of_order, strict=True))
        )
        return np.asarray(sum(pushes) / len(group))

    return estimate


def to_go(parts: list[list[float]]) -> list[list[float]]:
    """From each place on."""
    return [list(itertools.accumulate(reversed(one)))[::-1] for one in parts]


def max_rl(parts: list[list[float]]) -> list[list[float]]:
    """MaxRL (2602.02710): less the group's mean, over the mean."""
    rewards = [sum(one) for one in parts]
    mean = fmean(rewards)
    return [[(reward - mean) / mean if mean else 0.0] * len(one) for reward, one in zip(rewards, parts, strict=True)]


ALONE: dict[str, tuple[Callable[[Pool, Order], Vector], str]] = {
    "expected": (expected, "n(n+1)/2"),
    "expected, log": (log, "n(n+1)/2"),
    "expected + to go": (expected_to_go, "n(n+1)/2"),
    "PL-Rank-3": (pl_rank, "n"),
    "moved up": (moved_up, "n(n+1)/2"),
    "sampled, GAE": (sampled, "1"),
}
GROUPED: dict[str, tuple[Callable[..., Vector], str]] = {
    "RLOO": (in_group(lambda parts: group_relative(to_go(parts), "rloo")), "1"),
    "GRPO": (in_group(lambda parts: group_relative(to_go(parts), "grpo")), "1"),
    "MaxRL": (in_group(max_rl), "1"),
    "Rank-GRPO, own place": (in_group(lambda parts: group_relative(parts, "grpo")), "n"),
}


def moments(pool: Pool, estimate: Callable[[Pool, Order], Vector]) -> tuple[Vector, float]:
    """Mean, and variance of what one order gives (summed over the scores), both exact."""
    found = np.array([estimate(pool, order) for order in pool.orders])
    mean = pool.chances @ found
    return mean, float(pool.chances @ ((found - mean) ** 2).sum(-1))


def moments_in_groups(pool: Pool, estimate: Callable[..., Vector], rng: np.random.Generator) -> tuple[Vector, float]:
    """The same for groups, drawn; the variance is that of a group times its size."""
    draws = rng.choice(len(pool.orders), size=(DRAWS, GROUP), p=pool.chances / pool.chances.sum())
    found = np.array([estimate(pool, [pool.orders[i] for i in group]) for group in draws])
    mean = found.mean(0)
    return mean, float(((found - mean) ** 2).sum(-1).mean()) * GROUP


def compared(mean: Vector, variance: float, true: Vector) -> dict[str, float]:
    """How far the mean is off at its best scale, and the noise."""
    length = float(np.linalg.norm(mean))
    scale = float(mean @ true) / length**2 if length > 1e-12 else 0.0
    off = float(np.linalg.norm(scale * mean - true) / np.linalg.norm(true))
    return {"off": off, "noise": math.sqrt(max(variance, 0.0)) / length if length > 1e-12 else math.inf}


def pools(kind: str, n: int, count: int, earned: Earned, seed: int) -> list[Pool]:
    """Random policies over random gains: one relevant candidate, or grades 0 to 3."""
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        scores, gains = rng.normal(size=n), rng.integers(0, 4, size=n)
        if kind == "one relevant":
            gains = np.eye(n, dtype=int)[rng.integers(n)]
        if gains.max() > gains.min() == 0:
            found.append(Pool(scores, tuple(map(int, gains)), earned))
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
                found.append(compared(mean, variance, pool.truth))
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
