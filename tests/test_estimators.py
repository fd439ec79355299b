"""Estimators of the policy gradient against the truth: in a small pool all orders can be enumerated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from r1ranker.problem import Answer, Candidate, Problem
from r1ranker.prompts import written_list
from r1ranker.ranking.plans import chosen_step
from r1ranker.rewards import score_ranking, score_removal
from r1ranker.training.algorithms.expected import expected_advantages, expected_policy_loss
from r1ranker.training.algorithms.moved_up import moved_up

Order = tuple[int, ...]
SCORES = torch.tensor([0.3, -1.1, 0.8, 0.1], dtype=torch.float64)


def pool(gains: Sequence[int]) -> Problem:
    candidates = tuple(Candidate(str(k), f"text {k}") for k in range(1, len(gains) + 1))
    return Problem("q", "t", "passage", candidates, "q", gains={str(k): g for k, g in enumerate(gains, 1)})


def logprobs(scores: Tensor, left: Sequence[int]) -> Tensor:
    """Plackett-Luce: of naming each identifier that is left."""
    return torch.log_softmax(scores[[k - 1 for k in left]], 0)


def chance(scores: Tensor, order: Order) -> Tensor:
    terms = [logprobs(scores, order[i:])[0] for i in range(len(order))]
    return torch.stack(terms).sum().exp()


def reward(order: Order, problem: Problem) -> float:
    return score_ranking(written_list(order), Answer("valid", order), problem, order, kind="graded").total


def true_gradient(problem: Problem) -> Tensor:
    """Of the expected reward of a list, over all orders."""
    scores = SCORES.clone().requires_grad_()
    orders = itertools.permutations(problem.identifiers)
    torch.stack([chance(scores, order) * reward(order, problem) for order in orders]).sum().backward()
    assert scores.grad is not None
    return scores.grad


def credited(problem: Problem, order: Order, credits: Callable[[int, Order], Sequence[float]]) -> Tensor:
    """Gradient of the training loss of one list, all candidates left credited at every place."""
    scores = SCORES.clone().requires_grad_()
    for i in range(len(order) - 1):
        logs = logprobs(scores, left := order[i:])
        rewards = torch.tensor(credits(i, left), dtype=torch.float64)
        advantages = expected_advantages(logs.detach(), rewards)
        loss, _ = expected_policy_loss(logs[None], logs.detach()[None], advantages[None], 0.2)
        (-loss).backward()
    assert scores.grad is not None
    return scores.grad


def mean_over_orders(problem: Problem, estimate: Callable[[Order], Tensor]) -> Tensor:
    orders = list(itertools.permutations(problem.identifiers))
    return torch.stack([chance(SCORES, order) * estimate(order) for order in orders]).sum(0)


@pytest.mark.parametrize("gains", [(0, 1, 0, 0), (3, 0, 1, 2), (1, 1, 0, 2)])
def test_crediting_who_moves_up_has_the_gradient_of_the_expected_list_reward(gains: tuple[int, ...]) -> None:
    problem = pool(gains)

    def estimate(order: Order) -> Tensor:
        moves = moved_up(order, problem, "graded")
        return credited(problem, order, lambda i, left: [moves[i][k] for k in left])

    assert torch.allclose(mean_over_orders(problem, estimate), true_gradient(problem), atol=1e-12)


def test_one_order_of_moves_says_more_than_one_sampled_reward() -> None:
    problem, truth = pool((3, 0, 1, 2)), true_gradient(pool((3, 0, 1, 2)))

    def moves(order: Order) -> Tensor:
        moved = moved_up(order, problem, "graded")
        return credited(problem, order, lambda i, left: [moved[i][k] for k in left])

    def sampled(order: Order) -> Tensor:
        scores = SCORES.clone().requires_grad_()
        (chance(scores, order).log() * reward(order, problem)).backward()
        assert scores.grad is not None
        return scores.grad

    assert torch.allclose(mean_over_orders(problem, sampled), truth, atol=1e-12)

    def spread(estimate: Callable[[Order], Tensor]) -> float:
        return float(mean_over_orders(problem, lambda order: ((estimate(order) - truth) ** 2).sum()))

    assert spread(moves) < spread(sampled) / 10


def test_crediting_each_by_its_own_reward_is_off_where_later_places_count_too() -> None:
    """An elimination's steps are credited by what they earn themselves: the state behind them is taken as given."""
    problem = pool((3, 0, 1, 2))

    def own(i: int, left: Order) -> list[float]:
        named = (chosen_step(left, (k,), {}) for k in left)
        return [score_removal(s.completion, s.answer, problem, left, "graded", "best").total for s in named]

    found = mean_over_orders(problem, lambda order: credited(problem, order, own))
    cosine = float(torch.nn.functional.cosine_similarity(found, true_gradient(problem), 0))
    assert 0.9 < cosine < 1 - 1e-6
    assert math.isfinite(cosine)
