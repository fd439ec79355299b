"""A ranking step by step, for a terminal. In: a problem and its ranking. Out: what rich prints.

    Console().print(steps_shown(problem, ranking))

The page shows the same at more length (`report_traces`).
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from r1ranker.problem import Problem, Ranking, Step

BARS = "▁▂▃▄▅▆▇█"
GONE = "·"


def steps_shown(problem: Problem, ranking: Ranking) -> Group:
    """A line for each step: how many are left, a bar for each candidate by identifier, and who leaves.

    A bar is the probability of leaving, against the largest of its step; who has left is a dot. Below stands the
    order, best first. A direct ranking has one step in which nobody leaves.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("left", justify="right")
    table.add_column("bars", no_wrap=True)
    table.add_column(_heading(problem, ranking), no_wrap=True, overflow="ellipsis")
    for step in ranking.steps:
        chance = sum(step.probabilities.get(k, 0.0) for k in step.removed)
        who = ", ".join(shown(problem, k) for k in step.removed)
        known = f"{chance:.2f} " if step.probabilities and step.removed else ""
        table.add_row(str(len(step.pool)), bars(problem.identifiers, step), Text(known + who))
    return Group(Text(asked(problem), style="bold"), table, Text(_order(problem, ranking)))


def asked(problem: Problem) -> str:
    """The query, or what came before it, on a line."""
    return f"{problem.task}: {problem.query or 'after ' + ', '.join(problem.history)}"


def bars(identifiers: Sequence[int], step: Step) -> str:
    """One character for each identifier."""
    left, most = set(step.pool), max(step.probabilities.values(), default=0.0)

    def bar(identifier: int) -> str:
        if identifier not in left:
            return GONE
        share = step.probabilities.get(identifier, 0.0) / most if most else 0.0
        return BARS[round(share * (len(BARS) - 1))]

    return "".join(map(bar, identifiers))


def shown(problem: Problem, identifier: int) -> str:
    """A candidate as the model sees it."""
    return f"[{identifier}] {problem.candidate(identifier).text}"


def _heading(problem: Problem, ranking: Ranking) -> str:
    first = next((step.removed[0] for step in ranking.steps if step.removed), None)
    best = first is not None and ranking.docids[:1] == (problem.candidate(first).docid,)
    return "selected, the best first" if best else "leaves, the worst first"


def _order(problem: Problem, ranking: Ranking) -> str:
    if ranking.error:
        return f"no order: {ranking.error}"
    places = {problem.candidate(k).docid: k for k in problem.identifiers}
    order = [places[docid] for docid in ranking.docids]
    found = next((place for place, k in enumerate(order, 1) if problem.is_relevant(k)), None)
    where = f"; the first relevant one at place {found}" if found else ""
    return f"order: {' '.join(f'[{k}]' for k in order)}{where}"
