"""What becomes of requests while things go wrong around `r1ranker serve`, a row for each fault.

    python benchmarks/serving_faults.py --json serving-faults.json

The server runs in a process of its own with the embedded model. Clients check every answer: each document once, with
its own text. "lost" are requests that were taken and got no answer at all, "wrong" those with another's documents.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from serving import documents_of, of_process, show, wrong

from r1ranker.cli.common import write_json
from r1ranker.io.provenance import provenance
from serving_server import Server, _ready, free_port

CLIENTS = 16
HELD = 200
"""Slow clients: connections that send a part of their request and then nothing."""
Fault = Callable[[Server], Awaitable[None]]


def child(config: str) -> None:
    """A server whose model threads end at SIGUSR1."""
    import uvicorn

    from r1ranker.serving.app import create_app, log_to_stderr
    from r1ranker.serving.settings import load_settings

    settings = load_settings(Path(config), {})
    app = create_app(settings)

    def kill(*_: object) -> None:
        for live in app.state.service.rankers.values():
            thread = ctypes.c_ulong(live._worker.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(KeyboardInterrupt))

    signal.signal(signal.SIGUSR1, kill)
    signal.signal(signal.SIGTERM, lambda *_: None)
    log_to_stderr()
    uvicorn.run(app, port=settings.port, http="h11", timeout_graceful_shutdown=10, log_config=None, access_log=False)


async def under(server: Server, requests: int, fault: Fault) -> dict[str, Any]:
    """So many requests by `CLIENTS` clients; when a fifth is answered, the fault begins."""
    numbers, statuses, others = iter(range(requests)), Counter[int](), Counter[str]()
    begin = asyncio.Event()

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            documents = documents_of(number)
            body = {"query": f"number {number}", "documents": documents, "return_documents": True}
            try:
                async with session.post(f"{server.url}/rerank", json=body) as response:
                    answer = await response.json()
            except aiohttp.ClientConnectorError:  # nobody listens any more
                others["refused"] += 1
                continue
            except aiohttp.ClientError:
                others["cut off"] += 1
                continue
            statuses[response.status] += 1
            others["wrong"] += bool(response.status == 200 and wrong(answer, documents, "nano"))
            if statuses[200] > requests // 5:
                begin.set()

    async def trouble() -> None:
        await begin.wait()
        await fault(server)

    began = time.perf_counter()
    troubles = asyncio.create_task(trouble())
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client(session))
    seconds = time.perf_counter() - began
    troubles.cancel()
    with suppress(asyncio.CancelledError):
        await troubles
    told = {str(status): n for status, n in sorted(statuses.items())}
    return {"requests": requests, "answered": statuses[200], "statuses": told, **others, "seconds": seconds}


async def nothing(server: Server) -> None:
    """For comparison."""


async def thread_killed(server: Server) -> None:
    """Three times."""
    for _ in range(3):
        server.process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(2)


async def slow_clients(server: Server) -> None:
    """Half with a part of a header, half with a part of a body; they stay until the end."""
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\n"
    parts = (head, head + b"Content-Length: 500\r\n\r\n{")
    held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(HELD)]
    for i, (_, writer) in enumerate(held):
        writer.write(parts[i % 2])
    try:
        await asyncio.sleep(3600)
    finally:
        for _, writer in held:
            writer.close()


async def clients_go(server: Server) -> None:
    """200 that ask and do not wait for the answer."""
    body = b'{"query": "q", "documents": [' + b", ".join(b'"text %d"' % i for i in range(20)) + b"]}"
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(HELD):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head + body)
        await writer.drain()
        await asyncio.sleep(0.005)
        writer.close()


async def told_to_stop(server: Server) -> None:
    """SIGTERM."""
    server.process.send_signal(signal.SIGTERM)


FAULTS: dict[str, Fault] = {
    "none": nothing,
    "model thread killed, 3 times": thread_killed,
    f"{HELD} slow clients": slow_clients,
    f"{HELD} clients go before their answer": clients_go,
    "SIGTERM": told_to_stop,
}


def one(folder: Path, name: str, fault: Fault, requests: int) -> dict[str, Any]:
    """A row, of a server of its own."""
    port = free_port()
    config, log = folder / f"{port}.yaml", folder / f"{port}.log"
    limits = {"deadline_s": 120, "queue": 1000}
    config.write_text(yaml.safe_dump({"port": port, "rankers": {"nano": {"model": "nano"}}, "limits": limits}))
    with log.open("wb") as output:
        command = [sys.executable, __file__, "--child", str(config)]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
    server = Server(port, log, process)
    try:
        while not _ready(server):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        row = asyncio.run(under(server, requests, fault))
        ended = process.poll() is not None or fault is told_to_stop
        memory = 0.0 if ended else of_process(server)[1]
        health = "" if ended else server.get("/health")[2]["status"]
        code = process.wait(60) if ended else server.stop()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    lines = [line for line in server.lines() if line.get("path") == "/rerank"]
    # Requests that the server answered according to its log, and the clients did not get: none may be.
    lost = sum(line["status"] == 200 for line in lines) - row["answered"]
    gone = sum(line["status"] == 499 for line in lines)
    return {"fault": name, **row, "lost": lost, "gone (499)": gone, "MiB": memory, "health": health, "exit": code}


def main() -> None:
    """Parse, run, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, help="for each row")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, fault in FAULTS.items():
            rows.append(one(Path(folder), name, fault, given.requests))
            show(name, [rows[-1]])
    write_json(given.json, {"provenance": provenance(), "rows": rows})


if __name__ == "__main__":
    main()
