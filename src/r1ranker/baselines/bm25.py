"""BM25 by bm25s: how far matching words go. In: `Problem`s. Out: `Ranking`s."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import bm25s
import numpy as np
import Stemmer

from r1ranker.baselines.ordering import ranked_by
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


def query_of(problem: Problem) -> str:
    """What a problem asks by words: query and objective, or the titles of a history."""
    return " ".join(filter(None, (problem.query, problem.objective, *problem.history)))


def scorer(texts: Sequence[str], *, stem: bool = False, **settings: float) -> Callable[[Sequence[str]], Iterator[Any]]:
    """Gives for each query the scores of all texts, an array. `settings`: k1 and b; stop words are English.

    stem: compare words by Porter's stems, as Anserini does.
    """
    corpus = _words(texts, stem)
    index = bm25s.BM25(**settings)
    if known := any(corpus):
        index.index(corpus, show_progress=False)

    def scores(queries: Sequence[str]) -> Iterator[Any]:
        # bm25s cannot score an empty query, nor index a corpus without a word: then no word matches, all tie.
        asked = _words(queries, stem)
        return (index.get_scores(words) if words and known else np.zeros(len(texts)) for words in asked)

    return scores


def _words(texts: Sequence[str], stem: bool) -> list[list[str]]:
    stemmer = Stemmer.Stemmer("porter") if stem else None
    words: list[list[str]] = bm25s.tokenize(list(texts), return_ids=False, show_progress=False, stemmer=stemmer)
    return words
