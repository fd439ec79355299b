"""Each algorithm by its own example, which enumerates all orders, and against numbers worked by hand."""

from __future__ import annotations

import doctest
import re
from importlib import import_module
from pkgutil import iter_modules
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.io.config import PPOConfig
from r1ranker.training import algorithms
from r1ranker.training.algorithms import Grouped, in_group, is_whitened
from r1ranker.training.algorithms.dr_grpo import dr_grpo
from r1ranker.training.algorithms.gae import gae
from r1ranker.training.algorithms.grpo import grpo
from r1ranker.training.algorithms.rloo import rloo
from r1ranker.training.critic import explained_variance
from r1ranker.training.experience import whiten

SHARED = {"groups", "truth"}
FILES = sorted(module.name for module in iter_modules(algorithms.__path__))
ESTIMATORS = get_args(PPOConfig.model_fields["estimator"].annotation)


@pytest.mark.parametrize("name", FILES)
def test_the_example_of_a_file_holds(name: str) -> None:
    found = doctest.testmod(import_module(f"{algorithms.__name__}.{name}"), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 1
    assert not found.failed


@pytest.mark.parametrize("name", [name for name in FILES if name not in SHARED])
def test_a_file_names_its_paper_and_is_held_against_the_truth(name: str) -> None:
    said = import_module(f"{algorithms.__name__}.{name}").__doc__ or ""
    assert re.search(r"\(arXiv \d{4}\.\d{5}\)|\b(19|20)\d\d\b", said)
    assert re.search(r"^ {4}\S.* = ", said, re.MULTILINE), "its equation"
    assert "algorithms.truth import Pool" in said
    assert f"| `{name}` |" in (algorithms.__doc__ or "")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_estimator_of_a_run_is_a_file_of_its_name(name: str) -> None:
    assert callable(in_group(name))
    assert isinstance(is_whitened(name), bool)


def test_gae_equals_hand_worked_numbers() -> None:
    rewards, values = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, 1.0, -1.0])
    advantages, returns = gae(rewards, values, gamma=0.5, lam=0.8)
    # deltas: 2 + 1 = 3;  0 + 0.5 * -1 - 1 = -1.5;  1 + 0.5 * 1 - 0.5 = 1;  each A = delta + 0.4 * next A
    assert advantages.tolist() == pytest.approx([1 + 0.4 * (-1.5 + 0.4 * 3), -1.5 + 0.4 * 3, 3.0])
    assert returns.tolist() == pytest.approx([0.88 + 0.5, -0.3 + 1.0, 3.0 - 1.0])


def test_gae_at_lambda_zero_is_the_one_step_error() -> None:
    rewards, values = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    advantages, _ = gae(rewards, values, gamma=0.9, lam=0.0)
    assert advantages.tolist() == pytest.approx([1 + 0.9 * 5 - 3, 2 - 5])


FLOATS = st.floats(-5, 5, width=32)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20))
def test_gae_without_discount_is_what_is_still_to_come_minus_the_value(steps: list[tuple[float, float]]) -> None:
    rewards, values = (torch.tensor(column) for column in zip(*steps, strict=True))
    advantages, returns = gae(rewards, values)
    to_come = rewards.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(returns, to_come, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(advantages, to_come - values, atol=1e-4, rtol=1e-4)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_its_definition_as_a_sum(steps: list[tuple[float, float]], gamma: float, lam: float) -> None:
    rewards, values = (torch.tensor(column) for column in zip(*steps, strict=True))
    n = len(steps)
    following = [*values.tolist()[1:], 0.0]
    deltas = [float(rewards[t]) + gamma * following[t] - float(values[t]) for t in range(n)]
    expected = [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, n)) for t in range(n)]
    assert gae(rewards, values, gamma, lam)[0].tolist() == pytest.approx(expected, abs=1e-3)


