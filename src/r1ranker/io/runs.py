"""TREC run files, `qid Q0 docid rank score tag` on each line. In and out: `Ranking`s.

Scores in a file strictly decrease within a query, as 32-bit floats too, because that is how trec_eval reads
them: every tool that sorts by score then sees the order that was written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from r1ranker.errors import DataError
from r1ranker.io.files import write_whole
from r1ranker.io.text import fields, finite, read_lines
from r1ranker.problem import Problem, Ranking, name_fault

RANKING = TypeAdapter(Ranking)
"""To JSON and back, whole, for files of ours and other processes."""
LARGEST = float(np.finfo(np.float32).max)
OWN = "r1ranker-"
"""Begins the tag of every run that is written, so that none is taken for a first stage by mistake."""


def write_run(rankings: Sequence[Ranking], path: Path, tag: str) -> None:
    """Write a run file. DataError: whitespace in a name, scores that do not decrease, a query twice."""
    seen: set[str] = set()
    lines: list[str] = []
    for ranking in rankings:
        if ranking.qid in seen:
            raise DataError(f"{path}: query {ranking.qid!r} has more than one ranking")
        seen.add(ranking.qid)
        lines += run_lines(ranking, tag)
    write_whole(path, "".join(f"{line}\n" for line in lines))


def read_run(path: Path) -> list[Ranking]:
    """Rankings of a run file, queries in order of first appearance, documents by score.

    The rank column is ignored. Scores that tie as 32-bit numbers are ordered as trec_eval does, later docid first, and
    lowered by the least amount that lets them strictly decrease. DataError names the line that cannot be used.
    """
    scored: dict[str, dict[str, float]] = {}
    for number, line in read_lines(path):
        qid, docid, score = _parsed(line, f"{path}, line {number}")
        if docid in scored.setdefault(qid, {}):
            raise DataError(f"{path}, line {number}: docid {docid!r} occurs a second time for query {qid!r}")
        scored[qid][docid] = score
    return [_ranking(qid, scores) for qid, scores in scored.items()]


def check_names(problems: Iterable[Problem]) -> None:
    """Raise DataError for a qid or docid that a run file cannot hold; before anything is ranked."""
    if fault := next(filter(None, map(name_fault, problems)), ""):
        raise DataError(fault)


def looks_like_run(path: Path) -> bool:
    """Whether the file's first line is one of a run: six fields, the fourth a rank and the fifth a score."""
    row = _first(path)
    try:
        return len(row) == 6 and row[3].isdecimal() and math.isfinite(finite(row[4], ""))
    except DataError:
        return False


def is_own(path: Path) -> bool:
    """Whether this package wrote the run: its tag says so."""
    row = _first(path)
    return len(row) == 6 and row[5].startswith(OWN)


def _first(path: Path) -> list[str]:
    try:
        return fields(next(read_lines(path))[1], (6,))
    except DataError:  # what cannot be read is told when it is needed
        return []


def run_lines(ranking: Ranking, tag: str) -> Iterator[str]:
    """The lines of one query. DataError as for `write_run`."""
    qid = _word(ranking.qid, "qid")
    before = math.inf
    for place, (docid, score) in enumerate(zip(ranking.docids, ranking.scores, strict=True), start=1):
        if not (_usable(score) and np.float32(score) < np.float32(before)):
            rule = "must be a finite 32-bit number below the one before it"
            raise DataError(f"query {qid!r}: score {score!r} at rank {place} {rule}, {before!r}")
        yield f"{qid} Q0 {_word(docid, 'docid')} {place} {float(score)!r} {OWN}{_word(tag, 'tag')}"
        before = score


def _usable(score: float) -> bool:
    """Whether the score is a finite number as a 32-bit float."""
    return abs(score) <= LARGEST


def _word(name: str, what: str) -> str:
    if name.split() != [name]:
        raise DataError(f"{what} {name!r} is empty or has whitespace, which a run file cannot hold; rename it")
    return name


def _parsed(line: str, where: str) -> tuple[str, str, float]:
    row = fields(line, (6,))
    if len(row) != 6:
        raise DataError(f"{where}: expected 6 fields (qid Q0 docid rank score tag), found {len(row)}")
    if not (row[0] and row[2]):
        raise DataError(f"{where}: the qid or the docid is empty")
    try:
        score = finite(row[4], where)
    except DataError:
        score = math.nan
    if not _usable(score):
        raise DataError(f"{where}: score {row[4]!r} is not a finite 32-bit number")
    return row[0], row[2], score


def _ranking(qid: str, scores: dict[str, float]) -> Ranking:
    docids = sorted(scores, key=lambda docid: (np.float32(scores[docid]), docid), reverse=True)
    decreasing: list[float] = []
    for docid in docids:
        score = scores[docid]
        if decreasing and not np.float32(score) < np.float32(decreasing[-1]):
            if decreasing[-1] <= -LARGEST:
                raise DataError(f"query {qid!r}: ties at the lowest 32-bit number have no order; write higher scores")
            score = float(np.nextafter(np.float32(decreasing[-1]), np.float32(-np.inf)))
        decreasing.append(score)
    return Ranking(qid, tuple(docids), tuple(decreasing))
