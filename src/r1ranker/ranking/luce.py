"""Steps read off one pass: what each says follows from one number for each candidate. Pure.

In: weights by identifier, and who leaves in turn. Out: what is left before each, and their probabilities, as views.
Used by `plans.judged`; what reads steps in a row asks `goes_on`.

By the model of Plackett and Luce a step chooses among what is left in proportion to fixed weights. Written out, the
steps of n candidates hold n * n / 2 identifiers and as many probabilities: gigabytes for 10 000. A view keeps how many
have left before its step and computes the rest when it is asked, so a whole ranking is as large as its pool.

    course = course_of({1: 0.2, 2: 0.5, 3: 0.3}, named=(2, 3))
    left = Left(course, 1)                # after the first step: reads as the tuple (1, 3)
    Chances(left)                         # reads as the dict {1: 0.4, 3: 0.6}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

from r1ranker.problem import Step


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """Who leaves a pool when.

    turns: by identifier, in the pool's order, how many have left before it. weights: by identifier, > 0. totals: by how
    many have left, what the others weigh together.
    """

    turns: Mapping[int, int]
    weights: Mapping[int, float]
    totals: Sequence[float]


def course_of(weights: Mapping[int, float], named: Sequence[int]) -> Course:
    """The course in which `named` leave one after the other; the others stay to the end."""
    turns = dict.fromkeys(weights, len(named)) | {k: turn for turn, k in enumerate(named)}
    kept = sum(weight for k, weight in weights.items() if turns[k] == len(named))
    # From the end, where weights are least: nothing small is lost in a large sum.
    totals = list(accumulate((weights[k] for k in reversed(named)), initial=kept))
    return Course({k: turns[k] for k in weights}, weights, totals[::-1])


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Left(Sequence[int]):
    """The identifiers that are left when `gone` have left: equal to the tuple of them, in the pool's order."""

    course: Course
    gone: int

    def __len__(self) -> int:
        return len(self.course.turns) - self.gone

    def __iter__(self) -> Iterator[int]:
        return (k for k, turn in self.course.turns.items() if turn >= self.gone)

    def __contains__(self, identifier: object) -> bool:
        return self.course.turns.get(identifier, -1) >= self.gone  # type: ignore[call-overload, no-any-return]

    def __getitem__(self, place: Any) -> Any:
        return tuple(self)[place]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Left | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Chances(Mapping[int, float]):
    """The probability of each of those left to be named next: equal to the dict of them."""

    left: Left

    def __len__(self) -> int:
        return len(self.left)

    def __iter__(self) -> Iterator[int]:
        return iter(self.left)

    def __getitem__(self, identifier: int) -> float:
        if identifier not in self.left:
            raise KeyError(identifier)
        course = self.left.course
        return course.weights[identifier] / course.totals[self.left.gone]

    def __repr__(self) -> str:
        return repr(dict(self))


def goes_on(step: Step, after: Step) -> bool:
    """Whether `after` is about what `step` left."""
    pool, rest = step.pool, after.pool
    if isinstance(pool, Left) and isinstance(rest, Left) and pool.course is rest.course:
        return rest.gone == pool.gone + len(step.removed) > pool.gone
    return bool(step.removed) and set(rest) == set(pool) - set(step.removed)


def asked_about(steps: Sequence[Step]) -> set[int]:
    """The identifiers that stood in the pool of any step."""
    found: set[int] = set()
    before: Step | None = None
    for step in steps:
        if before is None or not goes_on(before, step):
            found.update(step.pool)
        before = step
    return found


def renamed(steps: Sequence[Step], names: Mapping[int, int]) -> tuple[Step, ...]:
    """The same steps, with every identifier by its name in `names`."""

    @cache
    def course(of: Course) -> Course:
        turns = {names[k]: turn for k, turn in of.turns.items()}
        return Course(turns, {names[k]: weight for k, weight in of.weights.items()}, of.totals)

    def one(step: Step) -> Step:
        pool: Sequence[int]
        chances: Mapping[int, float]
        if isinstance(step.pool, Left):
            pool = left = Left(course(step.pool.course), step.pool.gone)
            chances = Chances(left)
        else:
            pool = tuple(names[k] for k in step.pool)
            chances = {names[k]: p for k, p in step.probabilities.items()}
        answer = dataclasses.replace(step.answer, ids=tuple(names[k] for k in step.answer.ids))
        removed = tuple(names[k] for k in step.removed)
        return dataclasses.replace(step, pool=pool, answer=answer, removed=removed, probabilities=chances)

    return tuple(map(one, steps))
