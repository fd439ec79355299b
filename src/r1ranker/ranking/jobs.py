"""The rank job. In: a file of problems and a ranker's settings. Out: a TREC run file, whatever happens on the way.

    result = rank_file(Path("problems.jsonl"), RankerSpec(top_k=5), Path("run.trec"), resume=True, trace=None)

Rankings are finished in any order and written in that of the problems, each as soon as all before it are, so that
the file at any moment is a beginning of the final one. Beside the run file `run.trec` stand

- `run.trec.journal.jsonl`: the settings and fingerprints of problems and model; then, for each query, how far the
  files reach with it. A job that goes on cuts them there, so a job killed at any moment ends with the same bytes.
- `run.trec.failed.jsonl`: the queries without a ranking, because a call failed for good, and why.
- `run.trec.lock`, while a job writes: a second one is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from r1ranker.backends.models import resolve
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.files import naming
from r1ranker.io.fingerprint import differing, fingerprint_file, fingerprint_model
from r1ranker.io.locks import check_outputs, held
from r1ranker.io.problems import NO_RECORDS, iter_jsonl
from r1ranker.io.progress import track
from r1ranker.io.runs import run_lines
from r1ranker.problem import Problem, Ranking, Usage, name_fault
from r1ranker.ranking.drive import RANKING, Finished
from r1ranker.ranking.spec import RankerSpec
from r1ranker.ranking.store import CandidateStore
from r1ranker.scenarios import Scenario

RETRY = {"retry": True}
"""A line of the journal: the queries that had failed before it are tried again."""
WHERE = {"batch_size", "device", "engine", "base_urls", "concurrency", "prices", "cache", "store"}
"""Settings that say where and how fast a job runs, not what it ranks: another value may finish it."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job did. queries, failed, broken and usage are of the whole job; the rest of this run of it.

    kept: queries that an earlier run had finished. failed: queries without a ranking. broken: answers that were not
    valid. unasked: queries about which the model was asked nothing, because a setting said so; they are in the order
    given. tokens_per_second: those read and those written.
    """

    queries: int
    kept: int
    failed: int
    broken: int
    unasked: int
    usage: Usage
    seconds: float
    tokens_per_second: float


@dataclass(slots=True)
class _Tally:
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
class _Done:
    """A finished query as it will be written, which is smaller than a ranking while it waits for its turn."""

    run: bytes
    trace: bytes
    entry: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a job."""

    out: Path
    trace: Path | None

    @property
    def journal(self) -> Path:
        return journal_of(self.out)

    @property
    def failed(self) -> Path:
        return failed_of(self.out)


def rank_file(
    problems: Path,
    spec: RankerSpec,
    out: Path,
    *,
    resume: bool,
    trace: Path | None,
    ray: str | None = None,
    scenarios: Mapping[str, Scenario] = NO_RECORDS,
) -> JobResult:
    """Rank every problem of a file into `out`; with `resume`, only those that are not there yet.

    trace: JSON Lines of whole rankings, with steps and thoughts, in the same order.
    ray: address of a Ray cluster whose machines share the work, or `local`; None ranks in this process.
    scenarios: records of the user's own scenarios, by name.
    Failed queries count as done; those whose `failed_of(out)` was removed are tried again, and stand at the end.
    Raises DataError for a fault in the problems before anything is ranked, and ConfigError for files that are there
    already, were begun with something else, or are being written by another job.
    """
    files = _Files(out, trace)
    spec.check()
    read = {"the problems": problems, "the thoughts": Path(spec.thoughts) if spec.thoughts else None}
    check_outputs(
        {"the run file": out, "the trace": trace, "the journal": files.journal, "failures": files.failed}, read
    )
    with ExitStack() as stack:
        for path in filter(None, (out, trace)):
            stack.enter_context(held(path))
        stack.enter_context(naming(out))
        return _rank_file(problems, spec, files, resume, ray, scenarios)


def _rank_file(
    problems: Path,
    spec: RankerSpec,
    files: _Files,
    resume: bool,
    ray: str | None,
    scenarios: Mapping[str, Scenario],
) -> JobResult:
    total = _check(problems, spec, scenarios)
    header = _header(problems, spec, files, scenarios)
    going = resume and files.out.exists()
    if not going:
        check_unused(files.out, files.trace)
    tally, length = _read(files, header) if going else (_Tally(), 0)
    retry = bool(tally.failed) and not files.failed.exists()
    if retry:
        tally.add(RETRY)
    again, end, before = frozenset(tally.again), tally.end, tally.usage
    todo = (problem for place, problem in enumerate(iter_jsonl(problems, scenarios)) if place >= end or place in again)
    places, left = itertools.chain(sorted(again), range(end, total)), len(again) + total - end
    began = time.perf_counter()
    finished = iter(_ranked(todo, spec, ray)) if left else iter(())
    with track(left, "rank") as advance:
        # The first query is ranked before a file is touched: a model that cannot be loaded leaves nothing behind.
        first = list(itertools.islice(finished, 1))
        known = header
        header = _header(problems, spec, files, scenarios)  # a model from the hub is known when it is here
        if going:
            if header != known:
                _read(files, header)
            _cut(files, tally, length, retry)
        else:
            _begin(files, header)
        traced = files.trace is not None
        done = ((i, _done(ranking, str(spec.design), traced)) for i, ranking in itertools.chain(first, finished))
        _write(files, tally, zip(places, _in_order(done), strict=True), advance)
    seconds = time.perf_counter() - began
    tokens = tally.usage.tokens - before.tokens
    return JobResult(
        queries=total,
        kept=total - left,
        failed=len(tally.failed),
        broken=tally.broken,
        unasked=tally.unasked,
        usage=tally.usage,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
    )


