"""The truth that each algorithm is held against: of a small pool every order is enumerated.

The policy is Plackett-Luce over scores, the best named first, as a judge in layout `blocks` gives it. In: a pool. Out:
the gradient, by the scores, of the expected reward of an order; and what an estimator makes of each order, by the same
losses as in training. Not used in training; the examples of the algorithms and `benchmarks/estimators.py` are.

    >>> pool = Pool(scores=(0.0, 0.0, 0.0), gains=(1, 0, 0), earned=first_place)     # each of three first, a third
    >>> pool.values[0].item(), pool.truth.tolist()                                   # d/ds softmax(s)_0 = p (1 - p)
    (0.33..., [0.22..., -0.11..., -0.11...])

M orders; N places, and as many candidates, counted from 0. Everything is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product

import torch
from torch import Tensor

from r1ranker.training.algorithms import Grouped
from r1ranker.training.algorithms.expected import expected_advantages, expected_policy_loss
from r1ranker.training.losses import policy_loss

Order = tuple[int, ...]
Earned = Callable[[Sequence[int], Order, int], float]
"""What naming a candidate earns, behind the candidates named before it. In: gains, those before, the candidate."""
CLIP = 0.2
"""Without effect here: the policy is the one that named the orders."""


def ndcg(gains: Sequence[int], before: Order, k: int) -> float:
    """Its share of the list's nDCG."""
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(sorted(gains, reverse=True)))
    return gains[k] / math.log2(len(before) + 2) / ideal


def first_place(gains: Sequence[int], before: Order, k: int) -> float:
    """Its gain where it stands first, over the largest: an order is a single decision."""
    return 0.0 if before else gains[k] / max(gains)


