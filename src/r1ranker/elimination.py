"""The pool's state machine: pure, no model, no I/O. In: identifiers. Out: an order, made into a `Ranking`.

Next in the data flow: `ranking` drives it, one model call a step; `evaluation` reads the rankings.

    state = start((1, 2, 3)).remove(2).remove(3)
    state.order((1,))  # (1, 3, 2): last removed = second best
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from r1ranker.errors import DataError
from r1ranker.problem import Problem, Ranking, Step, Usage
from r1ranker.prompts import Wanted


@dataclass(frozen=True, slots=True)
class Elimination:
    """`pool` is what remains, in the order it was given; `removed` what left, first one first."""

    pool: tuple[int, ...]
    removed: tuple[int, ...] = ()

    def remove(self, identifier: int) -> Elimination:
        """The state after `identifier` has left the pool."""
        if identifier not in self.pool:
            raise ValueError(f"cannot remove [{identifier}]: the pool holds {list(self.pool)}")
        return Elimination(tuple(k for k in self.pool if k != identifier), (*self.removed, identifier))

    def done(self, top_k: int = 1) -> bool:
        """Whether at most `top_k` candidates remain."""
        return len(self.pool) <= top_k

    def order(self, survivor_order: Sequence[int], ask: Wanted = "worst") -> tuple[int, ...]:
        """Best first: the survivors as ordered by the caller, then the removed, last removed first.

        Where each step named the best, those that left stand in front, as they left.
        """
        _check_same(survivor_order, self.pool, "the survivors")
        return (*self.removed, *survivor_order) if ask == "best" else (*survivor_order, *reversed(self.removed))


def start(identifiers: Sequence[int]) -> Elimination:
    """The state before any removal."""
    if len(set(identifiers)) != len(identifiers):
        raise ValueError(f"identifiers {list(identifiers)} name a candidate twice")
    return Elimination(tuple(identifiers))


def ranking_from(problem: Problem, order: Sequence[int], steps: Sequence[Step], usage: Usage) -> Ranking:
    """The whole pool in `order`, best first, with scores n, n-1, ... 1."""
    _check_same(order, problem.identifiers, f"problem {problem.qid!r}")
    return Ranking(
        qid=problem.qid,
        docids=tuple(problem.candidate(k).docid for k in order),
        scores=tuple(float(len(order) - place) for place in range(len(order))),
        steps=tuple(steps),
        usage=usage,
    )


def sampled_pool(problem: Problem, size: int, rng: random.Random) -> tuple[int, ...]:
    """A training state: a relevant candidate and random others, in increasing order.

    Paper, Training: for each problem, pools of every size 2..n that hold the positive and random others. Of
    several relevant candidates one is drawn; the others are drawn like the rest.
    """
    where = f"problem {problem.qid!r} of task {problem.task!r}"
    if not 1 <= size <= len(problem.candidates):
        raise DataError(f"{where}: cannot draw a pool of {size} from {len(problem.candidates)} candidates")
    relevant = [k for k in problem.identifiers if problem.is_relevant(k)]
    if not relevant:
        raise DataError(f"{where}: no candidate is relevant, so it makes no training state; leave it out")
    kept = rng.choice(relevant)
    others = [k for k in problem.identifiers if k != kept]
    return tuple(sorted([kept, *rng.sample(others, size - 1)]))


def _check_same(order: Sequence[int], pool: Sequence[int], what: str) -> None:
    if sorted(order) != sorted(pool):
        raise ValueError(f"{what}: {list(order)} is not an order of {list(pool)}")
