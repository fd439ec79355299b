"""A long job as `r1ranker rank` runs it: speed, memory, the estimate on the progress bar, and what a kill leaves.

    python benchmarks/jobs.py                          # a DRanker, 100 000 problems of five, embedded model
    python benchmarks/jobs.py --endpoint               # by a server on loopback that answers at once: no model's time
    python benchmarks/jobs.py --queries 5000 --kill    # killed with SIGKILL at half, then --resume

In: nothing; problems are made as they are written. Out: a table, and JSON where asked. The job is a process of its own
(Linux: its memory is read in /proc) behind a terminal of its own, because the bar shows on terminals only.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pty
import random
import re
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endpoint import endpoint
from rich.console import Console
from rich.table import Table

from r1ranker.cli.common import write_json
from r1ranker.io.problems import write_jsonl
from r1ranker.io.provenance import provenance
from r1ranker.problem import Candidate, Problem

CANDIDATES = 5
WORDS = "river stone garden winter market letter window bridge silver paper forest engine harbour copper candle mirror"
SAMPLE_SECONDS = 0.2
START, MIDDLE, END = 0.05, 0.5, 0.995  # shares of a process's queries; at the start all that is loaded once is loaded
ESTIMATES_AT = (0.1, 0.25, 0.5, 0.75)
BAR = re.compile(r"(\d+)/\d+ \[[\d:]+<([\d:]+),")


@dataclass(frozen=True, slots=True)
class Sample:
    """A moment of a process: seconds since it was started, queries it has written, its resident bytes, CPU seconds."""

    seconds: float
    done: int
    rss: int
    cpu: float


@dataclass(frozen=True, slots=True)
class Watched:
    """A process from start to end. estimates: when the bar showed how many done and how many seconds left."""

    samples: Sequence[Sample]
    estimates: Sequence[tuple[float, int, float]]
    peak: int


def problems(count: int) -> Iterator[Problem]:
    """Queries of five passages of six words, one of which shares the query's words."""
    rng = random.Random(0)
    for i in range(count):
        texts = [" ".join(rng.sample(WORDS.split(), 6)) for _ in range(CANDIDATES)]
        candidates = tuple(Candidate(f"d{i}-{k}", text) for k, text in enumerate(texts))
        asked = " ".join(rng.choice(texts).split()[:3])
        yield Problem(f"q{i}", "passage-5", "passage", candidates, query=asked)


def watch(command: Sequence[str], out: Path, kill_at: int | None) -> Watched:
    """Run a job to its end, or kill it when it has written so many queries."""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 120))
    before, place = written(out, 0, 0)
    lines, peak, began = before, 0, time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=end, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    os.close(end)
    estimates: list[tuple[float, int, float]] = []
    bar = threading.Thread(target=read_bar, args=(terminal, began, estimates))
    bar.start()
    samples: list[Sample] = []
    while process.poll() is None:
        lines, place = written(out, place, lines)
        done = (lines - before) // CANDIDATES
        with suppress(OSError, KeyError):  # it has ended meanwhile
            rss, peak, cpu = used(process.pid)
            samples.append(Sample(time.perf_counter() - began, done, rss, cpu))
        if kill_at is not None and done >= kill_at:
            process.kill()
            break
        time.sleep(SAMPLE_SECONDS)
    code = process.wait()
    bar.join()
    os.close(terminal)
    assert code == (0 if kill_at is None else -9), f"{' '.join(command)} ended with {code}"
    return Watched(samples, estimates, peak)


def read_bar(terminal: int, began: float, estimates: list[tuple[float, int, float]]) -> None:
    """Keep what the bar says until its process ends."""
    while True:
        try:
            shown = os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # how Linux says that nobody writes any more
            return
        for done, left in BAR.findall(shown)[-1:]:
            estimates.append((time.perf_counter() - began, int(done), clock(left)))


def clock(text: str) -> float:
    """Seconds of 12:34 or 1:23:45."""
    return float(sum(60**i * int(part) for i, part in enumerate(reversed(text.split(":")))))


def written(out: Path, place: int, lines: int) -> tuple[int, int]:
    """(lines until now, place to go on counting from), given those of the last time."""
    if not out.exists():
        return 0, 0
    with out.open("rb") as file:
        file.seek(place)
        while block := file.read(1 << 20):
            lines += block.count(b"\n")
        return lines, file.tell()


