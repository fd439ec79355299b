"""A ranking fused with the first stage's, so that what a model misreads does not lose what was known before.

In: a `Ranking` and the `Problem` it is of. Out: a `Ranking` of the same pool. Pure.

    fuse(problem, ranking, "rrf")      # reciprocal ranks (Cormack et al. 2009)
    fuse(problem, ranking, 0.7)        # 0.7 of the model's score and 0.3 of the prior's, each from 0 to 1

Where both say that a candidate is better than another one, so does what comes out. `evaluation.fusion` chooses a
weight on dev.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Literal

from r1ranker.elimination import ranking_from
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Problem, Ranking

Fusion = Literal["rrf"] | float
"""`rrf`, or the model's weight from 0 (the first stage alone) to 1 (the model alone)."""
RRF_K = 60


def fuse(problem: Problem, ranking: Ranking, how: Fusion) -> Ranking:
    """The pool by what the ranking and the prior say together; ties stay in the ranking's order.

    The first stage's order is that of `problem.prior`, where one that it does not know comes last; without any prior,
    reciprocal ranks take the order in which candidates were given, and a weight raises DataError. A ranking that
    failed stays as it is.
    """
    check_prior(problem, how)
    if ranking.error:
        return ranking
    identifiers = {problem.candidate(k).docid: k for k in problem.identifiers}
    if set(ranking.docids) != set(identifiers):
        raise DataError(f"problem {problem.qid!r} of task {problem.task!r}: a ranking to fuse must hold its whole pool")
    model = {identifiers[docid]: -place for place, docid in enumerate(ranking.docids)}
    if how == "rrf":
        parts = (_reciprocal(model), _reciprocal(_prior(problem) or {k: -k for k in model}))
        score = {k: sum(part[k] for part in parts) for k in model}
    else:
        ours, theirs = _normalised(model), _normalised(_prior(problem))
        score = {k: how * ours[k] + (1 - how) * theirs[k] for k in model}
    order = sorted(model, key=lambda k: (score[k], model[k]), reverse=True)
    return ranking_from(problem, order, ranking.steps, ranking.usage)


def check(how: Fusion) -> None:
    """Raises ConfigError for what is no way to fuse."""
    if how != "rrf" and not (isinstance(how, int | float) and 0 <= how <= 1):
        raise ConfigError(f"fuse: {how!r} is neither rrf nor the model's weight, from 0 to 1")


def check_prior(problem: Problem, how: Fusion) -> None:
    """Raises DataError for a problem that cannot be fused so, ConfigError for what is no way to fuse."""
    check(how)
    if how != "rrf" and problem.candidates and not _prior(problem):
        raise DataError(
            f"problem {problem.qid!r} of task {problem.task!r}: has no prior, so there is nothing to weigh the model "
            "against; give the first stage's scores as `prior`, or rank without fuse"
        )


def parse_fusion(text: str) -> Fusion:
    """`rrf`, or a weight, as a command line has it."""
    try:
        how: Fusion = "rrf" if text == "rrf" else float(text)
    except ValueError as error:
        raise ConfigError(f"fuse: {text!r} is neither rrf nor the model's weight, from 0 to 1") from error
    check(how)
    return how


def _prior(problem: Problem) -> dict[int, float]:
    """The prior by identifier, -inf where it does not know a candidate; empty where it knows none."""
    known = {k: problem.prior.get(problem.candidate(k).docid, -math.inf) for k in problem.identifiers}
    return known if any(map(math.isfinite, known.values())) else {}


def _reciprocal(scores: Mapping[int, float]) -> dict[int, float]:
    """1 / (60 + rank); those with one score share the mean of their ranks, so that no order of the pool decides."""
    ranks: dict[float, list[int]] = {}
    for rank, value in enumerate(sorted(scores.values(), reverse=True), start=1):
        ranks.setdefault(value, []).append(rank)
    mean = {value: fmean(shared) for value, shared in ranks.items()}
    return {k: 1 / (RRF_K + mean[value]) for k, value in scores.items()}


def _normalised(scores: Mapping[int, float]) -> dict[int, float]:
    """From 0 for the worst that is known to 1 for the best; 0 for what is not known, and for all where they tie."""
    low, high = min(filter(math.isfinite, scores.values())), max(scores.values())
    return {k: max(0.0, (value - low) / (high - low)) if high > low else 0.0 for k, value in scores.items()}
