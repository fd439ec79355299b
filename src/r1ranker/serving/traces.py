"""Finished rankings for the page. In: files of traces, perhaps the problems they were ranked from. Out: its data.

A trace is what `r1ranker rank --trace` writes, a `Ranking` a line; keys that a `Ranking` has not are left aside.
Several files are several runs over the same queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from r1ranker.errors import ConfigError, DataError
from r1ranker.io.documents import parse_json
from r1ranker.io.problems import NO_RECORDS, iter_jsonl, to_record
from r1ranker.io.runs import RANKING
from r1ranker.io.text import need, read_lines
from r1ranker.problem import Problem, Ranking
from r1ranker.scenarios import Scenario

MOST_BYTES = 300_000_000
"""Of traces in one page: a browser reads it as one text."""


def read_traces(
    traces: Sequence[Path], problems: Path | None = None, scenarios: Mapping[str, Scenario] = NO_RECORDS
) -> dict[str, Any]:
    """What the page shows of finished runs: queries in the order in which they first occur.

    Raises DataError for a line that is no trace, for problems that are not those of the traces, and for more than a
    page can hold; ConfigError where a file is named twice.
    """
    _check_sizes(traces)
    runs = _names(traces)
    rankings: dict[str, list[Ranking | None]] = {}
    for place, path in enumerate(traces):
        for number, ranking in _parsed(path):
            of_query = rankings.setdefault(ranking.qid, [None] * len(runs))
            if of_query[place] is not None:
                raise DataError(f"{path}:{number}: query {ranking.qid!r} stands there twice; keep one of its lines")
            of_query[place] = ranking
    known = _texts(problems, rankings, scenarios) if problems else {}
    return {"mode": "traces", "runs": runs, "queries": [_query(q, r, known.get(q)) for q, r in rankings.items()]}


def _query(qid: str, rankings: Sequence[Ranking | None], problem: Problem | None) -> dict[str, Any]:
    return {
        "qid": qid,
        "problem": None if problem is None else to_record(problem),
        "rankings": [None if one is None else RANKING.dump_python(one, mode="json") for one in rankings],
    }


def _parsed(path: Path) -> Iterator[tuple[int, Ranking]]:
    for number, line in read_lines(need(path)):
        try:
            ranking = RANKING.validate_python(parse_json(line))
        except (ValidationError, ValueError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
            remedy = "give what `r1ranker rank --trace` wrote; a job that was killed is ended by --resume"
            raise DataError(f"{path}:{number}: is no trace ({why}); {remedy}") from error
        yield number, ranking


def _texts(
    problems: Path, rankings: Mapping[str, Sequence[Ranking | None]], scenarios: Mapping[str, Scenario]
) -> dict[str, Problem]:
    """The problems of the traces by qid. DataError where they are others."""
    known = {problem.qid: problem for problem in iter_jsonl(problems, scenarios) if problem.qid in rankings}
    for qid, of_query in rankings.items():
        if qid not in known:
            raise DataError(f"{problems}: has no query {qid!r}; give the problems that the traces were ranked from")
        for ranking in filter(None, of_query):
            _check_same(ranking, known[qid])
    return known


def _check_same(ranking: Ranking, problem: Problem) -> None:
    """DataError where the identifiers of the steps, or the docids, cannot be those of the problem."""
    docids = {candidate.docid for candidate in problem.candidates}
    foreign = [docid for docid in ranking.docids if docid not in docids]
    beyond = [k for step in ranking.steps for k in step.pool if not 1 <= k <= len(docids)]
    if foreign or beyond or (ranking.docids and len(ranking.docids) != len(docids)):
        raise DataError(
            f"query {ranking.qid!r} of the traces was ranked from other candidates than those of the problems; give "
            "the problems that the traces were ranked from"
        )


def _names(traces: Sequence[Path]) -> list[str]:
    """What the page calls the runs: the files' names, with their folders where two would be alike."""
    short = [path.name.removesuffix(".gz").removesuffix(".jsonl") for path in traces]
    names = short if len(set(short)) == len(short) else [str(path) for path in traces]
    if len(set(names)) < len(names):
        raise ConfigError("the same file of traces is named twice; name it once")
    return names


def _check_sizes(traces: Sequence[Path]) -> None:
    size = sum(need(path).stat().st_size for path in traces)
    if size > MOST_BYTES:
        remedy = "view a part of them, such as `head -n 1000 TRACES.jsonl > part.jsonl`"
        raise DataError(f"{size / 1e6:.0f} MB of traces, and one page holds {MOST_BYTES / 1e6:.0f} MB: {remedy}")
