"""What calling an endpoint costs this side of the network, and what is left of a run when calls fail.

    python benchmarks/endpoint.py              # CPU milliseconds of a ranking of 20, the model's time left out
    python benchmarks/endpoint.py --peers-python PEERS/bin/python        # beside other packages, see peers.py
    python benchmarks/endpoint.py --faults     # 1000 queries, 30 % of all calls fail

The endpoint is `tests/fault_server.py` in a process of its own; it answers at once. Time is the client process's
own CPU time (user and system, all threads), so that neither the server nor waiting is in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from peers import CANDIDATES, PASSAGE, PEERS, cpu_milliseconds
from rich.console import Console
from rich.table import Table

from r1ranker.backends.openai_ import OpenAIBackend
from r1ranker.cli.common import write_json
from r1ranker.io.provenance import provenance
from r1ranker.problem import Candidate, Problem
from r1ranker.ranking.rankers import DRanker, IRanker, Ranker

SERVER = Path(__file__).parents[1] / "tests" / "fault_server.py"
PEER_SCRIPT = Path(__file__).with_name("peers.py")


def problem_of(number: int, n: int = CANDIDATES) -> Problem:
    """A query with n passages of some 17 words."""
    candidates = tuple(Candidate(f"d{k}", f"{PASSAGE} {number} {k}") for k in range(1, n + 1))
    return Problem(f"q{number}", "passages", "passage", candidates, query=f"what does passage {number} say")


@contextmanager
def endpoint(*flags: str) -> Iterator[str]:
    """The base URL of a server that runs as long as the context."""
    with subprocess.Popen([sys.executable, str(SERVER), *flags], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def check(rankings: list[Any]) -> None:
    """The server's order is the reverse of the input: a ranking that is not was not made by it."""
    for ranking in rankings:
        assert ranking.docids == tuple(f"d{k}" for k in range(CANDIDATES, 0, -1)), ranking.error or ranking.docids


def overhead(queries: int, pythons: list[str]) -> list[dict[str, Any]]:
    """Rows: our rankers, all queries given at once or one after the other, and the peers."""
    problems = [problem_of(i) for i in range(queries)]
    rows: list[dict[str, Any]] = []
    with endpoint() as url:
        for concurrency in (1, 32):
            backend = OpenAIBackend("m", [url], concurrency=concurrency)
            ways: dict[str, Ranker] = {
                "DRanker": DRanker(backend, think=False),
                "DRanker, thinking": DRanker(backend, think=True),
                "IRanker": IRanker(backend, think=False),
            }
            for name, ranker in ways.items():
                some = problems if name.startswith("DRanker") else problems[: max(1, queries // 10)]
                check(ranker.rank_many(some))
                ms = cpu_milliseconds(partial(ranker.rank_many, some), len(some))
                rows.append(row(f"r1ranker {name}", concurrency, 1 if name != "IRanker" else CANDIDATES - 1, ms))
        alone = DRanker(OpenAIBackend("m", [url], concurrency=1), think=False)
        ms = cpu_milliseconds(lambda: [alone.rank(problem) for problem in problems], queries)
        rows.append(row("r1ranker DRanker, a rank() for each query", 1, 1, ms, "each opens a connection"))
        rows += [peer_row(name, pythons, url, queries) for name in PEERS]
    return rows


def row(system: str, concurrency: int, calls: int, ms: float, note: str = "") -> dict[str, Any]:
    """A line of the table."""
    return {
        "system": system,
        "concurrency": concurrency,
        "calls per query": calls,
        "CPU ms per query": ms,
        "CPU ms per call": ms / max(1, calls),
        "note": note,
    }


def peer_row(name: str, pythons: list[str], url: str, queries: int) -> dict[str, Any]:
    """The peer's figure by the first Python that has one, else the last reason that there is none."""
    result = {"system": name, "note": "no --peers-python given"}
    for python in pythons:
        command = [python, str(PEER_SCRIPT), name, url, str(queries)]
        result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        if "ms" in result:
            return row(result["system"], 1, result["calls"], result["ms"], result["note"])
    return row(result["system"], 0, 0, 0.0, f"not measured: {result['note']}")


def faults(queries: int, rate: float) -> list[dict[str, Any]]:
    """Rows by tenth of the run: memory must not grow over them, and every query must be ranked or failed."""
    with endpoint("--faults", str(rate)) as url:
        backend = OpenAIBackend("m", [url], timeout=1.0)
        ranker = IRanker(backend, think=False)
        ranker.rank_many([problem_of(i, 4) for i in range(-queries // 10, 0)])  # what is loaded once is loaded now
        rows: list[dict[str, Any]] = []
        began, at_first = time.perf_counter(), peak_mib()
        row = dict.fromkeys(("done", "ranked", "failed", "retries", "in input order"), 0)
        for _, ranking in ranker.rank_each(problem_of(i, 4) for i in range(queries)):
            row["done"] += 1
            row["ranked"] += not ranking.error
            row["failed"] += bool(ranking.error)
            row["retries"] += ranking.usage.retries
            row["in input order"] += ranking.docids == ("d1", "d2", "d3", "d4")
            if row["done"] % max(1, queries // 10) == 0:
                rows.append(row | {"peak MiB grown": peak_mib() - at_first, "seconds": time.perf_counter() - began})
    return rows


def peak_mib() -> float:
    """The largest resident size of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Parse, run, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, help="300, or 1000 with --faults")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--rate", type=float, default=0.3, help="share of calls that fail")
    parser.add_argument(
        "--peers-python", action="append", default=[], metavar="PATH", help="a Python that has peers; repeatable"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.faults:
        title, rows = f"{given.rate:.0%} of calls fail", faults(given.queries or 1000, given.rate)
    else:
        title, rows = f"own cost of a ranking of {CANDIDATES}", overhead(given.queries or 300, given.peers_python)
    table = Table(*rows[0], title=title)
    for each in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in each.values()))
    Console().print(table)
    write_json(given.json, {"provenance": provenance(), "rows": rows})


if __name__ == "__main__":
    main()
