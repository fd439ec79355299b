"""What calling an endpoint costs this side of the network, and what is left of a run when calls fail.

    python benchmarks/endpoint.py              # CPU milliseconds of a ranking of 20, the model's time left out
    python benchmarks/endpoint.py --faults     # 1000 queries, 30 % of all calls fail

The endpoint is `tests/fault_server.py` in a process of its own; it answers at once. Time is this process's
own CPU time (user and system, all threads), so that neither the server nor a busy machine is in it.
Peers are measured in the same run where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1ranker.backends.openai_ import OpenAIBackend
from r1ranker.problem import Candidate, Problem
from r1ranker.rankers import DRanker, IRanker, Ranker

SERVER = Path(__file__).parents[1] / "tests" / "fault_server.py"
CANDIDATES = 20
PASSAGE = "what a passage says takes a line or two in which some words of the query may stand"


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


def cpu_milliseconds(work: Callable[[], Any], queries: int, repeats: int = 3) -> float:
    """For one query; the least of some runs, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1000 * min(times) / queries


def check(rankings: list[Any]) -> None:
    """The server's order is the reverse of the input: a ranking that is not was not made by it."""
    for ranking in rankings:
        assert ranking.docids == tuple(f"d{k}" for k in range(CANDIDATES, 0, -1)), ranking.error or ranking.docids


def overhead(queries: int) -> list[dict[str, Any]]:
    """Rows: our rankers at two concurrencies, and the peers that can be imported."""
    problems = [problem_of(i) for i in range(queries)]
    rows: list[dict[str, Any]] = []
    with endpoint() as url:
        for concurrency in (1, 32):
            backend = OpenAIBackend("m", [url], concurrency=concurrency)
            ways: dict[str, Ranker] = {
                "DRanker": DRanker(backend, think=False),
                "DRanker, thinking": DRanker(backend),
                "IRanker": IRanker(backend, think=False),
            }
            for name, ranker in ways.items():
                some = problems if name.startswith("DRanker") else problems[: max(1, queries // 10)]
                check(ranker.rank_many(some))
                ms = cpu_milliseconds(partial(ranker.rank_many, some), len(some))
                calls = 1 if ranker is not ways["IRanker"] else CANDIDATES - 1
                rows.append(row(f"r1ranker {name}", concurrency, calls, ms))
        for name, peer in PEERS.items():
            rows += (
                peer(url, problems) if importlib.util.find_spec(name) else [row(f"{name}: not installed", 0, 0, 0.0)]
            )
    return rows


def row(system: str, concurrency: int, calls: int, ms: float) -> dict[str, Any]:
    return {
        "system": system,
        "concurrency": concurrency,
        "calls per query": calls,
        "CPU ms per query": ms,
        "CPU ms per call": ms / max(1, calls),
    }


def rerankers(url: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """Its listwise ranker over the same endpoint, one query after the other: it knows no other way."""
    from rerankers import Document  # type: ignore[import-not-found]
    from rerankers.models.rankgpt_rankers import RankGPTRanker  # type: ignore[import-not-found]

    os.environ["OPENAI_BASE_URL"] = os.environ["OPENAI_API_BASE"] = url
    ranker = RankGPTRanker("openai/m", "none", verbose=0)
    some = [(p.query, [Document(text=c.text, doc_id=c.docid) for c in p.candidates]) for p in problems[:100]]

    def work() -> None:
        for query, documents in some:
            ranked = ranker.rank(query, documents, rank_end=CANDIDATES)  # it ranks none by default
            assert ranked.results[0].document.text == documents[-1].text

    return [row("rerankers RankGPT", 1, 1, cpu_milliseconds(work, len(some)))]


def llmrankers(url: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """Its listwise ranker over the same endpoint: one window over the whole pool."""
    import openai  # type: ignore[import-not-found]
    from llmrankers.listwise import OpenAiListwiseLlmRanker  # type: ignore[import-not-found]
    from llmrankers.rankers import SearchResult  # type: ignore[import-not-found]

    if not openai.__version__.startswith("0."):  # with another one it asks again for ever
        return [row("llmrankers: needs openai<1", 0, 0, 0.0)]
    openai.api_base = url
    ranker = OpenAiListwiseLlmRanker("gpt-3.5-turbo", "none", CANDIDATES, CANDIDATES, 1)
    some = [(p.query, [SearchResult(c.docid, 0.0, c.text) for c in p.candidates]) for p in problems[:100]]

    def work() -> None:
        for query, documents in some:
            assert ranker.rerank(query, documents)[0].docid == documents[-1].docid

    return [row("llm-rankers listwise", 1, 1, cpu_milliseconds(work, len(some)))]


PEERS: dict[str, Callable[[str, list[Problem]], list[dict[str, Any]]]] = {
    "rerankers": rerankers,
    "llmrankers": llmrankers,
}


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
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.faults:
        title, rows = f"{given.rate:.0%} of calls fail", faults(given.queries or 1000, given.rate)
    else:
        title, rows = f"own cost of a ranking of {CANDIDATES}", overhead(given.queries or 300)
    table = Table(*rows[0], title=title)
    for each in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in each.values()))
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
