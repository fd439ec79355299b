"""The tools over MCP, by the client of MCP's own library: in memory, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("mcp")

import requests
from mcp import Client, StdioServerParameters, stdio_client

from known_order import BEST_FIRST, QUERY, TEXTS, by_shared_words, falls
from r1ranker.adapters.mcp import server
from serving_server import START_SECONDS, free_port

COMMAND = [sys.executable, "-m", "r1ranker", "mcp"]
MODELS = {"small": "cheap, fails at long proofs", "large": "dear, good at everything"}


def call(target: Any, tool: str, **arguments: Any) -> Any:
    """What a tool answers: its rows, or the text of its error."""

    async def answer() -> Any:
        async with Client(target) as client:
            return await client.call_tool(tool, arguments)

    found = asyncio.run(answer())
    return found.content[0].text if found.is_error else found.structured_content["result"]


def test_rank_orders_documents() -> None:
    found = call(server(by_shared_words()), "rank", query=QUERY, documents=TEXTS, top_n=3)
    assert [row["index"] for row in found] == BEST_FIRST[:3]
    assert [row["text"] for row in found] == [TEXTS[at] for at in BEST_FIRST[:3]]
    assert falls([row["score"] for row in found])


def test_what_is_wrong_is_told_to_the_agent() -> None:
    tools = server("nano")
    assert "give a text to rank for" in call(tools, "rank", query=" ", documents=TEXTS)
    assert "1 or more" in call(tools, "rank", query=QUERY, documents=TEXTS, top_n=0)
    assert "has no candidates" in call(tools, "route", prompt="prove it", models={})
    assert call(tools, "rank", query=QUERY, documents=[]) == []


def test_over_stdio_both_tools_answer() -> None:
    target = stdio_client(
        StdioServerParameters(
            command=COMMAND[0], args=COMMAND[1:], env={"PYTHONPATH": ":".join(filter(None, sys.path))}
        )
    )

    async def answers() -> tuple[list[str], Any, Any]:
        async with Client(target) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            ranked = await client.call_tool("rank", {"query": QUERY, "documents": TEXTS})
            routed = await client.call_tool("route", {"prompt": "prove it", "models": MODELS, "objective": "quality"})
            return names, ranked.structured_content["result"], routed.structured_content["result"]

    names, ranked, routed = asyncio.run(answers())
    assert names == ["rank", "route"]
    assert sorted(row["index"] for row in ranked) == [0, 1, 2, 3]
    assert sorted(row["name"] for row in routed) == sorted(MODELS)
    assert falls([row["score"] for row in routed])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([*COMMAND, "--http", "--port", str(port)])
    try:
        until = time.monotonic() + START_SECONDS
        while not listens(port):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait()


def test_over_http_tools_answer(url: str) -> None:
    found = call(url, "rank", query=QUERY, documents=TEXTS)
    assert sorted(row["index"] for row in found) == [0, 1, 2, 3]


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_over_http_another_site_is_refused(url: str, headers: dict[str, str]) -> None:
    accepts = {"Accept": "application/json, text/event-stream"}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert requests.post(url, json=body, headers=accepts | headers, timeout=30).status_code in (403, 421)
