"""What went wrong in other servers, each case as a test of this one."""

from __future__ import annotations

import asyncio
import hmac
import http.client
import io
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import starlette
import yaml
from typer.testing import CliRunner

import r1ranker.serving
from fault_server import FaultServer
from r1ranker.cli import app
from r1ranker.errors import ConfigError
from r1ranker.serving import guard as guard_module
from r1ranker.serving.guard import Guard
from r1ranker.serving.settings import ServeSettings, load_settings
from serving_server import Server, free_port, hashed, running

ASKED: dict[str, Any] = {"query": "what do owls eat", "documents": ["mice", "salt"]}
SECRET = "a private matter 4711"
SOURCES = {path.name: path.read_text() for path in Path(r1ranker.serving.__file__).parent.glob("*.py")}
GET = ["/info", "/v1/models", "/metrics", "/openapi.json", "/nowhere"]
POST = ["/rerank", "/v1/rerank", "/v2/rerank", "/voyage/v1/rerank", "/score", "/v1/score"]


@pytest.fixture
def alive(served: Server) -> Iterator[Server]:
    """The server, which answers afterwards as it did before."""
    yield served
    assert served.post("/rerank", ASKED)[0] == 200


# Keys (CVE-2026-42208, CVE-2025-59425).


@pytest.mark.parametrize("path", [*GET, *POST])
@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer wrong", "Basic key-a", "key-a", "Bearer key-a\xe9"])
def test_without_a_valid_key_there_is_nothing_on_any_route(served: Server, path: str, given: str) -> None:
    body = json.dumps(ASKED).encode() if path in POST else None
    status, headers, answer = served.request("POST" if body else "GET", path, body, Authorization=given)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert answer["error"]["type"] == "authentication_error"


def test_the_key_is_asked_before_anything_else(served: Server) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    assert served.request("POST", "/rerank", b"not json", **wrong)[0] == 401
    assert (
        served.request("POST", "/rerank", b"{}", Host="evil.example", Origin="http://evil.example", **wrong)[0] == 401
    )
    assert served.request("POST", "/rerank", b"x" * 200_000, **wrong)[0] == 401


def test_a_key_may_come_as_clients_send_it(served: Server) -> None:
    for headers in ({"Authorization": "Bearer key-a"}, {"Authorization": "bearer  key-a"}):
        assert served.post("/rerank", ASKED, **headers)[0] == 200
    assert served.post("/rerank", ASKED, Authorization="", x_api_key="key-a")[0] == 200
    assert served.get("/health", Authorization="")[0] == 200, "load balancers have no key"


def test_all_keys_are_compared_as_hashes_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    keys = [{"name": f"k{i}", "sha256": hashed(f"secret {i}")} for i in range(5)]
    guard = Guard(None, ServeSettings.model_validate({"keys": keys}))  # type: ignore[arg-type]
    headers = [(b"authorization", b"Bearer secret 0"), (b"host", b"localhost")]
    assert guard.check(starlette.datastructures.Headers(raw=headers), "/rerank") == "k0"
    assert [known for known, _ in compared] == [key["sha256"] for key in keys], "all of them, also behind the right one"
    assert {given for _, given in compared} == {hashed("secret 0")}


def test_no_database_stands_before_the_key_is_checked() -> None:
    assert not re.search(r"sqlite|execute\(", SOURCES["guard.py"])
    assert not re.search(r"(key|given|sha256|hashed)\s*==", SOURCES["guard.py"])


def test_a_key_stands_in_no_configuration_in_clear() -> None:
    with pytest.raises(ConfigError, match="sha256sum"):
        load_settings(None, {"keys": [{"name": "a", "sha256": "my-key"}]})


def test_a_key_sees_and_uses_its_own_models_alone(served: Server) -> None:
    own = {"Authorization": "Bearer key-b"}
    assert [model["id"] for model in served.get("/v1/models", **own)[2]["data"]] == ["direct"]
    assert served.post("/rerank", ASKED, **own)[2]["model"] == "direct"
    status, _, answer = served.post("/rerank", ASKED | {"model": "nano"}, **own)
    assert status == 404
    assert "best" not in answer["message"]


# Sizes (CVE-2025-48956).


def test_a_huge_header_is_refused(alive: Server) -> None:
    assert alive.post("/rerank", ASKED, x_filler="x" * 4050)[0] == 431
    with socket.create_connection(("127.0.0.1", alive.port), timeout=60) as sock:
        sock.sendall(b"POST /rerank HTTP/1.1\r\nx: " + b"x" * 1_000_000)
        assert sock.recv(100).split()[1][:1] in (b"4",)


