"""Relevance judgements. In: a qrels file, `qid 0 docid grade` (TREC) or `query-id corpus-id score` (BEIR). Out: grades.

read_qrels(Path("qrels.dl19-passage.txt"))["264014"]["5611210"]  # 2
"""

from __future__ import annotations

import re
from pathlib import Path

from r1ranker.errors import DataError
from r1ranker.io.text import fields, read_lines
from r1ranker.problem import LARGEST_GAIN

QUERY = re.compile(r"(query|topic|q)[-_]?(id)?|qid|topic[-_]?(no|num|number)?", re.IGNORECASE)
DOCUMENT = re.compile(r"(corpus|doc|document|passage|p)[-_]?(id|no)|document|doc|passage", re.IGNORECASE)
GRADE = re.compile(r"score|rel|relevance|grade|label|gain|rating|judge?ment", re.IGNORECASE)

Grades = dict[str, dict[str, int]]
"""Grade by query and document."""


def read_qrels(path: Path) -> Grades:
    """Grades by query and document, negative ones (junk, spam) as they stand.

    Three or four columns, as many on every line; split at tabs where there are tabs, so that a docid may hold spaces. A
    first line of names says which column is which. A pair that stands twice with two grades is a `DataError`.
    """
    grades: Grades = {}
    places: tuple[int, int, int] | None = None
    columns = 0
    for number, line in read_lines(path):
        row = fields(line, (3, 4))
        wrong = f"{path}:{number}: expected 'qid 0 docid grade', found {line[:200]!r}"
        if places is None:
            columns, named = len(row), _named(row)
            places = named or (0, columns - 2, columns - 1)
            if named:
                continue
        if len(row) not in (3, 4) or len(row) != columns:
            raise DataError(f"{wrong}; a file has three or four columns, as many on every line")
        qid, docid, grade = (row[place] for place in places)
        if not (qid and docid and re.fullmatch(r"[+-]?\d{1,15}", grade, re.ASCII)):
            raise DataError(wrong)
        if abs(int(grade)) > LARGEST_GAIN:
            raise DataError(f"{wrong}; a grade is at most {LARGEST_GAIN}")
        known = grades.setdefault(qid, {})
        if known.setdefault(docid, int(grade)) != int(grade):
            raise DataError(f"{path}:{number}: query {qid!r} and document {docid!r} stand twice, with unequal grades")
    if not grades:
        raise DataError(f"{path}: holds no judgement")
    return grades


def _named(row: list[str]) -> tuple[int, int, int] | None:
    """The places of query, document and grade where the line names its columns."""
    places = [next((i for i, name in enumerate(row) if kind.fullmatch(name)), -1) for kind in (QUERY, DOCUMENT, GRADE)]
    return None if -1 in places else (places[0], places[1], places[2])
