"""What one request may cost before it is refused: no field of a body, and no number of texts, holds up the others."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from r1ranker.serving.app import create_app
from r1ranker.serving.bodies import texts_of
from r1ranker.serving.settings import ServeSettings
from serving_server import Server, running

ASKED: dict[str, Any] = {"query": "what do owls eat", "documents": ["mice", "salt"]}
QUICK_SECONDS = 2.0
"""More than what is linear takes, and less than what grows with the square."""


def ask(path: str, body: dict[str, Any], limits: dict[str, int]) -> tuple[int, Any, float]:
    """Status, answer and seconds, of an app that has loaded no model: what it answers, it answers before it ranks."""
    app = create_app(ServeSettings.model_validate({"limits": {"body_bytes": 1 << 30} | limits}))
    data, sent = json.dumps(body).encode(), list[Any]()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [(b"host", b"localhost")]}
    began = time.perf_counter()
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), time.perf_counter() - began


def test_fields_to_read_are_looked_up_in_each_document_and_not_tried_one_by_one() -> None:
    fields = [f"f{i}" for i in range(20_000)]
    began = time.perf_counter()
    texts = texts_of([{"f7": "seven", "x": "no", "f3": "three"}] * 5000, fields)
    assert time.perf_counter() - began < QUICK_SECONDS
    assert set(texts) == {"f3: three\nf7: seven"}


def test_fields_are_read_in_the_order_in_which_they_are_named() -> None:
    document = {"a": "1", "b": "2", "text": "3"}
    assert texts_of([document], ["text", "a", "text", "none"]) == ["text: 3\na: 1"]
    assert texts_of([document, {"c": "4"}], []) == ["3", "4"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_the_number_of_a_history_s_entries_is_limited(served: Server, path: str) -> None:
    asked = {"documents": ["a", "b"], "scenario": "recommendation", "history": ["x"] * 60}
    assert served.post(path, asked)[0] == 200
    status, _, answer = served.post(path, asked | {"history": [""] * 61})
    assert (status, answer["error"]["param"]) == (413, "history")
    assert "61 of them; at most 60" in answer["message"]


def test_a_query_that_is_too_long_is_blamed_on_the_query(served: Server) -> None:
    long = "x" * 1001
    for path, body, param in (
        ("/rerank", ASKED | {"query": long}, "query"),
        ("/voyage/v1/rerank", ASKED | {"query": long}, "query"),
        ("/score", {"queries": long, "documents": ["a"]}, "queries"),
    ):
        status, _, answer = served.post(path, body)
        assert (status, answer["error"]["param"]) == (413, param)
        assert answer["message"].startswith(f"{param}: it has 1001 characters")


def test_texts_of_many_pairs_are_checked_once() -> None:
    many = 10_000
    body = {"queries": [f"q{i}" for i in range(many)], "documents": ["a"] * many}
    status, answer, seconds = ask("/score", body, {"documents": many, "queue": 8})
    assert (status, answer["error"]["param"]) == (413, "queries"), "so many rankings are too many"
    assert seconds < QUICK_SECONDS
    blank = {"queries": ["q", " "], "documents": ["a", "b"]}
    assert ask("/score", blank, {})[:1] == (400,)


def test_a_header_above_the_limit_is_refused_in_words_however_it_comes(served: Server) -> None:
    head = b"GET /info HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: key-a\r\nConnection: close\r\nX-Filler: "
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as sock:
        sock.sendall(head + b"x" * 4500)
        time.sleep(0.2)  # so that it is read as half of them
        sock.sendall(b"x" * 500 + b"\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(10_000), b""))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"too_large"' in answer


def test_what_is_far_too_long_for_the_model_is_soon_refused_and_holds_up_no_end(tmp_path: Path) -> None:
    settings = {"rankers": {"nano": {"model": "nano"}}, "limits": {"deadline_s": 60}}
    document = ("barn owls live about four years and eat mice at night " * 40)[:1900]
    with running(tmp_path, settings) as server:
        began = time.monotonic()
        status, _, answer = server.post("/rerank", {"query": "owls", "documents": [document] * 1000})
        assert time.monotonic() - began < 10
        assert (status, answer["error"]["code"]) == (422, "prompt")
        assert "a prompt of more than 2048 tokens" in answer["message"]
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "r1ranker", "serve", "--model", str(tmp_path / "none"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