def test_many_headers_are_refused(alive: Server) -> None:
    many = {f"x-{i}": "y" * 20 for i in range(160)}
    assert alive.request("POST", "/rerank", json.dumps(ASKED).encode(), **many)[0] in (400, 431)


def test_a_huge_body_is_refused_also_when_it_does_not_say_its_size(alive: Server) -> None:
    status, _, answer = alive.post("/rerank", ASKED | {"documents": ["x" * 900] * 200})
    assert (status, answer["error"]["code"]) == (413, "too_large")
    connection = http.client.HTTPConnection("127.0.0.1", alive.port, timeout=60)
    chunks = (b"x" * 10_000 for _ in range(30))
    connection.request("POST", "/rerank", chunks, {"Authorization": "Bearer key-a"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"documents": ["a"] * 61},
        {"documents": ["x" * 1001]},
        {"documents": [{"a": "x" * 500, "b": "x" * 500}]},
        {"documents": ["x" * 900] * 30},
        {"query": "x" * 1001},
        {"instruction": "x" * 1001},
        {"history": ["x" * 400] * 3, "scenario": "recommendation"},
        {"documents": None, "texts": ["a"] * 61},
    ],
)
def test_more_than_the_limits_is_refused_with_the_limit(alive: Server, changes: dict[str, Any]) -> None:
    status, _, answer = alive.post("/rerank", ASKED | changes)
    assert status == 413
    said = answer["error"] if "error_type" in answer else answer["message"]
    assert re.search("60|1000|20000", said)


def test_limits_hold_for_pairs_and_for_voyage(alive: Server) -> None:
    assert alive.post("/voyage/v1/rerank", ASKED | {"documents": ["a"] * 61})[0] == 413
    assert alive.post("/score", {"queries": "q", "documents": ["a"] * 61})[0] == 413
    many = {"queries": [f"q{i}" for i in range(30)], "documents": ["a"] * 30}
    assert alive.post("/score", many)[0] == 413, "different queries are rankings of their own"


def test_a_full_queue_says_when_to_come_again(alive: Server) -> None:
    asked = ASKED | {"model": "slow", "deadline_s": 3}
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: alive.post("/rerank", asked), range(40)))
    refused = [(headers, answer) for status, headers, answer in answers if status == 429]
    assert refused
    assert all(int(headers["retry-after"]) >= 1 for headers, _ in refused)
    assert all(answer["error"]["type"] == "rate_limit_error" for _, answer in refused)
    assert all(status in (504, 429) for status, _, _ in answers)


# Requests are data (CVE-2024-6587, CVE-2025-62164, CVE-2026-22778, CVE-2026-22807, rank_llm's server).


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key"])
@pytest.mark.parametrize("path", POST)
def test_a_body_names_no_server_and_no_key(alive: Server, path: str, name: str) -> None:
    body = ASKED | {"queries": ["q"], name: "http://evil.example"}
    status, _, answer = alive.post(path, body)
    assert (status, answer["error"]["param"]) == (400, name)


def test_bodies_are_json_and_nothing_else(alive: Server) -> None:
    saved = io.BytesIO()
    pickle.dump(ASKED, saved)
    for body in (
        saved.getvalue(),
        b"PK\x03\x04" + bytes(100),
        b"query: a\ndocuments: [b]",
        b"\x1f\x8b\x08" + bytes(20),
    ):
        assert alive.request("POST", "/rerank", body)[0] == 400
    readers = re.compile(r"^\s*(?:import|from) (?:torch|pickle|yaml|marshal|shelve)\b", re.MULTILINE)
    assert not [name for name, text in SOURCES.items() if readers.search(text)]


