"""What a query costs where it stands last: with what was read of candidates in a store, without, and query first.

    python benchmarks/store.py --model nano --pools passages titles-1000 titles-10000 --queries 2 --json nano.json
    python benchmarks/store.py --model smol-base --pools llms --json smol-base.json
    python benchmarks/store.py --model smol-base --pools titles-1000 --ways "judge, query last, store"

Of pools of 1 000 and more one query is measured, the first: it costs thousands of times what a first call adds.

In one run: tokens and milliseconds a query (the median; one thread) of every way to rank each pool, what a store takes
to make and to hold, and the tokens of the paper's loop, which are counted and not run. On a machine that others use
too, milliseconds of the processor say more than those of the clock; both are here, and the load.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from blocks import text
from rich.console import Console
from rich.table import Table

from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.cli.common import write_json
from r1ranker.io.provenance import provenance
from r1ranker.problem import Candidate, Problem
from r1ranker.prompts import build_prompt, pool_lines
from r1ranker.ranking.rankers import IRanker
from r1ranker.ranking.store import CandidateStore

POOLS = {
    "llms": ("routing", 10, 20),
    "passages": ("passage", 100, 100),
    "titles-100": ("recommendation", 100, 5),
    "titles-1000": ("recommendation", 1000, 5),
    "titles-10000": ("recommendation", 10000, 5),
}
"""By name: scenario, candidates, words of each."""
QUERY_WORDS, HISTORY = 10, 3
LONG = 1000


def pool(kind: str, number: int) -> Problem:
    """The same candidates for every query: `number` decides the query alone."""
    scenario, n, words = POOLS[kind]
    candidates, asked = random.Random(kind), random.Random(f"{kind}:{number}")
    pool = tuple(Candidate(f"d{i}", f"{text(words, candidates)} {i}") for i in range(n))
    if scenario == "recommendation":
        history = tuple(text(words, asked) for _ in range(HISTORY))
        return Problem(f"q{number}", "bench", scenario, pool, history=history)
    wish = "Only quality matters." if scenario == "routing" else ""
    return Problem(f"q{number}", "bench", scenario, pool, query=text(QUERY_WORDS, asked), objective=wish)


def paper_tokens(backend: TransformersBackend, problem: Problem) -> int:
    """Prompt tokens of the loop that lists anew what is left; each line counted for as many steps as it stays."""
    lines = [len(backend.encoder.encode_text(f"{pool_lines(problem, [k])}\n")) for k in problem.identifiers]
    one = len(backend.encoder.encode(build_prompt(problem, [1], "iranker", think=False))) - lines[0]
    return one * (len(lines) - 1) + sum((len(lines) - place) * tokens for place, tokens in enumerate(lines, start=1))


def ways(backend: TransformersBackend, n: int) -> dict[str, tuple[IRanker, bool]]:
    """By name: a ranker, and whether it has a store."""
    judge = IRanker(backend, layout="blocks", ask="best")
    named = replace(judge, readout="identifier")
    found = {
        "judge, query first": (judge, False),
        "judge, query last": (replace(judge, query="last"), False),
        "judge, query last, store": (replace(judge, query="last"), True),
    }
    if n <= 20:  # each has a name of one token
        steps = replace(named, query="last")
        found |= {
            "identifier, query first": (named, False),
            "identifier, query last": (steps, False),
            "identifier, query last, store": (steps, True),
            "identifier in one step, query first": (replace(named, drop=n - 1), False),
            "identifier in one step, query last, store": (replace(steps, drop=n - 1), True),
        }
    return found


def spent(work: Any) -> tuple[Any, float, float]:
    """(result, seconds by the clock, seconds of the processor)."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - clock, time.process_time() - processor


def measured(
    backend: TransformersBackend, kind: str, queries: int, folder: Path, wanted: Sequence[str] | None
) -> list[dict[str, Any]]:
    """A row for each way wanted (None: for all)."""
    _, n, _ = POOLS[kind]
    unmeasured = 1 if n < LONG else 0
    problems = [pool(kind, number) for number in range(queries + unmeasured)]
    paper = paper_tokens(backend, problems[0])
    rows: list[dict[str, Any]] = []
    for name, (ranker, stored) in ways(backend, n).items():
        if name not in (wanted or [name]):
            continue
        row: dict[str, Any] = {"pool": kind, "n": n, "way": name, "paper_tokens": paper}
        backend.forget()
        backend.kept = None
        if stored:
            row |= made(ranker, problems[0], folder / "store.safetensors")
        each = [spent(lambda p=p, r=ranker: r.rank(p)) for p in problems][unmeasured:]  # type: ignore[misc]
        row["tokens"] = median(ranking.usage.prompt_tokens for ranking, _, _ in each)
        row |= {"ms": 1000 * median(s for _, s, _ in each), "cpu_ms": 1000 * median(s for _, _, s in each)}
        # Of the process up to now; what is mapped of a store counts where it was asked for.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        rows.append(row | {"fewer_tokens": paper / row["tokens"], "peak_mb": peak})
    return rows


def made(ranker: IRanker, problem: Problem, file: Path) -> dict[str, Any]:
    """What the store takes; afterwards the ranker has it memory-mapped from a file."""
    backend = ranker.backend
    assert isinstance(backend, TransformersBackend)
    file.unlink(missing_ok=True)
    store, _, seconds = spent(lambda: CandidateStore.build(ranker, [problem]))
    store.save(file)
    size = store.kept.bytes
    backend.kept = None
    _, opened, _ = spent(lambda: CandidateStore.open(file, backend))
    return {"store_mb": size / 1e6, "made_cpu_s": seconds, "opened_ms": 1000 * opened}


def told(rows: Sequence[dict[str, Any]], console: Console, title: str) -> None:
    """A table of one pool."""
    table = Table(
        "way", "tokens", "fewer than the paper's", "ms", "ms of the processor", "store, MB", "peak, MB", title=title
    )
    for row in rows:
        size = f"{row['store_mb']:.1f}" if "store_mb" in row else ""
        fewer, ms, cpu = f"{row['fewer_tokens']:.0f}x", f"{row['ms']:.0f}", f"{row['cpu_ms']:.1f}"
        table.add_row(row["way"], f"{row['tokens']:.0f}", fewer, ms, cpu, size, f"{row['peak_mb']:.0f}")
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=["llms", "passages", "titles-1000"])
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--ways", nargs="+", help="those named so alone; all")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    backend = TransformersBackend.load(asked.model)
    torch.set_num_threads(1)
    console, rows = Console(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        for kind in asked.pools:
            queries = asked.queries if POOLS[kind][1] < LONG else 1
            rows += measured(backend, kind, queries, Path(folder), asked.ways)
            told([row for row in rows if row["pool"] == kind], console, f"{asked.model}, {kind}")
            dtype, load = str(backend.network.dtype), os.getloadavg()[0]
            known = {"model": asked.model, "dtype": dtype, "load": load, "rows": rows}
            write_json(asked.json, known | provenance())


if __name__ == "__main__":
    main()