def used(pid: int) -> tuple[int, int, float]:
    """(resident bytes now, their peak, CPU seconds of all threads). OSError, KeyError: the process has ended."""
    sizes = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()))
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    cpu = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return int(sizes["VmRSS"]) * 1024, int(sizes["VmHWM"]) * 1024, cpu


def reached(watched: Watched, done: float) -> Sample:
    """The first sample with so many queries written; the last one where it ended before another look."""
    return next((sample for sample in watched.samples if sample.done >= done), watched.samples[-1])


def row(name: str, watched: Watched, queries: int) -> dict[str, Any]:
    """The figures of one process that ranked so many queries."""
    first = reached(watched, 1)
    start, middle, end = (reached(watched, share * queries) for share in (START, MIDDLE, END))
    return {
        "process": name,
        "queries": queries,
        "seconds to the first query": first.seconds,
        "queries/s": (end.done - start.done) / max(SAMPLE_SECONDS, end.seconds - start.seconds),
        "CPU ms/query": 1000 * (end.cpu - start.cpu) / max(1, end.done - start.done),
        "start MiB": start.rss / 2**20,
        "middle MiB": middle.rss / 2**20,
        "end MiB": end.rss / 2**20,
        "peak MiB": watched.peak / 2**20,
        "bytes/query": (end.rss - start.rss) / max(1, end.done - start.done),
        "bytes/query, 2nd half": (end.rss - middle.rss) / max(1, end.done - middle.done),
    }


def seconds_left(watched: Watched, queries: int) -> dict[str, dict[str, float]]:
    """What the bar of a process that went to its end said, and what was true."""
    finish = reached(watched, END * queries).seconds
    left = {}
    for share in ESTIMATES_AT:
        for at, _, shown in [estimate for estimate in watched.estimates if estimate[1] >= share * queries][:1]:
            left[f"{share:.0%}"] = {"shown": shown, "true": finish - at}
    return left


def check(out: Path, count: int) -> None:
    """Every query stands in the run once, in order, with each of its candidates once."""
    with out.open() as lines:
        qids = 0
        for qid, group in itertools.groupby(map(str.split, lines), key=lambda fields: fields[0]):
            docids = sorted(fields[2] for fields in group)
            assert qid == f"q{qids}", f"{qid} stands where q{qids} should"
            assert docids == [f"d{qids}-{k}" for k in range(CANDIDATES)], f"{qid}: {docids}"
            qids += 1
    assert qids == count, f"{qids} queries of {count}"


def measure(queries: int, settings: Sequence[str], kill: bool) -> dict[str, Any]:
    """Rows for the whole job or for its two parts, and the estimates of the last one."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "problems.jsonl", Path(folder) / "run.trec"
        write_jsonl(problems(queries), given)
        command = [sys.executable, "-m", "r1ranker", "rank", str(given), "--out", str(out), *settings]
        rows, ranked = [], 0
        if kill:
            first = watch(command, out, kill_at=queries // 2)
            ranked = first.samples[-1].done
            rows.append(row("killed", first, ranked))
        last = watch([*command, "--resume"], out, kill_at=None)
        rows.append(row("resumed" if kill else "whole", last, queries - ranked))
        check(out, queries)
        return {"settings": settings, "processes": rows, "seconds left": seconds_left(last, queries - ranked)}


def main() -> None:
    """Parse, run, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--design", default="dranker", choices=["dranker", "iranker"])
    parser.add_argument("--endpoint", action="store_true", help="rank by a server on loopback, not the embedded model")
    parser.add_argument("--kill", action="store_true", help="SIGKILL at half, then --resume")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    design = ["--design", given.design]
    if given.endpoint:
        with endpoint() as url:
            result = measure(given.queries, [*design, "--model", "m", "--base-url", url], given.kill)
    else:
        result = measure(given.queries, [*design, "--device", "cpu"], given.kill)
    rows = result["processes"]
    table = Table("", *(each["process"] for each in rows), title=f"{given.queries} problems, {given.design}")
    for name in list(rows[0])[1:]:
        table.add_row(name, *(f"{each[name]:,.1f}" for each in rows))
    console = Console()
    console.print(table)
    for share, left in result["seconds left"].items():
        console.print(f"at {share} the bar showed {left['shown']:.0f} s left, true were {left['true']:.0f} s")
    console.print(f"each of the {given.queries} queries stands in the run once")
    write_json(given.json, {"provenance": provenance()} | result)


if __name__ == "__main__":
    main()