def test_no_address_in_a_document_is_fetched(alive: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        documents = [url, {"image": url}, {"image_url": {"url": url}}, {"type": "image_url", "image_url": url}]
        assert alive.post("/rerank", {"query": url, "documents": documents})[0] == 200
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize("model", ["../../etc/passwd", "org/other-model", "http://evil.example/m", "nano/../nano"])
def test_models_are_those_of_the_start(alive: Server, model: str) -> None:
    assert alive.post("/rerank", ASKED | {"model": model})[0] == 404


def test_no_code_of_a_model_is_run() -> None:
    room = Path(r1ranker.serving.__file__).parents[1]
    assert not [path for path in room.rglob("*.py") if re.search(r"trust_remote_code\s*=\s*True", path.read_text())]


def test_names_of_files_in_a_request_mean_nothing(alive: Server, tmp_path: Path) -> None:
    target = tmp_path / "written"
    names = ("output_file", "model_path", "prompt_template_path", "template", "cache", "trace", "store")
    assert alive.post("/rerank", ASKED | dict.fromkeys(names, str(target)))[0] == 200
    assert not target.exists()


# What answers and logs give away (CVE-2026-22778).


def test_a_fault_is_told_by_its_request_id_alone(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[dict[str, Any]] = []

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError(f"heap at 0x7fff and {SECRET}")

    async def keep(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [(b"host", b"localhost")]}
    with caplog.at_level("INFO"):
        asyncio.run(Guard(broken, ServeSettings())(scope, receive, keep))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert sent[0]["status"] == 500
    assert headers["x-request-id"] in json.loads(sent[1]["body"])["message"]
    assert headers["x-request-id"] in caplog.text
    assert "ValueError" in caplog.text
    assert SECRET not in str(sent) + caplog.text


def test_what_an_endpoint_says_of_itself_stays_here(alive: Server) -> None:
    status, _, answer = alive.post("/rerank", ASKED | {"model": "refused"})
    assert status == 502
    assert "secret" not in str(answer)
    assert "127.0.0.1" not in str(answer)


def test_the_log_has_lines_of_json_with_request_ids_and_no_text(served: Server) -> None:
    ids = [served.post("/rerank", {"query": SECRET, "documents": [SECRET, SECRET + "!"]})[1]["x-request-id"]]
    ids.append(served.post("/rerank", {"query": SECRET, "documents": SECRET})[1]["x-request-id"])
    ids.append(
        served.post("/rerank", {"query": SECRET, "documents": [SECRET] * 2, "model": "refused"})[1]["x-request-id"]
    )
    ids.append(served.post("/rerank", {"query": SECRET + "\ud83d", "documents": [SECRET]})[1]["x-request-id"])
    until = time.monotonic() + 20  # a line is written after its answer
    lines: dict[str, Any] = {}
    while not set(ids) <= set(lines) and time.monotonic() < until:
        lines = {line["request_id"]: line for line in served.lines() if "request_id" in line}
    assert [lines[one]["status"] for one in ids] == [200, 422, 502, 400]
    assert (lines[ids[0]]["key"], lines[ids[0]]["model"], lines[ids[0]]["documents"]) == ("team-a", "nano", 2)
    log = served.log.read_text()
    assert SECRET not in log
    assert "key-a" not in log


# Whom a browser talks to (CVE-2025-66416 and others, CVE-2023-48022).


@pytest.mark.parametrize("path", [*GET, *POST, "/"])
def test_a_name_that_was_bound_anew_reaches_no_route(served: Server, path: str) -> None:
    method, body = ("POST", json.dumps(ASKED).encode()) if path in POST else ("GET", None)
    assert served.request(method, path, body, Host="evil.example:80")[0] == 403
    assert served.request(method, path, body, Origin="http://evil.example")[0] == 403
    assert served.request(method, path, body, Origin="null")[0] == 403


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_load_balancers_ask_by_any_address_or_none_with_or_without_the_body(served: Server, path: str) -> None:
    assert served.get(path, Authorization="", Host="10.1.2.3:8100")[0] == 200
    for method, host in (("HEAD", "Host: 10.1.2.3:8100\r\n"), ("GET", "")):
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as sock:
            sock.sendall(f"{method} {path} HTTP/1.0\r\n{host}\r\n".encode())
            head, _, body = sock.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.split()[1] == b"200"
        assert bool(body) == (method == "GET")
    assert served.get(path, Origin="http://evil.example")[0] == 403, "a page elsewhere is no load balancer"


def test_the_own_origin_may_ask_and_no_other_is_invited(served: Server) -> None:
    for host in ("127.0.0.1", "localhost", "[::1]"):
        status, headers, _ = served.post("/rerank", ASKED, Host=f"{host}:{served.port}", Origin=f"http://{host}")
        assert status == 200
        assert not [name for name in headers if name.startswith("access-control")]
    assert served.request("OPTIONS", "/rerank", Origin="http://localhost")[0] == 405


def test_names_that_were_allowed_are_known() -> None:
    settings = ServeSettings(
        allowed_hosts=("ranker.example", "https://page.example", "port.example:8443", "2001:db8::5", "::", "")
    )
    known = ("Ranker.Example:8100", "page.example", "port.example:1", "[2001:db8::5]:8100")
    for name, status in (*((name, True) for name in known), ("other.example", False), ("", False), ("null:", False)):
        headers = starlette.datastructures.Headers(raw=[(b"host", name.encode())])
        if status:
            assert Guard(None, settings).check(headers, "/rerank") == ""  # type: ignore[arg-type]
        else:
            with pytest.raises(Exception, match="allowed_hosts"):
                Guard(None, settings).check(headers, "/rerank")  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "ranker.example"])