def journal_of(out: Path) -> Path:
    """The journal beside a run file."""
    return out.with_name(f"{out.name}.journal.jsonl")


def failed_of(out: Path) -> Path:
    """The failed queries beside a run file."""
    return out.with_name(f"{out.name}.failed.jsonl")


def _write(
    files: _Files, tally: _Tally, queries: Iterable[tuple[int, _Done]], advance: Callable[[int], object]
) -> None:
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


def _check(problems: Path, spec: RankerSpec, scenarios: Mapping[str, Scenario]) -> int:
    """How many problems there are. All are read once, so that a fault shows before hours of ranking, not after."""
    seen: set[str] = set()
    largest = 0
    for problem in iter_jsonl(problems, scenarios):
        if problem.qid in seen:
            rule = "stands in more than one task, and a run file names queries by qid alone; rename one"
            raise DataError(f"{problems}: qid {problem.qid!r} {rule}")
        seen.add(problem.qid)
        largest = max(largest, len(problem.candidates))
        if fault := name_fault(problem):
            raise DataError(f"{problems}: {fault}")
    if spec.design == "iranker" and 1 < largest <= spec.top_k:
        raise ConfigError(
            f"top_k={spec.top_k} asks nothing: no problem of {problems} has more than {largest} candidates; lower it"
        )
    return len(seen)


def _header(problems: Path, spec: RankerSpec, files: _Files, scenarios: Mapping[str, Scenario]) -> dict[str, Any]:
    """What the job is of. The model is empty where it is not on this machine, or not yet."""
    here = {} if spec.base_urls else fingerprint_model(resolve(spec.model))
    thoughts = Path(spec.thoughts) if spec.thoughts else None
    return {
        "spec": {key: value for key, value in dataclasses.asdict(spec).items() if key not in WHERE},
        "problems": fingerprint_file(problems),
        "scenarios": {name: dataclasses.asdict(record) for name, record in scenarios.items()} or None,
        "thoughts": fingerprint_file(thoughts) if thoughts and thoughts.is_file() else "",
        "model": here,
        "trace": os.path.relpath(files.trace, files.out.parent) if files.trace else None,
    }


def check_unused(out: Path, trace: Path | None) -> None:
    """Raises ConfigError rather than have a job that begins write over what is there."""
    if out.exists():
        raise ConfigError(f"{out} exists; go on with that job by --resume, or remove the file to begin anew")
    if _size(trace):  # an empty one is of a job that was killed before its first query
        raise ConfigError(f"{trace} exists and is not of this job: name another trace, or remove the file")


def _read(files: _Files, header: dict[str, Any]) -> tuple[_Tally, int]:
    """The state of a job that goes on, and the length of the journal that holds it.

    A line that was not written whole does not count, nor do queries that the files do not reach any more.
    """
    out, journal = files.out, files.journal
    sizes = {"out": _size(out), "trace": _size(files.trace)}
    tally = _Tally()
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


def _begin(files: _Files, header: dict[str, Any]) -> None:
    """The empty files. The run file comes last: where it is, the journal has its header."""
    files.out.parent.mkdir(parents=True, exist_ok=True)
    files.failed.unlink(missing_ok=True)
    files.journal.write_bytes(_line(header))
    if files.trace:
        files.trace.parent.mkdir(parents=True, exist_ok=True)
        files.trace.touch()
    files.out.touch()


def _cut(files: _Files, tally: _Tally, length: int, retry: bool) -> None:
    """Take off what was being written when the job was killed."""
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


def _size(path: Path | None) -> int:
    return path.stat().st_size if path and path.exists() else 0


def _ranked(problems: Iterable[Problem], spec: RankerSpec, ray: str | None) -> Iterator[Finished]:
    if ray is None:
        return _ranked_here(problems, spec)
    from r1ranker.ranking.distributed import rank_each_on_ray

    return rank_each_on_ray(problems, spec, ray)


def _ranked_here(problems: Iterable[Problem], spec: RankerSpec) -> Iterator[Finished]:
    ranker = spec.build()
    yield from ranker.rank_each(problems)
    if spec.store:
        CandidateStore(ranker.backend).save(spec.store)


def _done(ranking: Ranking, tag: str, traced: bool) -> _Done:
    return _Done(
        run="".join(f"{line}\n" for line in run_lines(ranking, tag)).encode(),
        trace=RANKING.dump_json(ranking) + b"\n" if traced else b"",
        entry={
            "qid": ranking.qid,
            "error": ranking.error,
            "broken": ranking.broken,
            "unasked": not ranking.error and not ranking.steps and len(ranking.docids) > 1,
            "usage": dataclasses.asdict(ranking.usage),
        },
    )


def _in_order(finished: Iterable[tuple[int, _Done]]) -> Iterator[_Done]:
    """What is finished, in the order it was given; what came too early waits."""
    early: dict[int, _Done] = {}
    turn = 0
    for index, query in finished:
        early[index] = query
        while turn in early:
            yield early.pop(turn)
            turn += 1


def _append(file: IO[bytes], content: bytes) -> None:
    """Write and hand over to the system, so that it is there even when this process is killed."""
    file.write(content)
    file.flush()


def _line(record: dict[str, Any]) -> bytes:
    return f"{json.dumps(record, ensure_ascii=False)}\n".encode()
