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
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1ranker.backends.models import resolve
from r1ranker.backends.way import way_of
from r1ranker.errors import ConfigError
from r1ranker.io.files import naming
from r1ranker.io.fingerprint import fingerprint_file, fingerprint_model
from r1ranker.io.locks import check_outputs, held
from r1ranker.io.problems import NO_RECORDS, iter_jsonl
from r1ranker.io.progress import track
from r1ranker.io.runs import RANKING, run_lines
from r1ranker.problem import Problem, Ranking, Usage
from r1ranker.ranking.drive import Finished
from r1ranker.ranking.journal import RETRY, JobFiles, Tally, Written, begin, check_unused, cut, read_journal, write
from r1ranker.ranking.spec import RankerSpec
from r1ranker.ranking.store import CandidateStore
from r1ranker.scenarios import Scenario

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
    files = JobFiles(out, trace)
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
    files: JobFiles,
    resume: bool,
    ray: str | None,
    scenarios: Mapping[str, Scenario],
) -> JobResult:
    total = _check(problems, spec, scenarios)
    header = _header(problems, spec, files, scenarios)
    going = resume and files.out.exists()
    if not going:
        check_unused(files.out, files.trace)
    tally, length = read_journal(files, header) if going else (Tally(), 0)
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
                read_journal(files, header)
            cut(files, tally, length, retry)
        else:
            begin(files, header)
        traced = files.trace is not None
        done = ((i, _done(ranking, str(spec.design), traced)) for i, ranking in itertools.chain(first, finished))
        write(files, tally, zip(places, _in_order(done), strict=True), advance)
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


def _check(problems: Path, spec: RankerSpec, scenarios: Mapping[str, Scenario]) -> int:
    """How many problems there are. All are read once, so that a fault shows before hours of ranking, not after."""
    sizes = [len(problem.candidates) for problem in iter_jsonl(problems, scenarios)]
    largest = max(sizes, default=0)
    if spec.design == "iranker" and _asks_for_worst(spec) and 1 < largest <= spec.top_k:
        raise ConfigError(
            f"top_k={spec.top_k} asks nothing: removing stops when so many are left, and the longest list has "
            f"{largest} candidates; lower it"
        )
    return len(sizes)


def _asks_for_worst(spec: RankerSpec) -> bool:
    """As set, else as the model was trained."""
    here = not spec.ask and not spec.base_urls
    return (spec.ask or (way_of(resolve(spec.model)) if here else {}).get("ask", "worst")) == "worst"


def _header(problems: Path, spec: RankerSpec, files: JobFiles, scenarios: Mapping[str, Scenario]) -> dict[str, Any]:
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


def _done(ranking: Ranking, tag: str, traced: bool) -> Written:
    return Written(
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


def _in_order(finished: Iterable[tuple[int, Written]]) -> Iterator[Written]:
    """What is finished, in the order it was given; what came too early waits."""
    early: dict[int, Written] = {}
    turn = 0
    for index, query in finished:
        early[index] = query
        while turn in early:
            yield early.pop(turn)
            turn += 1