def test_an_address_that_others_reach_needs_keys(host: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--host", host])
    assert result.exit_code == 1
    assert "keys" in result.output
    keys = [{"name": "a", "sha256": hashed("x")}]
    assert load_settings(None, {"host": host, "keys": keys}).host == host
    assert ServeSettings().host == "127.0.0.1"


def test_ranges_of_a_file_are_not_served(alive: Server) -> None:
    assert int(starlette.__version__.split(".")[0]) >= 1
    assert not any(re.search("StaticFiles|FileResponse", text) for text in SOURCES.values())
    ranges = "bytes=" + ",".join(f"{i}-{i + 1}" for i in range(400))
    assert alive.get("/openapi.json", Range=ranges)[0] == 200


# Unknown settings.


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rankers": {"a": {"modle": "nano"}}}, "did you mean 'model'"),
        ({"limits": {"body_byte": 1}}, "did you mean 'limits.body_bytes'"),
        ({"rankers": {"a": {"model": "nano"}}, "default": "b"}, "none of the rankers"),
        ({"rankers": {}}, "rankers"),
        ({"keys": [{"name": "a", "sha256": hashed("x")}] * 2}, "one name"),
        (
            {"keys": [{"name": "a", "sha256": hashed("x"), "models": ["nan"]}]},
            "keys.0.models: 'nan' is not one of nano",
        ),
        ({"keys": [{"name": "a", "sha256": hashed("x"), "models": ["nan"]}]}, "did you mean 'nano'?"),
        ({"port": 70000}, "port"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_settings(None, settings)


# The end.


def test_a_server_that_is_told_to_stop_while_it_reads_a_catalogue_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "items.csv")  # which says nothing for as long as nobody writes
    settings = {"port": free_port(), "rankers": {"nano": {}}, "catalogues": {"shop": {"items": "items.csv"}}}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "r1ranker", "serve", "--config", "serve.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("shop" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM


def test_what_runs_is_finished_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    with FaultServer(delay=0.02) as endpoint:
        rankers = {"m": {"model": "m", "base_urls": [endpoint.base_url], "concurrency": 8}}
        with running(tmp_path, {"rankers": rankers}) as server, ThreadPoolExecutor(16) as pool:

            def ask(client: int) -> list[int]:
                seen = []
                documents = [f"{client} {i}" for i in range(6)]
                for _ in range(200):
                    try:
                        status, _, answer = server.post("/rerank", {"query": "q", "documents": documents})
                    except (ConnectionRefusedError, ConnectionResetError, http.client.RemoteDisconnected):
                        return [*seen, 0]  # nobody is there any more
                    seen.append(status)
                    if status == 200:
                        assert [result["index"] for result in answer["results"]] == [5, 4, 3, 2, 1, 0]
                return seen

            asking = [pool.submit(ask, client) for client in range(16)]
            until = time.monotonic() + 60
            while endpoint.stats["requests"] < 100 and time.monotonic() < until:
                time.sleep(0.01)
            code = server.stop(signal.SIGTERM)
            seen = [status for one in asking for status in one.result(120)]
        lines = [line for line in server.lines() if line.get("path") == "/rerank"]
    assert code == 0
    assert set(seen) <= {0, 200, 503}
    assert seen.count(200) == sum(line["status"] == 200 for line in lines), "none that was taken was lost"
    assert {line["status"] for line in lines} <= {200, 503}


def test_a_body_that_does_not_come_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "BODY_SECONDS", 0.05)
    sent: list[dict[str, Any]] = []

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass

    async def drips() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(reads, ServeSettings())(scope, drips, keep))
    assert sent[0]["status"] == 408


def test_a_client_that_goes_in_the_middle_leaves_nothing_behind(alive: Server) -> None:
    head = "POST /rerank HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key-a\r\nContent-Length: 500\r\n\r\n"
    whole = json.dumps(ASKED | {"model": "slow"}).encode()
    for sent in (head.encode() + b'{"query":', head.replace("500", str(len(whole))).encode() + whole, b"POST /rer"):
        with socket.create_connection(("127.0.0.1", alive.port), timeout=60) as sock:
            sock.sendall(sent)
    time.sleep(0.2)
    assert not [line for line in alive.lines() if line["level"] == "error" and "request " in line.get("message", "")]
