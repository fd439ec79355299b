"""BM25 by bm25s: how far matching words go. In: `Problem`s. Out: `Ranking`s."""

from __future__ import annotations

import time
from collections.abc import Sequence

from r1ranker.baselines.ordering import ranked_by
from r1ranker.io.bm25 import query_of, scorer
from r1ranker.problem import Problem, Ranking, Usage, by_task


def bm25(problems: Sequence[Problem]) -> list[Ranking]:
    """Each pool by BM25 (Lucene's variant, k1 1.5, b 0.75, English stop words, no stemming).

    The question is the query text and the objective (routing), or the titles of the history (recommendation).
    Document frequencies come from all distinct candidate texts of the task's given problems: one pool alone is
    too small for them to mean anything. So a ranking can change with the set of problems asked for at once.
    """
    rankings: dict[int, Ranking] = {}
    for of_task in by_task(problems).values():
        rankings |= {id(p): ranking for p, ranking in zip(of_task, _rank_task(of_task), strict=True)}
    return [rankings[id(problem)] for problem in problems]


def _rank_task(problems: Sequence[Problem]) -> list[Ranking]:
    began = time.perf_counter()
    row_of: dict[str, int] = {}
    for problem in problems:
        for candidate in problem.candidates:
            row_of.setdefault(candidate.text, len(row_of))
    found = scorer(list(row_of))([query_of(problem) for problem in problems])
    scores = [
        {c.docid: float(of_rows[row_of[c.text]]) for c in problem.candidates}
        for problem, of_rows in zip(problems, found, strict=True)
    ]
    usage = Usage(seconds=(time.perf_counter() - began) / len(problems))
    return [ranked_by(problem, known, "bm25", usage) for problem, known in zip(problems, scores, strict=True)]
