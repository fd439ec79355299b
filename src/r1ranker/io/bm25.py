"""BM25 over texts by bm25s, for first stages, the baseline and the recall of thoughts. In: texts. Out: their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import bm25s
import numpy as np
import Stemmer

from r1ranker.problem import Problem


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
