"""How much of the gap to the oracle could any router close? A mixture of kinds of questions. In: who solved what.

    kinds = best_kinds(train_Q_L, dev_Q_L)
    reached_by_kind(kinds, test_Q_L).mean()     # one who knew the kind of each question
    lucky_oracle(kinds)                         # what the oracle would have if all else were coins

A question is of one of a few hidden kinds, and within a kind each LLM solves a question by a coin of its own (latent
class analysis, Lazarsfeld 1950). Kinds hold all that LLMs have in common: subject, difficulty, which family is right.
A router reads the question alone, so what the oracle has above the best LLM of each kind is out of its reach, unless
the question tells what one LLM knows and no other. Who solved it is known here, and no router knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SIZES = (1, 2, 4, 8, 16, 32, 64)
ROUNDS = 150
SEEN_BEFORE = 2.0
"""Questions at an LLM's mean rate that each kind begins with, so that no rate is 0 or 1."""


class Kinds(NamedTuple):
    """shares: of each kind; rates: at which each LLM solves one of it, shape (kinds, LLMs)."""

    shares: Floats
    rates: Floats


def best_kinds(train_Q_L: Floats, dev_Q_L: Floats, sizes: Sequence[int] = SIZES, *, seed: int = 0) -> Kinds:
    """Kinds fitted to `train` (1 where an LLM solved a question, else 0), as many as make `dev` likeliest."""
    fitted = [fit_kinds(train_Q_L, size, seed=seed) for size in sizes if size <= len(train_Q_L)]
    return max(fitted, key=lambda kinds: float(_log_joint(kinds, dev_Q_L)[1].mean()))


def fit_kinds(solved_Q_L: Floats, count: int, *, seed: int = 0) -> Kinds:
    """Expectation maximisation from kinds drawn at random; smoothed by `SEEN_BEFORE`."""
    rng = np.random.default_rng(seed)
    mean_L = solved_Q_L.mean(axis=0).clip(1e-3, 1 - 1e-3)
    belongs_Q_K = rng.dirichlet(np.ones(count), len(solved_Q_L))
    kinds = _rates(belongs_Q_K, solved_Q_L, mean_L)
    for _ in range(ROUNDS if count > 1 else 1):
        kinds = _rates(belonging(kinds, solved_Q_L), solved_Q_L, mean_L)
    return kinds


def belonging(kinds: Kinds, solved_Q_L: Floats) -> Floats:
    """How likely a question is of each kind, once it is known who solved it; shape (questions, kinds)."""
    joint_Q_K, whole_Q = _log_joint(kinds, solved_Q_L)
    likely: Floats = np.exp(joint_Q_K - whole_Q[:, None])
    return likely


def reached_by_kind(kinds: Kinds, solved_Q_L: Floats) -> Floats:
    """What each question adds to the rate of one who knows its kind and asks the LLM that was best on it in training.

    Weighed by how likely each kind is, as in the fit; the mean is that router's share of questions solved.
    """
    best_K = kinds.rates.argmax(axis=1)
    reached: Floats = (belonging(kinds, solved_Q_L) * solved_Q_L[:, best_K]).sum(axis=1)
    return reached


def lucky_oracle(kinds: Kinds) -> float:
    """Share of questions that at least one LLM solves, were all but the kinds coins."""
    return float(kinds.shares @ (1 - (1 - kinds.rates).prod(axis=1)))


def _rates(belongs_Q_K: Floats, solved_Q_L: Floats, mean_L: Floats) -> Kinds:
    held_K = belongs_Q_K.sum(axis=0)
    rates = (belongs_Q_K.T @ solved_Q_L + SEEN_BEFORE * mean_L) / (held_K + SEEN_BEFORE)[:, None]
    return Kinds(held_K / len(solved_Q_L), rates)


def _log_joint(kinds: Kinds, solved_Q_L: Floats) -> tuple[Floats, Floats]:
    """Log-likelihood of each question with each kind, shape (questions, kinds), and over all kinds."""
    joint_Q_K = (
        np.log(kinds.shares + 1e-300) + solved_Q_L @ np.log(kinds.rates).T + (1 - solved_Q_L) @ np.log1p(-kinds.rates).T
    )
    top_Q = joint_Q_K.max(axis=1)
    whole_Q = top_Q + np.log(np.exp(joint_Q_K - top_Q[:, None]).sum(axis=1))
    return joint_Q_K, whole_Q
