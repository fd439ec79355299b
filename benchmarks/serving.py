"""What `r1ranker serve` does under load, and what a request costs beside the model.

    python benchmarks/serving.py                       # requests/s, p50, p99 by concurrent clients; a minute or so
    python benchmarks/serving.py --requests 10000      # as many at each number of clients, and a flat memory
    python benchmarks/serving.py --only fuzz --fuzz 10000

The server runs in a process of its own. One ranker is the embedded model, which removes the worst of five; the other
writes one list at an endpoint that answers after 50 ms. Beside them stands the same ranker in one process, one request
at a time, without HTTP. Every answer is checked: each document once, with its own text, and in the endpoint's order.
CPU is the server's own time, user and system.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from r1ranker.cli.common import write_json  # noqa: E402
from r1ranker.io.provenance import provenance  # noqa: E402
from r1ranker.problem import Candidate, Problem  # noqa: E402
from r1ranker.ranking.spec import RankerSpec  # noqa: E402
from serving_server import Server, malformed, running  # noqa: E402

DOCUMENTS = 5
DELAY = 0.05
ALONE_SECONDS = 5.0
PASSAGE = "barn owls live in farms and hunt mice at night over open fields, as number"


def documents_of(number: int) -> list[str]:
    """Texts that say whose they are."""
    return [f"{PASSAGE} {number} place {place}" for place in range(DOCUMENTS)]


@contextmanager
def endpoint() -> Iterator[str]:
    """The base URL of an endpoint that answers after `DELAY` seconds."""
    command = [sys.executable, str(TESTS / "fault_server.py"), "--delay", str(DELAY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def specs(url: str) -> dict[str, dict[str, Any]]:
    """The rankers, as they stand in a configuration."""
    remote = {"model": "m", "design": "dranker", "base_urls": [url], "concurrency": 128}
    return {"nano": {"model": "nano"}, "endpoint": remote}


def alone(spec: dict[str, Any]) -> float:
    """Requests/s of the ranker in this process, one at a time."""
    ranker = RankerSpec(**{**spec, "base_urls": tuple(spec.get("base_urls", ()))}).build()

    def one(number: int) -> None:
        texts = documents_of(number)
        candidates = tuple(Candidate(str(i), text) for i, text in enumerate(texts))
        assert not ranker.rank(Problem("q", "t", "passage", candidates, f"number {number}")).error

    one(0)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < ALONE_SECONDS:
        one(done)
        done += 1
    return done / (time.perf_counter() - began)


async def load(server: Server, model: str, clients: int, requests: int, texts: int = DOCUMENTS) -> dict[str, Any]:
    """Requests/s and latencies (milliseconds) of so many clients, each of whom waits for its answer."""
    numbers, seconds, failed = iter(range(requests)), list[float](), list[str]()
    before = of_process(server)

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            documents = documents_of(number)[:texts]
            body = {"query": f"number {number}", "documents": documents, "model": model, "return_documents": True}
            began = time.perf_counter()
            async with session.post(f"{server.url}/rerank", json=body) as response:
                answer = await response.json()
            seconds.append(time.perf_counter() - began)
            if fault := wrong(answer, documents, model):
                failed.append(f"request {number}: {response.status}: {fault}")

    began = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client(session))
    wall, after = time.perf_counter() - began, of_process(server)
    if failed:
        raise SystemExit(f"{len(failed)} of {requests} answers were wrong; the first: {failed[0]}")
    assert len(seconds) == requests, "one was lost"
    percentiles = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else [seconds[0]] * 99
    return {
        "ranker": model,
        "clients": clients,
        "requests": requests,
        "requests/s": requests / wall,
        "p50 ms": 1000 * percentiles[49],
        "p99 ms": 1000 * percentiles[98],
        "server CPU ms": 1000 * (after[0] - before[0]) / requests,
        "server MiB": after[1],
    }


def wrong(answer: dict[str, Any], documents: list[str], model: str) -> str:
    """What is wrong with an answer, if anything."""
    results = answer.get("results")
    if results is None:
        return str(answer)[:200]
    shown = {result["index"]: result["document"]["text"] for result in results}
    if shown != dict(enumerate(documents)) or len(results) != len(documents):
        return f"not its own documents: {str(shown)[:200]}"
    order = [result["index"] for result in results]
    if model == "endpoint" and len(documents) > 1 and order != sorted(order, reverse=True):
        return f"not the endpoint's order: {order}, {answer['meta']}"
    return "late" if "warnings" in answer["meta"] else ""


def of_process(server: Server) -> tuple[float, float]:
    """(CPU seconds, resident MiB) of the server."""
    stat = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    resident = re.search(r"VmRSS:\s+(\d+)", status)
    return (int(stat[11]) + int(stat[12])) / 100, int(resident[1]) / 1024 if resident else 0.0


async def fuzz(server: Server, count: int, seed: int = 0) -> dict[str, Any]:
    """Malformed bodies by the status of their answers. Exits where one is a fault of the server."""
    rng, statuses = random.Random(seed), dict[int, int]()
    bodies = (malformed(rng) for _ in range(count))

    async def client(session: aiohttp.ClientSession) -> None:
        for path, body in bodies:
            async with session.post(server.url + path, data=body) as response:
                await response.read()
            statuses[response.status] = statuses.get(response.status, 0) + 1
            if response.status >= 500:
                raise SystemExit(f"{path} answered {response.status} to {body[:500]!r}")

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(client(session))
    assert sum(statuses.values()) == count
    return {"bodies": count, **{str(status): n for status, n in sorted(statuses.items())}}


def main() -> None:
    """Parse, run, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,8,32,128")
    parser.add_argument("--requests", type=int, default=300, help="for each row")
    parser.add_argument("--rankers", default="nano,endpoint")
    parser.add_argument("--fuzz", type=int, default=1000, help="malformed bodies")
    parser.add_argument("--only", choices=("load", "cost", "fuzz"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {"provenance": provenance()}
    with endpoint() as url, tempfile.TemporaryDirectory() as folder:
        limits = {"deadline_s": 60.0, "queue": 1000}
        with running(Path(folder), {"rankers": specs(url), "limits": limits}) as server:
            chosen = given.rankers.split(",")
            if given.only in (None, "load"):
                result["alone"] = {name: alone(specs(url)[name]) for name in chosen}
                result["load"] = rows = []
                for name, clients in itertools.product(chosen, map(int, given.clients.split(","))):
                    asyncio.run(load(server, name, clients, max(10, clients)))  # connections, threads, buffers
                    row = asyncio.run(load(server, name, clients, given.requests))
                    rows.append(row | {"times alone": row["requests/s"] / result["alone"][name]})
                show("load", rows)
            if given.only in (None, "cost"):
                # Of a single document nothing is asked: what is left is HTTP, checks, batching and the answer.
                result["own cost"] = [asyncio.run(load(server, "nano", n, given.requests, 1)) for n in (1, 8)]
                show("a request without the model", result["own cost"])
            if given.only in (None, "fuzz"):
                result["fuzz"] = asyncio.run(fuzz(server, given.fuzz))
                show("malformed bodies by status", [result["fuzz"]])
            assert server.stop() == 0
    write_json(given.json, result)


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
