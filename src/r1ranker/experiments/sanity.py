"""Could the figures be an artefact? In: a `Study` and systems. Out: `sanity/tables.json` in the experiment's folder.

Order: the same problems with their candidates in other orders. Labels: chance computed and measured, the pool's own
order as a ranking, ties among the best, and test queries whose text also stands in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import comb
from statistics import fmean, pstdev

from r1ranker.baselines import BASELINES
from r1ranker.elimination import ranking_from
from r1ranker.evaluation.measures import evaluate_by_task
from r1ranker.evaluation.systems import ModelSystem
from r1ranker.experiments.report import Table, save_tables
from r1ranker.experiments.study import Study
from r1ranker.problem import Problem, Ranking, Usage, by_task, first_by_task, part_of, rng_for

ORDERS = 5
PER_TASK = 30
"""Problems per task that are ranked in every order: each order costs as much as an evaluation of them."""
WITHOUT_ORDER = 3
"""The same where candidates are read side by side: no order reaches the model, only the rounding of its passes."""


def sanity(study: Study, systems: Sequence[ModelSystem]) -> None:
    """Save both tables."""
    test = study.problems("test")
    few = first_by_task(test, WITHOUT_ORDER if study.reads_pools_whole else PER_TASK)
    tables = [label_table(test, study.problems("train")), order_table(study, systems, few)]
    save_tables(study.out / "sanity", tables, study.settings)


def order_table(study: Study, systems: Sequence[ModelSystem], problems: Sequence[Problem]) -> Table:
    """MRR of each system, mean over tasks, when the candidates stand in other orders."""
    orders = [[reordered(problem, seed) for problem in problems] for seed in range(ORDERS)]
    rankings = study.rankings(systems, [problem for order in orders for problem in order])
    lines = []
    for system in systems:
        of_system = iter(rankings[system.name])
        by_order = [[next(of_system) for _ in order] for order in orders]
        found = [_mrr(ranked, order) for ranked, order in zip(by_order, orders, strict=True)]
        same = fmean(len({r.docids[:1] for r in of_query}) == 1 for of_query in zip(*by_order, strict=True))
        numbers = (f"{value:.3f}" for value in (fmean(found), min(found), max(found), pstdev(found)))
        lines.append((system.name, *numbers, f"{same:.0%}"))
    columns = ("system", "mean MRR", "lowest", "highest", "deviation", "same first in all")
    note = (
        f"The same {len(problems)} test queries, candidates in {ORDERS} random orders. A ranker that reads places "
        "instead of texts has a large deviation, or a first candidate that changes with the order."
    )
    return Table("Sanity: order of candidates", columns, lines, note)


def label_table(test: Sequence[Problem], train: Sequence[Problem]) -> Table:
    """By task: what needs no model, and what must be 0."""
    seen = {_context(problem) for problem in train}
    lines = []
    for task, problems in by_task(test).items():
        listed = [ranking_from(p, p.identifiers, (), Usage()) for p in problems]
        turned = [ranking_from(p, p.identifiers[::-1], (), Usage()) for p in problems]
        measured = [_mrr(rankings, problems) for rankings in (BASELINES["random"](problems), listed, turned)]
        shares = (fmean(map(_best_tied, problems)), fmean(map(_equal_pairs, problems)))
        cells = [f"{value:.3f}" for value in (fmean(map(chance, problems)), *measured)]
        cells += [*(f"{share:.0%}" for share in shares), str(sum(_context(p) in seen for p in problems))]
        lines.append((task, str(len(problems)), *cells))
    columns = ("task", "queries", "chance", "random", "as listed", "reversed", "best tied", "equal pairs", "leaked")
    note = (
        "MRR: expected of a random order (computed), measured of a random order, of the pool as listed, and of that "
        "reversed: all four agree when places give nothing away. best tied: queries with several best candidates. "
        "equal pairs: pairs of candidates with equal gains. leaked: test queries whose text is also a training "
        "query's; must be 0."
    )
    return Table("Sanity: places and labels", columns, lines, note)


def reordered(problem: Problem, seed: int) -> Problem:
    """The problem with its candidates in another order, under a qid of its own."""
    order = list(problem.identifiers)
    rng_for("order", seed, problem.task, problem.qid).shuffle(order)
    return replace(part_of(problem, order), qid=f"{problem.qid}~{seed}")


def chance(problem: Problem) -> float:
    """Expected reciprocal rank of a uniformly random order: H(n)/n with one relevant candidate of n."""
    n, relevant = len(problem.candidates), sum(map(problem.is_relevant, problem.identifiers))
    if not relevant:
        return 0.0
    return sum(comb(n - rank, relevant - 1) / rank for rank in range(1, n - relevant + 2)) / comb(n, relevant)


def _mrr(rankings: Sequence[Ranking], problems: Sequence[Problem]) -> float:
    """Mean over tasks."""
    return fmean(fmean(values["MRR"].values()) for values in evaluate_by_task(rankings, problems).values())


def _best_tied(problem: Problem) -> bool:
    gains = [problem.gain(k) for k in problem.identifiers]
    return gains.count(max(gains, default=0)) > 1


def _equal_pairs(problem: Problem) -> float:
    gains = [problem.gain(k) for k in problem.identifiers]
    pairs = list(combinations(gains, 2))
    return sum(a == b for a, b in pairs) / max(1, len(pairs))


def _context(problem: Problem) -> tuple[str, tuple[str, ...]]:
    """What is asked, whatever the objective: one question stands in several routing tasks."""
    return problem.query, problem.history
