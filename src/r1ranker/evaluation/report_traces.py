"""Eliminations made readable. In: a `Trace`. Out: views that the report's template only has to print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r1ranker.problem import Problem, Ranking, Step


@dataclass(frozen=True, slots=True)
class Trace:
    """One problem as a system ranked it."""

    problem: Problem
    ranking: Ranking
    system: str


@dataclass(frozen=True, slots=True)
class Item:
    """A candidate as the report lists it. `share` is the model's probability of naming it, in per cent, if known."""

    identifier: int
    text: str
    gain: int
    relevant: bool
    removed: bool = False
    share: float | None = None
    left_at: int | None = None


@dataclass(frozen=True, slots=True)
class StepView:
    """One model call: the pool it saw, and what the answer did. `widest` is the largest share, for the bars."""

    number: int
    pool: tuple[Item, ...]
    removed: tuple[Item, ...]
    named: tuple[int, ...]
    kind: str
    widest: float
    thought: str
    completion: str


@dataclass(frozen=True, slots=True)
class TraceView:
    """One problem: its context, its steps, and the ranking they made."""

    problem: Problem
    system: str
    outcome: str
    steps: tuple[StepView, ...]
    final: tuple[Item, ...]


def view(trace: Trace) -> TraceView:
    """What the report shows of a trace. Ranked docids that are not in the pool are left out."""
    problem, ranking = trace.problem, trace.ranking
    identifier_of = {c.docid: k for k, c in enumerate(problem.candidates, start=1)}
    order = [identifier_of[docid] for docid in ranking.docids if docid in identifier_of]
    left_at = {k: number for number, step in enumerate(ranking.steps, start=1) for k in step.removed}
    return TraceView(
        problem=problem,
        system=trace.system,
        outcome=_outcome(problem, order, ranking),
        steps=tuple(_step(problem, number, step) for number, step in enumerate(ranking.steps, start=1)),
        final=tuple(_item(problem, k, left_at=left_at.get(k)) for k in order),
    )


def _item(
    problem: Problem, k: int, *, removed: bool = False, share: float | None = None, left_at: int | None = None
) -> Item:
    return Item(k, problem.candidate(k).text, problem.gain(k), problem.is_relevant(k), removed, share, left_at)


def _step(problem: Problem, number: int, step: Step) -> StepView:
    pool = tuple(
        _item(problem, k, removed=k in step.removed, share=_percent(step.probabilities.get(k))) for k in step.pool
    )
    return StepView(
        number=number,
        pool=pool,
        removed=tuple(_item(problem, k) for k in step.removed),
        named=step.answer.ids,
        kind=step.answer.kind,
        widest=max((item.share or 0.0 for item in pool), default=0.0) or 1.0,
        thought=step.thought.strip(),
        # A valid answer is told by what it removed; what a broken one said has to be seen.
        completion="" if step.answer.kind == "valid" else step.completion.strip(),
    )


def _percent(probability: float | None) -> float | None:
    return None if probability is None else round(100 * probability, 1)


def _outcome(problem: Problem, order: Sequence[int], ranking: Ranking) -> str:
    if ranking.error:
        return f"no ranking: {ranking.error}"
    places = [place for place, k in enumerate(order, start=1) if problem.is_relevant(k)]
    first = f"first relevant at {places[0]} of {len(order)}" if places else "nothing relevant in the pool"
    calls = f"{len(ranking.steps)} step{'s' if len(ranking.steps) != 1 else ''}"
    return f"{first} · {calls}" + (f" · {ranking.broken} broken" if ranking.broken else "")
