"""What a rank job keeps beside its run file, so that it can go on. In: finished queries. Out: files that agree.

    files = JobFiles(Path("run.trec"), trace=None)
    begin(files, header)
    write(files, Tally(), queries, advance)
    tally, length = read_journal(files, header)  # after a crash: how far all files reach
    cut(files, tally, length, retry=False)

The first line of the journal says what the job is of, each further one how far the files reach with one query more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from r1ranker.errors import ConfigError
from r1ranker.io.fingerprint import differing
from r1ranker.problem import Usage

RETRY = {"retry": True}
"""A line of the journal: the queries that had failed before it are tried again."""


@dataclass(slots=True)
class Tally:
    """What the journal says so far. `end`: the place after the last; `again`: earlier places to be tried again.

    out, trace: bytes of the files. failed: qid and error by place.
    """

    end: int = 0
    again: set[int] = field(default_factory=set)
    out: int = 0
    trace: int = 0
    failed: dict[int, tuple[str, str]] = field(default_factory=dict)
    broken: int = 0
    unasked: int = 0
    usage: Usage = field(default_factory=Usage)

    def add(self, entry: dict[str, Any]) -> None:
        """Take one line of the journal."""
        if "retry" in entry:
            self.again |= self.failed.keys()
            self.failed.clear()
            return
        place = entry["place"]
        self.end = max(self.end, place + 1)
        self.again.discard(place)
        if entry["error"]:
            self.failed[place] = (entry["qid"], entry["error"])
        self.out, self.trace = entry["out"], entry["trace"]
        self.broken += entry["broken"]
        self.unasked += entry["unasked"]
        self.usage += Usage(**entry["usage"])


@dataclass(frozen=True, slots=True)
class Written:
    """A finished query as it will be written, which is smaller than a ranking while it waits for its turn."""

    run: bytes
    trace: bytes
    entry: dict[str, Any]


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The files of a job."""

    out: Path
    trace: Path | None

    @property
    def journal(self) -> Path:
        return journal_of(self.out)

    @property
    def failed(self) -> Path:
        return failed_of(self.out)


def check_unused(out: Path, trace: Path | None) -> None:
    """Raises ConfigError rather than have a job that begins write over what is there."""
    if out.exists():
        raise ConfigError(f"{out} exists; go on with that job by --resume, or remove the file to begin anew")
    if _size(trace):  # an empty one is of a job that was killed before its first query
        raise ConfigError(f"{trace} exists and is not of this job: name another trace, or remove the file")


def read_journal(files: JobFiles, header: dict[str, Any]) -> tuple[Tally, int]:
    """The state of a job that goes on, and the length of the journal that holds it.

    A line that was not written whole does not count, nor do queries that the files do not reach any more.
    """
    out, journal = files.out, files.journal
    sizes = {"out": _size(out), "trace": _size(files.trace)}
    tally = Tally()
    try:
        with journal.open("rb") as lines:
            first = next(lines, b"")
            _check_same(json.loads(first), header, out)
            length = len(first)
            for line in lines:
                entry = json.loads(line) if line.endswith(b"\n") else None
                if entry is None or any(entry.get(file, 0) > size for file, size in sizes.items()):
                    break
                tally.add(entry)
                length += len(line)
    except FileNotFoundError as error:
        raise ConfigError(f"{out} has no {journal.name} beside it to go on from; remove it to begin anew") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{journal} is damaged ({error}); remove {out} to begin anew") from error
    return tally, length


def _check_same(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    remedy = f"go on with the same, or remove {out} to begin anew"
    for key in sorted(old["spec"].keys() | new["spec"].keys()):
        was, now = old["spec"].get(key), new["spec"].get(key)
        if was != now:
            raise ConfigError(f"{out} was begun with {key}={was}, not {key}={now}; {remedy}")
    if old["problems"] != new["problems"]:
        raise ConfigError(f"{out} was begun with other problems: the file has changed or is another one; {remedy}")
    if old.get("scenarios") != new["scenarios"]:
        raise ConfigError(f"{out} was begun with other scenarios: their records (--scenarios) differ; {remedy}")
    if old["thoughts"] != new["thoughts"]:
        raise ConfigError(f"{out} was begun with other thoughts: their file has changed; {remedy}")
    if new["model"] and (parts := differing(old["model"], new["model"])):
        raise ConfigError(f"{out} was begun with a model of which this has changed: {', '.join(parts)}; {remedy}")
    if old["trace"] != new["trace"]:
        begun = f"the trace {old['trace']}" if old["trace"] else "a trace"
        raise ConfigError(f"{out} was begun {'with' if old['trace'] else 'without'} {begun}; {remedy}")


def begin(files: JobFiles, header: dict[str, Any]) -> None:
    """The empty files. The run file comes last: where it is, the journal has its header."""
    files.out.parent.mkdir(parents=True, exist_ok=True)
    files.failed.unlink(missing_ok=True)
    files.journal.write_bytes(_line(header))
    if files.trace:
        files.trace.parent.mkdir(parents=True, exist_ok=True)
        files.trace.touch()
    files.out.touch()


def cut(files: JobFiles, tally: Tally, length: int, retry: bool) -> None:
    """Take off what was being written when the job was killed; `retry`: failed queries are to be tried again."""
    os.truncate(files.out, tally.out)
    os.truncate(files.journal, length)
    if files.trace:
        files.trace.touch()
        os.truncate(files.trace, tally.trace)
    if retry:
        with files.journal.open("ab") as journal:
            journal.write(_line(RETRY))
    if tally.failed:
        failures = sorted(tally.failed.items())
        files.failed.write_bytes(b"".join(_line({"qid": qid, "error": error}) for _, (qid, error) in failures))
    else:  # one that was written when the job was killed, before the journal said so
        files.failed.unlink(missing_ok=True)


def write(
    files: JobFiles, tally: Tally, queries: Iterable[tuple[int, Written]], advance: Callable[[int], object]
) -> None:
    """Append finished queries, each with its place among the problems."""
    with ExitStack() as opened:
        run, journal = opened.enter_context(files.out.open("ab")), opened.enter_context(files.journal.open("ab"))
        trace = opened.enter_context(files.trace.open("ab")) if files.trace else None
        for place, query in queries:
            _append(run, query.run)
            if trace:
                _append(trace, query.trace)
            if query.entry["error"]:
                with files.failed.open("ab") as failed:
                    failed.write(_line({"qid": query.entry["qid"], "error": query.entry["error"]}))
            reach = {"out": tally.out + len(query.run), "trace": tally.trace + len(query.trace)}
            entry = {"place": place} | query.entry | reach
            _append(journal, _line(entry))  # last: what the journal names is there
            tally.add(entry)
            advance(1)


def journal_of(out: Path) -> Path:
    """The journal beside a run file."""
    return out.with_name(f"{out.name}.journal.jsonl")


def failed_of(out: Path) -> Path:
    """The failed queries beside a run file."""
    return out.with_name(f"{out.name}.failed.jsonl")


def _size(path: Path | None) -> int:
    return path.stat().st_size if path and path.exists() else 0


def _append(file: IO[bytes], content: bytes) -> None:
    """Write and hand over to the system, so that it is there even when this process is killed."""
    file.write(content)
    file.flush()


def _line(record: dict[str, Any]) -> bytes:
    return f"{json.dumps(record, ensure_ascii=False)}\n".encode()
