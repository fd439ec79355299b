"""Problems as JSON Lines, one a line: the format of your own ones. The same fields as `Problem`, empty ones left out.

    {"qid": "q17", "task": "passage-5", "scenario": "passage", "query": "why is the sky blue",
     "candidates": [{"docid": "d1", "text": "Shorter waves scatter ..."}, {"docid": "d2", "text": "..."}],
     "gains": {"d1": 3, "d4": 1}, "relevant_at": 2, "prior": {"d1": 9.1, "d2": 11.4}, "group": "q17"}

(on one line in the file). Needed: qid, task, scenario, candidates, and a query or a history (a list of titles, oldest
first). `objective` is text for routing. Without gains a problem can be ranked, but not trained on or evaluated.

A scenario that is not one of ours needs an `instruction`, or a record: one of `scenarios`, by name, which the problem
then carries, or the problem's own `wording`, which is how `write_jsonl` keeps it.

`read_with_faults` lists every fault with its line; a message that starts with "note:" is no fault.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from r1ranker.errors import DataError
from r1ranker.io.documents import parse_json
from r1ranker.io.files import replacing
from r1ranker.io.text import MissingFileError, need, read_lines
from r1ranker.problem import Candidate, Problem, name_fault
from r1ranker.scenarios import SCENARIOS, Scenario, scenario_of, unknown

PROBLEM = TypeAdapter(Problem)
"""To JSON and back, whole, for files of ours and other processes; `to_record` is what users read."""
REQUIRED = ("qid", "task", "scenario", "candidates")
NOTE = "note: "
NO_RECORDS: Mapping[str, Scenario] = {}


def read_jsonl(path: Path, scenarios: Mapping[str, Scenario] = NO_RECORDS) -> list[Problem]:
    """The problems of one file; `DataError` on the first fault, naming file and line."""
    numbered, messages = read_with_faults(path, scenarios)
    faults = [message for message in messages if not is_note(message)]
    if faults:
        more = f" (and {len(faults) - 1} more; `r1ranker data validate` lists them)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}{more}")
    return [problem for _, problem in numbered]


def iter_jsonl(path: Path, scenarios: Mapping[str, Scenario] = NO_RECORDS) -> Iterator[Problem]:
    """The problems of one file, one at a time; `DataError` at the first fault, naming file and line."""
    for number, problem, messages in _parsed(path, scenarios):
        faults = [message for message in messages if not message.startswith(NOTE)]
        if faults:
            raise DataError(f"{path}:{number}: {faults[0]}")
        if problem is not None:
            yield problem


def write_jsonl(problems: Iterable[Problem], path: Path) -> None:
    """Write problems so that `read_jsonl` gives equal ones back."""
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8", newline="\n") as lines:
        for problem in problems:
            lines.write(json.dumps(to_record(problem), ensure_ascii=False) + "\n")


def read_with_faults(
    path: Path, scenarios: Mapping[str, Scenario] = NO_RECORDS
) -> tuple[list[tuple[int, Problem]], list[str]]:
    """Problems with their lines, and messages; what keeps the file from being read to its end is the last message."""
    numbered: list[tuple[int, Problem]] = []
    messages: list[str] = []
    try:
        for number, problem, found in _parsed(path, scenarios):
            numbered += [(number, problem)] if problem is not None else []
            messages += [f"{path}:{number}: {message}" for message in found]
    except MissingFileError:
        raise
    except DataError as error:
        messages.append(str(error))
    return numbered, messages


def is_note(message: str) -> bool:
    """Whether a message of `read_with_faults` is about what may be meant, and no fault."""
    return re.search(rf":\d+: {NOTE}", message) is not None


def to_record(problem: Problem) -> dict[str, Any]:
    """A problem as one line of the file holds it, before it is JSON."""
    record: dict[str, Any] = {
        "qid": problem.qid,
        "task": problem.task,
        "scenario": problem.scenario,
        "query": problem.query,
        "history": list(problem.history),
        "objective": problem.objective,
        "instruction": problem.instruction,
        "wording": dataclasses.asdict(problem.wording) if problem.wording else {},
        "candidates": [
            {"docid": c.docid, "text": c.text} | ({"note": c.note} if c.note else {}) for c in problem.candidates
        ],
        "gains": dict(problem.gains),
        "relevant_at": problem.relevant_at,
        "prior": dict(problem.prior),
        "group": problem.group,
        "nothing_found": problem.nothing_found,
    }
    meant = {"candidates"} if problem.nothing_found else set()
    return {key: value for key, value in record.items() if key in meant or value not in ("", [], {}, False)}


def _parsed(path: Path, scenarios: Mapping[str, Scenario]) -> Iterator[tuple[int, Problem | None, list[str]]]:
    """Line number, problem and messages of each line with text."""
    first_line: dict[str, int] = {}
    level: dict[str, tuple[int, int]] = {}
    for number, line in read_lines(need(path)):
        problem, found = _parse_line(line, scenarios)
        if problem is not None:
            before = first_line.setdefault(problem.qid, number)
            if before != number:
                found.append(f"qid {problem.qid!r} already stands on line {before}; give each problem its own qid")
            relevant_at, where = level.setdefault(problem.task, (problem.relevant_at, number))
            if relevant_at != problem.relevant_at:
                found.append(
                    f"relevant_at is {problem.relevant_at}, but {relevant_at} on line {where}; "
                    f"measures need one value within a task ({problem.task!r})"
                )
        yield number, problem, found


def _parse_line(line: str, scenarios: Mapping[str, Scenario]) -> tuple[Problem | None, list[str]]:
    try:
        record = parse_json(line)
    except ValueError as error:
        return None, [f"not JSON ({error}); write one JSON object per line"]
    if not isinstance(record, dict):
        return None, [f"a {type(record).__name__}, not an object; write one JSON object per line"]
    faults = list(_faults(record))
    if faults:
        return None, faults
    try:
        problem = _problem(record, scenarios)
    except DataError as error:
        return None, [str(error)]
    if fault := name_fault(problem):
        return None, [fault]
    return problem, list(_notes(problem))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_candidate(value: Any) -> bool:
    return _values_are(_is_text)(value) and {"docid", "text"} <= value.keys() <= {"docid", "text", "note"}


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _values_are(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "qid": ("a string", _is_text),
    "task": ("a string", _is_text),
    "scenario": ("a string", _is_text),
    "query": ("a string", _is_text),
    "history": ("a list of strings", _list_of(_is_text)),
    "objective": ("a string", _is_text),
    "instruction": ("a string", _is_text),
    "wording": ("an object of strings, the record of the scenario", _values_are(_is_text)),
    "candidates": ('a list of {"docid": string, "text": string}, each perhaps with a "note"', _list_of(_is_candidate)),
    "gains": ("an object of whole numbers by docid", _values_are(_is_whole)),
    "relevant_at": ("a whole number", _is_whole),
    "prior": ("an object of finite numbers by docid", _values_are(_is_number)),
    "group": ("a string", _is_text),
    "nothing_found": ("true or false", _is_bool),
}


def _faults(record: dict[str, Any]) -> Iterator[str]:
    for key in sorted(record.keys() - FIELDS.keys()):
        near = difflib.get_close_matches(key, FIELDS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"remove it, or use one of {', '.join(FIELDS)}"
        yield f"unknown key {key!r}; {remedy}"
    for key in REQUIRED:
        if key not in record:
            yield f"field {key!r} is missing; write it as {FIELDS[key][0]}"
    for key, (form, check) in FIELDS.items():
        if key in record and not check(record[key]):
            yield f"field {key!r} has a wrong type or form; write it as {form}"
    if record.get("qid") == "":
        yield "field 'qid' is empty; give each problem its own qid"
    if record.get("task") == "":
        yield "field 'task' is empty; name the set that the problem belongs to"
    if record.get("task") == "average":
        yield "a task cannot be named 'average': the mean over tasks has that name in results; rename it"


def _problem(record: dict[str, Any], scenarios: Mapping[str, Scenario]) -> Problem:
    fields = dict(record)
    fields["wording"] = _wording(record, scenarios)
    fields["candidates"] = tuple(Candidate(**candidate) for candidate in record["candidates"])
    fields["history"] = tuple(record.get("history", ()))
    fields["prior"] = {docid: float(score) for docid, score in record.get("prior", {}).items()}
    return Problem(**fields)


def _wording(record: dict[str, Any], scenarios: Mapping[str, Scenario]) -> Scenario | None:
    """The record of a scenario that is not ours, where it has one."""
    name = record["scenario"]
    given = scenarios.get(name)
    own = scenario_of(record["wording"]) if "wording" in record else given
    if given and own != given:
        raise DataError(f"scenario {name!r} has a 'wording' here and another record is given; take one of them out")
    if not (own or name in SCENARIOS or record.get("instruction")):
        raise DataError(unknown(name, [*SCENARIOS, *scenarios]))
    return own


def _notes(problem: Problem) -> Iterator[str]:
    pool = {candidate.docid for candidate in problem.candidates}
    outside = [docid for docid in problem.gains if docid not in pool]
    if outside:
        yield (
            f"{NOTE}gains name {len(outside)} docids outside the pool, such as {outside[0]!r}; they count in "
            "ideal rankings only, correct them if that is not meant"
        )
    if not any(map(problem.is_relevant, problem.identifiers)):
        yield (
            f"{NOTE}no candidate in the pool has a gain >= relevant_at ({problem.relevant_at}); the problem "
            "can be ranked, add a relevant candidate to train on it or evaluate it"
        )