@dataclass(frozen=True, eq=False)
class Pool:
    """A policy over a pool: scores and gains by candidate, and what a place earns."""

    scores: tuple[float, ...]
    gains: tuple[int, ...]
    earned: Earned = ndcg

    @cached_property
    def orders(self) -> list[Order]:
        """All of them."""
        return list(permutations(range(len(self.scores))))

    @cached_property
    def logprobs(self) -> Tensor:
        """(M, N, N): of naming each candidate in each place of each order; -inf for those named before."""
        return _logprobs(self._scores(len(self.orders)), torch.tensor(self.orders))

    @cached_property
    def chances(self) -> Tensor:
        """(M,): how likely the policy names the candidates in each order."""
        return _named(self.logprobs, torch.tensor(self.orders)).sum(-1).exp()

    @cached_property
    def values(self) -> Tensor:
        """(N,): what is expected from each place on."""
        parts = torch.tensor([self.parts(order) for order in self.orders], dtype=torch.float64)
        return self.chances @ parts.flip(-1).cumsum(-1).flip(-1)

    @cached_property
    def truth(self) -> Tensor:
        """(N,): gradient by the scores of the expected reward, sum over orders of p(order) R(order)."""
        scores_N, orders_M_N = self._scores(1)[0].requires_grad_(), torch.tensor(self.orders)
        logprobs_M_N = _named(_logprobs(scores_N.expand(orders_M_N.shape), orders_M_N), orders_M_N)
        rewards_M = torch.tensor([sum(self.parts(order)) for order in self.orders], dtype=torch.float64)
        (logprobs_M_N.sum(-1).exp() @ rewards_M).backward()
        assert scores_N.grad is not None
        return scores_N.grad

    @cached_property
    def _parts(self) -> dict[Order, list[float]]:
        return {order: [self.earned(self.gains, order[:i], k) for i, k in enumerate(order)] for order in self.orders}

    def parts(self, order: Order) -> list[float]:
        """What each place earns."""
        return self._parts[order]

    def own(self, order: Order) -> Tensor:
        """(N, N): what naming each candidate in each place earns itself; 0 for those named before."""
        n = range(len(order))
        table = [[0.0 if k in order[:i] else self.earned(self.gains, order[:i], k) for k in n] for i in n]
        return torch.tensor(table, dtype=torch.float64)

    def credited(self, loss: Callable[[Tensor, Tensor], Tensor], credit: Callable[[Order], Tensor]) -> Tensor:
        """(M, N): gradients of each order, all candidates left credited in every place of it.

        loss: of log-probabilities and credits of decisions, both (B, A), summed; descended. credit: (N, N) of an order.
        """
        credits_B_A = torch.stack([credit(order) for order in self.orders]).flatten(0, 1)
        return self._gradients(self.orders, lambda logprobs_M_N_N: loss(logprobs_M_N_N.flatten(0, 1), credits_B_A))

    def sampled(self, advantages: Callable[[list[float]], Sequence[float] | Tensor]) -> Tensor:
        """(M, N): gradients of each order, what it names credited by the advantages that its parts give."""
        return self._pushed(self.orders, [advantages(self.parts(order)) for order in self.orders])

    def in_groups(self, advantages: Grouped, groups: Sequence[Sequence[Order]]) -> Tensor:
        """(groups, N): gradients of each group, per order in it. Groups are of one size."""
        found = [of_member for group in groups for of_member in advantages([self.parts(order) for order in group])]
        members = self._pushed([order for group in groups for order in group], found)
        return members.view(len(groups), -1, len(self.scores)).mean(1)

    def mean(self, gradients_M_N: Tensor) -> Tensor:
        """(N,): over all orders, as likely as they are."""
        return self.chances @ gradients_M_N

    def mean_in_groups(self, advantages: Grouped, size: int) -> Tensor:
        """(N,): over all groups of this size, as likely as they are."""
        of_each = [math.prod(chances) for chances in product(self.chances.tolist(), repeat=size)]
        found = self.in_groups(advantages, list(product(self.orders, repeat=size)))
        return torch.tensor(of_each, dtype=torch.float64) @ found

    def off(self, mean_N: Tensor) -> float:
        """How far a mean is from the truth, as a share of its length. At its best scale: a learning rate undoes one."""
        square = float(mean_N @ mean_N)
        scale = float(mean_N @ self.truth) / square if square > 1e-24 else 0.0
        return float((scale * mean_N - self.truth).norm() / self.truth.norm())

    def _scores(self, rows: int) -> Tensor:
        return torch.tensor(self.scores, dtype=torch.float64).repeat(rows, 1)

    def _pushed(self, orders: Sequence[Order], advantages: Sequence[Sequence[float] | Tensor]) -> Tensor:
        advantages_M_N = torch.stack([torch.as_tensor(of_order, dtype=torch.float64) for of_order in advantages])

        def loss(logprobs_M_N_N: Tensor) -> Tensor:
            named = _named(logprobs_M_N_N, torch.tensor(orders))
            return policy_loss(named, named.detach(), advantages_M_N, torch.ones_like(named), CLIP)[0]

        return self._gradients(orders, loss)

    def _gradients(self, orders: Sequence[Order], loss: Callable[[Tensor], Tensor]) -> Tensor:
        """(M, N): each order has scores of its own, so that one pass back tells them apart."""
        scores_M_N = self._scores(len(orders)).requires_grad_()
        loss(_logprobs(scores_M_N, torch.tensor(orders))).backward()
        assert scores_M_N.grad is not None
        return -scores_M_N.grad


def surrogate(logprobs_B_A: Tensor, credits_B_A: Tensor) -> Tensor:
    """`expected_policy_loss` at the policy that it begins from."""
    old_B_A = logprobs_B_A.detach()
    return expected_policy_loss(logprobs_B_A, old_B_A, expected_advantages(old_B_A, credits_B_A), CLIP)[0]


def _logprobs(scores_M_N: Tensor, orders_M_N: Tensor) -> Tensor:
    place_M_N = orders_M_N.argsort(-1)
    gone_M_N_N = place_M_N[:, None] < torch.arange(orders_M_N.shape[1])[:, None]
    return scores_M_N[:, None].expand(gone_M_N_N.shape).masked_fill(gone_M_N_N, -torch.inf).log_softmax(-1)


def _named(logprobs_M_N_N: Tensor, orders_M_N: Tensor) -> Tensor:
    return logprobs_M_N_N.gather(-1, orders_M_N[..., None]).squeeze(-1)
