"""A first stage of a test collection: a run's, or BM25 over the corpus. In: queries, judgements, texts. Out: requests.

Next in the data flow are `trec` and `bright`, which make problems of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from r1ranker.datasets.collection import Document
from r1ranker.datasets.rankllm import Hit, Request
from r1ranker.errors import DataError
from r1ranker.io.qrels import Grades
from r1ranker.io.runs import read_run

EXCLUDED = -100
"""The grade by which ir_datasets marks a document that must not be ranked for a query."""
K1, B = 0.9, 0.4
"""Of BM25, as in Anserini's baselines; stop words are English, words by their stems."""

Scored = Mapping[str, Mapping[str, float]]
"""A first stage: score by query and document."""
Texts = Callable[[set[str]], Mapping[str, Document]]
"""The documents named, or of all where none is."""


def scores_of(file: Path) -> Scored:
    """A first stage from a run file."""
    return {r.qid: dict(zip(r.docids, r.scores, strict=True)) for r in read_run(file)}


def collected(
    grades: Grades, queries: Mapping[str, str], first: Scored | None, texts: Texts, top_k: int
) -> list[Request]:
    """Requests of the judged queries. One document more than `top_k` is read, since one may be the query itself."""
    asked = {qid: queries[qid] for qid in grades if queries.get(qid)}
    known: Mapping[str, Document] = {}
    if first is None:
        known = texts(set())
        first = bm25(asked, texts_of(known), top_k + 1 + max(map(_excluded, grades.values()), default=0), stem=True)
    top = {qid: _best(first.get(qid, {}), top_k + 1 + _excluded(grades[qid])) for qid in asked}
    wanted = {docid for best in top.values() for docid, _ in best}
    if wanted and not known:
        known = texts(wanted)
    absent = sorted(wanted - known.keys())
    if absent:
        raise DataError(f"the corpus lacks document {absent[0]!r} of the first stage; do they belong together?")
    found = [
        Request(qid, query, tuple(Hit(d, known[d].body, score, known[d].title) for d, score in top[qid]))
        for qid, query in asked.items()
    ]
    return allowed(found, grades)


def allowed(requests: Sequence[Request], grades: Grades) -> list[Request]:
    """Requests without the documents that are excluded for the query, or are the query itself."""
    return [replace(r, hits=tuple(hit for hit in r.hits if _may_stand(hit, r, grades[r.qid]))) for r in requests]


def _may_stand(hit: Hit, request: Request, grades: Mapping[str, int]) -> bool:
    """Whether a document is neither excluded for the query nor the query itself, under its identifier."""
    itself = hit.docid == request.qid and request.query.casefold() in (hit.body.casefold(), hit.text.casefold())
    return not itself and grades.get(hit.docid) != EXCLUDED


def _excluded(grades: Mapping[str, int]) -> int:
    return sum(grade == EXCLUDED for grade in grades.values())


def _best(scores: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    """The best documents of a query; equal scores in the order given."""
    return sorted(scores.items(), key=lambda pair: -pair[1])[:count]


def bm25(queries: Mapping[str, str], texts: Mapping[str, str], keep: int, *, stem: bool = False) -> Scored:
    """A first stage by bm25s over all `texts`: the best `keep` that share a word with the query."""
    from r1ranker.io.bm25 import scorer

    docids = list(texts)
    found = scorer(list(texts.values()), stem=stem, k1=K1, b=B)(list(queries.values()))
    scored: dict[str, dict[str, float]] = {}
    for qid, scores in zip(queries, found, strict=True):
        order = np.argsort(-scores, kind="stable")[:keep]
        scored[qid] = {docids[row]: float(scores[row]) for row in order if scores[row] > 0}
    return scored


def texts_of(documents: Mapping[str, Document]) -> dict[str, str]:
    """What is read of each document."""
    return {docid: document.text for docid, document in documents.items()}
