"""BM25 by bm25s: how far matching words go. In: `Problem`s. Out: `Ranking`s."""

from __future__ import annotations

import time
from collections.abc import Sequence

import bm25s

from r1ranker.baselines.ordering import ranked_by
from r1ranker.evaluation.measures import by_task
from r1ranker.problem import Problem, Ranking, Usage


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
    corpus = _words(list(row_of))
    index = bm25s.BM25()
    if any(corpus):
        index.index(corpus, show_progress=False)
    scores = []
    for problem, words in zip(problems, _words([_question(p) for p in problems]), strict=True):
        # bm25s cannot score an empty query, nor index a corpus without a word: no word matches, all tie.
        row_scores = index.get_scores(words) if words and any(corpus) else [0.0] * len(row_of)
        scores.append({c.docid: float(row_scores[row_of[c.text]]) for c in problem.candidates})
    usage = Usage(seconds=(time.perf_counter() - began) / len(problems))
    return [ranked_by(problem, known, "bm25", usage) for problem, known in zip(problems, scores, strict=True)]


def _question(problem: Problem) -> str:
    return " ".join((problem.query, problem.objective, *problem.history))


def _words(texts: list[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(texts, return_ids=False, show_progress=False)
    return words