def test_whitened_values_have_mean_zero_and_deviation_one() -> None:
    whitened = whiten(torch.tensor([1.0, 2.0, 3.0, 10.0]))
    assert float(whitened.mean()) == pytest.approx(0, abs=1e-6)
    assert float(whitened.std(unbiased=False)) == pytest.approx(1, abs=1e-6)
    assert whitened.argsort().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("constant", [[3.0], [2.0, 2.0, 2.0], [0.0, 0.0]])
def test_a_constant_whitens_to_zero(constant: list[float]) -> None:
    assert whiten(torch.tensor(constant)).tolist() == [0.0] * len(constant)


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_the_mean() -> None:
    returns = torch.tensor([0.0, 1.0, 2.0, 5.0])
    assert explained_variance(returns, returns) == pytest.approx(1)
    assert explained_variance(returns + 3, returns) == pytest.approx(1)
    assert explained_variance(torch.full((4,), 2.0), returns) == pytest.approx(0)
    assert explained_variance(-returns, returns) == pytest.approx(-3)
    assert explained_variance(torch.rand(4), torch.ones(4)) == 0.0


def test_a_group_is_compared_step_by_step_with_hand_worked_numbers() -> None:
    rewards = [[2.0, 1.0], [0.0, 1.0], [2.0, 0.0]]  # to go: 3 and 1, 1 and 1, 2 and 0
    assert rloo(rewards) == [pytest.approx([1.5, 0.5]), pytest.approx([-1.5, 0.5]), pytest.approx([0.0, -1.0])]
    deviation = (2 / 3) ** 0.5
    assert [first for first, _ in grpo(rewards)] == pytest.approx([1 / deviation, -1 / deviation, 0], abs=1e-5)
    assert [second for _, second in grpo(rewards)] == pytest.approx([0.5**0.5, 0.5**0.5, -(2**0.5)], abs=1e-5)


def test_dr_grpo_differs_from_grpo_by_the_groups_deviation_alone() -> None:
    rewards = [[2.0, 1.0], [0.0, 1.0], [2.0, 0.0]]
    assert dr_grpo(rewards) == [pytest.approx([1.0, 1 / 3]), pytest.approx([-1.0, 1 / 3]), pytest.approx([0.0, -2 / 3])]
    wider = [[10 * reward for reward in steps] for steps in rewards]
    assert dr_grpo(wider) == [pytest.approx([10 * a for a in steps]) for steps in dr_grpo(rewards)]
    assert grpo(wider) == [pytest.approx(steps, abs=1e-4) for steps in grpo(rewards)]


@pytest.mark.parametrize("estimator", [in_group(name) for name in (*ESTIMATORS, "maxrl", "rank_grpo") if name != "gae"])
def test_a_group_that_agrees_teaches_nothing(estimator: Grouped) -> None:
    assert estimator([[1.0, 0.5]] * 4) == [[0.0, 0.0]] * 4


def test_leave_one_out_is_each_against_the_mean_of_the_others() -> None:
    values = [0.3, 0.9, 0.1, 0.5]
    for value, (advantage,) in zip(values, rloo([[v] for v in values]), strict=True):
        others = [v for v in values if v != value]
        assert advantage == pytest.approx(value - sum(others) / 3)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.integers(1, 19))
def test_whitening_in_shares_is_whitening_the_whole(values: list[float], cut: int) -> None:
    shares = [torch.tensor(values[:cut]), torch.tensor(values[cut:])]
    sums = [
        [float(len(values)), sum(float(s.double().sum()) for s in shares)],
        [float(((torch.tensor(values) - sums_of(shares) / len(values)).double() ** 2).sum())],
    ]
    parts = []
    for share in shares:
        answers = iter(sums)
        parts.append(whiten(share, lambda *_, answers=answers: next(answers)))
    torch.testing.assert_close(torch.cat(parts), whiten(torch.tensor(values)), atol=1e-5, rtol=1e-4)


def sums_of(shares: list[torch.Tensor]) -> float:
    return sum(float(s.double().sum()) for s in shares)
