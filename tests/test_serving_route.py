"""The routing proxy: `r1ranker serve` in a process of its own, upstreams that fail in every way, OpenAI's client."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
import yaml

import serving_server
from fault_server import FaultServer
from llm_server import ANSWER, FAILING, LLMServer, events, whole
from r1ranker.datasets import load
from r1ranker.errors import ConfigError
from r1ranker.ranking.spec import RankerSpec
from r1ranker.serving.decide import pool_of, read_ask
from r1ranker.serving.needs import needs_of
from r1ranker.serving.route import llms_for
from r1ranker.serving.settings import ServeSettings, load_settings
from serving_server import free_port, hashed

ASK = [{"role": "user", "content": "how long do owls live"}]
IMAGE = [{"role": "user", "content": [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {}}]}]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "x-odd": [1.0, None]}}}
WAYS = [*FAILING, "dead", "keyless", "moved", "refused", "too-long", "vllm-too-long"]
MEANINGLESS = [("error-first", False)]


NOTE = "na\u00efve \u2603"
"""What an upstream may write into a header: no character of Latin-1 is the last one."""


class Odd(BaseHTTPRequestHandler):
    """An upstream whose headers are UTF-8."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = [whole(body)] if not body.get("stream") else events(body)
        data = b"".join(part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts)
        kind = "text/event-stream" if body.get("stream") else "application/json"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nX-Note: {NOTE}\r\n\r\n"
        self.wfile.write(head.encode() + data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def odd_upstream() -> Iterator[str]:
    """Its base URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


class Proxy(NamedTuple):
    url: str
    upstream: LLMServer
    folder: Path
    settings: ServeSettings
    server: serving_server.Server


def llm(name: str, upstream: str = "main", **more: Any) -> dict[str, Any]:
    return {"upstream": upstream, "name": name, "input_price": 1.0, "output_price": 2.0} | more


def configuration(upstream: str, ranker: str, folder: Path, odd: str) -> dict[str, Any]:
    """The ranker at the endpoint puts the last LLM of a router first, so `r-500` tries `500`, then `good`."""
    failing = {f"m-{name}": llm(name, "impatient" if name == "timeout" else "main") for name in FAILING}
    failing |= {"m-dead": llm("good", "dead"), "m-keyless": llm("401"), "m-moved": llm("moved")}
    failing |= {f"m-{name}": llm(name) for name in ("400", "refused", "too-long", "vllm-too-long")}
    models = {
        "good": llm("vendor/good", tools=False, context=2000, description="Quick."),
        "eyes": llm("good", images=True, input_price=10.0, output_price=20.0, size="70B", context=100_000),
        "slow": llm("slow"),
        "long": llm("long"),
        "midway": llm("midway"),
        "openly": llm("openly"),
        "odd": llm("good", "odd"),
    }
    routers: dict[str, Any] = {f"r-{name[2:]}": {"models": ["good", name]} for name in failing}
    routers["auto"] = {"models": ["good", "eyes"]}
    routers["blind"] = {"models": ["good"]}
    routers["hopeless"] = {"models": ["m-500", "m-429", "m-dead"]}
    routers["busy"] = {"models": ["m-429"]}
    routers["toy"] = {"models": ["good", "eyes", "slow"], "ranker": "nano", "prior": {"eyes": 0.7, "good": 0.2}}
    return {
        "default": "last-first",
        "rankers": {"last-first": {"model": "m", "base_urls": [ranker]}, "nano": {"model": "nano"}},
        "store": str(folder / "spend" / "serve.sqlite"),
        "keys": [
            {"name": "all", "sha256": hashed("key-all")},
            {"name": "poor", "sha256": hashed("key-poor"), "budget_per_day": 0.003},
            {"name": "narrow", "sha256": hashed("key-narrow"), "models": ["auto", "good"]},
            {"name": "routers", "sha256": hashed("key-routers"), "models": ["auto", "last-first"]},
        ],
        "upstreams": {
            "main": {"base_url": upstream, "api_key_env": "TEST_UPSTREAM_KEY"},
            "impatient": {"base_url": upstream, "timeout_s": 0.3},
            "odd": {"base_url": odd},
            "dead": {"base_url": f"http://127.0.0.1:{free_port()}/v1"},
        },
        "models": models | failing,
        "routers": routers,
    }


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@contextmanager
def running(folder: Path) -> Iterator[Proxy]:
    """A server in a process of its own; `benchmarks/node_client.py` uses it too."""
    with pytest.MonkeyPatch.context() as patch, LLMServer() as upstream, FaultServer() as ranker, odd_upstream() as odd:
        patch.setenv("TEST_UPSTREAM_KEY", "sk-server")
        settings = configuration(upstream.base_url, ranker.base_url, folder, odd)
        with serving_server.running(folder, settings) as server:
            (folder / "serve.yaml").write_text(yaml.safe_dump(settings))
            yield Proxy(f"{server.url}/v1", upstream, folder, ServeSettings.model_validate(settings), server)


@pytest.fixture
def client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    proxy.upstream.asked.clear()
    with openai.OpenAI(base_url=proxy.url, api_key="key-all", max_retries=0) as client:
        yield client


def post(proxy: Proxy, path: str, body: Any, key: str = "key-all", **headers: str) -> tuple[int, Any, Any]:
    """Status, headers and JSON of a raw request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    names |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(proxy.url + path, data, names)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.loads(error.read())


def test_the_chosen_llm_answers_and_headers_say_why(proxy: Proxy, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=ASK)
    answer = raw.parse()
    assert answer.choices[0].message.content == ANSWER
    assert answer.model == "good"
    assert raw.headers["x-r1ranker-model"] == "eyes"
    assert raw.headers["x-r1ranker-rank"] == "1"
    assert raw.headers["x-r1ranker-fallbacks"] == "0"
    assert "first of 2 by last-first" in raw.headers["x-r1ranker-reason"]
    assert float(raw.headers["x-r1ranker-cost"]) == pytest.approx((1000 * 10 + 100 * 20) / 1e6)
    assert float(raw.headers["x-r1ranker-router-ms"]) > 0
    assert "x-r1ranker-order" not in raw.headers


def test_only_the_model_changes_and_the_key_for_us_leaves(proxy: Proxy, client: openai.OpenAI) -> None:
    body = '{ "seed":18446744073709551617, "router": {"fallbacks": 0},"temperature": 1.0,\n "model" : "auto",'
    body += ' "odd": {"model": "auto", "n": [1e400, "\\u00e9\\ud83e"]}, "messages": [{"role":"user","content":"é"}] }'
    status, _, _ = post(proxy, "/chat/completions", body.encode())
    assert status == 200
    expected = body.replace('"router": {"fallbacks": 0},', "").replace('"model" : "auto"', '"model" : "good"')
    sent = proxy.upstream.asked[-1].body.decode()
    assert sent.replace(" ", "") == expected.replace(" ", "")
    assert "18446744073709551617" in sent and "1e400" in sent


def test_the_clients_credentials_never_go_upstream(proxy: Proxy, client: openai.OpenAI) -> None:
    post(proxy, "/chat/completions", {"model": "good", "messages": ASK}, X_Api_Key="mine", Cookie="c=1", X_Trace="7")
    headers = {name.lower(): value for name, value in proxy.upstream.asked[-1].headers.items()}
    assert headers["authorization"] == "Bearer sk-server"
    assert headers["x-trace"] == "7"
    assert not {"x-api-key", "cookie"} & headers.keys()
    assert "key-all" not in str(headers)


def test_an_upstream_without_a_key_is_sent_none(proxy: Proxy, client: openai.OpenAI) -> None:
    post(proxy, "/chat/completions", {"model": "r-timeout", "messages": ASK})
    assert "Authorization" not in proxy.upstream.asked[0].headers


def test_a_real_models_name_passes_unrouted(proxy: Proxy, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="good", messages=ASK)
    assert proxy.upstream.asked[-1].values["model"] == "vendor/good"
    assert raw.headers["x-r1ranker-reason"].endswith("named by the client")
    assert raw.headers["x-upstream"] == "yes"
    assert "set-cookie" not in raw.headers


def test_a_stream_passes_byte_by_byte_with_its_usage(proxy: Proxy, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="auto", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).strip() == ANSWER
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == 1000


def test_the_bytes_of_a_stream_are_the_upstreams(proxy: Proxy, client: openai.OpenAI) -> None:
    body = {"model": "auto", "messages": ASK, "stream": True}
    assert read_bytes(proxy, body) == read_bytes(proxy, body | {"model": "good"}, proxy.upstream.base_url)


def read_bytes(proxy: Proxy, body: dict[str, Any], url: str = "") -> bytes:
    names = {"Authorization": "Bearer key-all", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url or proxy.url}/chat/completions", json.dumps(body).encode(), names)
    with urllib.request.urlopen(request) as answer:
        return bytes(answer.read())


def test_tools_pass_untouched_to_an_llm_that_calls_them(proxy: Proxy, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="auto", messages=ASK, tools=[TOOL])
    assert proxy.upstream.asked[-1].values["tools"] == [TOOL]
    calls = answer.choices[0].message.tool_calls
    assert calls is not None and calls[0].function.arguments == '{"bird": "owl"}'


def test_images_are_refused_where_no_upstream_takes_them(proxy: Proxy, client: openai.OpenAI) -> None:
    assert client.chat.completions.create(model="auto", messages=IMAGE).choices
    with pytest.raises(openai.BadRequestError, match="good: images"):
        client.chat.completions.create(model="blind", messages=IMAGE)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"messages": [{"role": "user", "content": "owl " * 2100}]}, "context"),
        ({"max_tokens": 2000}, "context"),
        ({"router": {"max_cost": 0.0001}}, "max_cost"),
        ({"router": {"candidates": ["eyes"]}}, "candidates"),
    ],
)
def test_hard_filters_stand_before_the_ranker(proxy: Proxy, more: dict[str, Any], why: str) -> None:
    _, _, seen = post(proxy, "/route", {"model": "auto", "messages": ASK} | more)
    status, _, answer = (
        post(proxy, "/route", {"model": "blind", "messages": ASK} | more)
        if why != "candidates"
        else (
            400,
            None,
            {"error": {"code": "no_model_fits"}},
        )
    )
    assert seen.get("left_out", {}).get("good", "") == why or why == "max_cost"
    assert (status, answer["error"]["code"]) == (400, "no_model_fits")


def test_route_tells_the_order_and_asks_nobody(proxy: Proxy, client: openai.OpenAI) -> None:
    status, _, answer = post(proxy, "/route", {"model": "auto", "messages": ASK})
    assert status == 200 and not proxy.upstream.asked
    assert [one["model"] for one in answer["order"]] == ["eyes", "good"]
    assert 1 >= answer["order"][0]["score"] > answer["order"][1]["score"] > 0
    assert answer["order"][0]["cost"] > answer["order"][1]["cost"] > 0


def test_wishes_may_stand_in_headers_and_the_order_is_told_on_demand(proxy: Proxy, client: openai.OpenAI) -> None:
    headers = {"x-r1ranker-candidates": "good", "x-r1ranker-explain": "true"}
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=ASK, extra_headers=headers)
    assert raw.headers["x-r1ranker-model"] == "good"
    order = json.loads(raw.headers["x-r1ranker-order"])
    assert [one["model"] for one in order["order"]] == ["good"] and order["left_out"] == {"eyes": "candidates"}
    assert not any(name.lower().startswith("x-r1ranker") for name in proxy.upstream.asked[-1].headers)


@pytest.mark.parametrize(
    ("failing", "stream"),
    [(name, stream) for name in WAYS for stream in (False, True) if (name, stream) not in MEANINGLESS],
)
def test_a_failure_before_the_first_byte_falls_back(
    proxy: Proxy, client: openai.OpenAI, failing: str, stream: bool
) -> None:
    create = client.chat.completions.with_raw_response.create
    raw = create(model=f"r-{failing}", messages=ASK, stream=stream)  # type: ignore[call-overload]
    assert raw.headers["x-r1ranker-model"] == "good"
    assert raw.headers["x-r1ranker-rank"] == "2"
    assert raw.headers["x-r1ranker-fallbacks"] == "1"
    assert f"m-{failing}:" in raw.headers["x-r1ranker-reason"]
    assert "127.0.0.1" not in raw.headers["x-r1ranker-reason"]


def test_a_bad_request_is_answered_by_the_upstream_and_not_tried_again(proxy: Proxy, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="told to say 400"):
        client.chat.completions.create(model="r-400", messages=ASK)
    assert len(proxy.upstream.asked) == 1


def test_fallbacks_can_be_switched_off(proxy: Proxy, client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="m-500: status 500") as raised:
        client.chat.completions.create(model="r-500", messages=ASK, extra_body={"router": {"fallbacks": 0}})
    assert raised.value.status_code == 502


def test_when_all_were_tried_the_client_is_told_not_to_retry(proxy: Proxy, client: openai.OpenAI) -> None:
    again = client.with_options(max_retries=2)
    with pytest.raises(openai.InternalServerError, match="m-dead: cannot be reached; m-429: status 429") as raised:
        again.chat.completions.create(model="hopeless", messages=ASK)
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert len(proxy.upstream.asked) == 2


def test_where_all_are_busy_the_client_learns_when_to_come_back(proxy: Proxy, client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model="busy", messages=ASK)
    assert raised.value.response.headers["retry-after"] == "7"


def test_an_unrouted_upstreams_error_passes_as_it_is_unless_it_is_about_our_key(
    proxy: Proxy, client: openai.OpenAI
) -> None:
    status, headers, answer = post(proxy, "/chat/completions", {"model": "m-429", "messages": ASK})
    assert (status, headers["retry-after"], answer) == (429, "7", {"error": {"message": "told to say 429"}})
    assert post(proxy, "/chat/completions", {"model": "m-keyless", "messages": ASK})[0] == 502


@pytest.mark.parametrize("name", ["midway", "openly"])
def test_a_stream_cut_midway_ends_in_an_error_the_client_raises(proxy: Proxy, client: openai.OpenAI, name: str) -> None:
    words = []
    with pytest.raises(openai.APIError, match=f"{name}: the stream broke off"):
        for chunk in client.chat.completions.create(model=name, messages=ASK, stream=True):
            words.append(chunk.choices[0].delta.content)
    assert words == ["", "Owls "]


def test_headers_of_any_encoding_pass_as_they_came_and_the_call_is_settled(proxy: Proxy) -> None:
    def spent() -> int:
        rows = spend(proxy, "model = 'odd'")
        return int(rows[0][2]) if rows else 0  # tokens of prompts, which are written down when an answer has ended

    for more in ({}, {"stream": True}):
        before = spent()
        names = {"Authorization": "Bearer key-all", "Content-Type": "application/json"}
        body = json.dumps({"model": "odd", "messages": ASK} | more).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{proxy.url}/chat/completions", body, names)) as answer:
            assert answer.status == 200
            assert answer.headers["x-note"].encode("latin-1").decode() == NOTE
            assert answer.read()
        for _ in range(50):
            if spent() > before:
                break
            time.sleep(0.1)
        assert spent() > before


def test_a_client_that_leaves_ends_the_call_upstream_and_its_cost_is_counted(
    proxy: Proxy, client: openai.OpenAI
) -> None:
    stream = client.chat.completions.create(model="slow", messages=ASK, stream=True)
    next(iter(stream))
    stream.close()
    assert proxy.upstream.closed.wait(10)
    for _ in range(50):
        if rows := spend(proxy, "model = 'slow' AND completion_tokens > 0"):
            break
        time.sleep(0.1)
    assert rows


def test_a_client_that_leaves_before_the_answer_begins_ends_the_call_upstream_too(
    proxy: Proxy, client: openai.OpenAI
) -> None:
    proxy.upstream.closed.clear()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(model="long", messages=ASK)
    assert proxy.upstream.closed.wait(10)
    for _ in range(50):
        if rows := spend(proxy, "model = 'long' AND failed = 1"):
            break
        time.sleep(0.1)
    assert rows and rows[0][1] == pytest.approx(500 * 2 / 1e6, rel=0.05), "it was asked, and may be billed"


def test_what_is_set_aside_for_a_client_that_has_gone_is_free_again(proxy: Proxy, client: openai.OpenAI) -> None:
    def spent() -> Any:
        return spend(proxy, "key = 'all'")[0][1]

    client.chat.completions.create(model="good", messages=ASK)
    before = spent()
    with closing(sqlite3.connect(proxy.settings.store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # as another server does that writes down a call
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).chat.completions.create(model="good", messages=ASK)
        other.execute("ROLLBACK")
    time.sleep(1)
    assert spent() == pytest.approx(before)


@pytest.mark.parametrize("limit", [10**30, 10**400])
def test_a_limit_beyond_all_numbers_takes_nothing_from_what_was_spent(
    proxy: Proxy, client: openai.OpenAI, limit: int
) -> None:
    client.chat.completions.create(model="eyes", messages=ASK)
    ((_, before, _, _),) = spend(proxy, "key = 'all' AND model = 'eyes'")
    body = {"model": "eyes", "messages": ASK, "max_tokens": limit, "n": limit}
    assert post(proxy, "/chat/completions", body)[0] == 200
    ((_, after, _, _),) = spend(proxy, "key = 'all' AND model = 'eyes'")
    assert after == pytest.approx(before + 0.012, abs=1e-6)


def test_a_request_that_is_too_dear_for_its_key_is_told_what_is_left(proxy: Proxy) -> None:
    body = {"model": "good", "messages": ASK, "max_tokens": 9000}
    status, _, answer = post(proxy, "/chat/completions", body, "key-poor")
    assert status == 429
    assert "the budget of 0.003 dollars a day has 0.0030 left, and this may cost 0.0180" in answer["error"]["message"]


def spend(proxy: Proxy, where: str) -> list[Any]:
    with closing(sqlite3.connect(proxy.settings.store)) as db:
        return db.execute(
            f"SELECT sum(calls), sum(cost), sum(prompt_tokens), sum(router_seconds) FROM spend WHERE {where} "
            "HAVING count(*) > 0"
        ).fetchall()


def test_an_exhausted_budget_is_refused_once_and_for_today(proxy: Proxy) -> None:
    with openai.OpenAI(base_url=proxy.url, api_key="key-poor", max_retries=2) as poor:
        proxy.upstream.asked.clear()
        first = poor.chat.completions.with_raw_response.create(model="auto", messages=ASK)
        assert first.headers["x-r1ranker-model"] == "good"  # `eyes` would cost more than is left
        assert "budget 1" in first.headers["x-r1ranker-reason"]
        with pytest.raises(openai.RateLimitError, match="budget") as raised:
            for _ in range(5):
                poor.chat.completions.create(model="good", messages=ASK)
        assert raised.value.code == "insufficient_quota"
        assert raised.value.response.headers["x-should-retry"] == "false"
        assert 0 < int(raised.value.response.headers["retry-after"]) <= 86401
        ((calls, cost, tokens, _),) = spend(proxy, "key = 'poor' AND model = 'good'")
        ((routed, _, _, seconds),) = spend(proxy, "key = 'poor' AND model = 'auto'")
        assert len(proxy.upstream.asked) == calls == 2
        assert cost == pytest.approx(2 * (1000 * 1 + 100 * 2) / 1e6)
        assert tokens == 2000 and routed == 1 and seconds > 0
        with pytest.raises(openai.RateLimitError):
            poor.chat.completions.create(model="auto", messages=ASK)


def test_a_key_uses_what_it_may_and_sees_that_alone(proxy: Proxy) -> None:
    with openai.OpenAI(base_url=proxy.url, api_key="key-narrow", max_retries=0) as narrow:
        raw = narrow.chat.completions.with_raw_response.create(model="auto", messages=ASK)
        assert raw.headers["x-r1ranker-model"] == "good"
        with pytest.raises(openai.PermissionDeniedError):
            narrow.chat.completions.create(model="eyes", messages=ASK)
        assert {model.id for model in narrow.models.list()} == {"auto", "good"}


def test_where_a_key_names_routers_alone_they_choose_among_all_llms(proxy: Proxy) -> None:
    body = {"model": "auto", "messages": ASK}
    for key, names in (("key-routers", ["eyes", "good"]), ("key-narrow", ["good"])):
        assert [one["model"] for one in post(proxy, "/route", body, key)[2]["order"]] == names


def test_a_name_that_does_not_exist_opens_nothing(proxy: Proxy) -> None:
    key = {"name": "a", "sha256": hashed("x"), "models": ["auto", "goood"]}
    settings = yaml.safe_load((proxy.folder / "serve.yaml").read_text())
    with pytest.raises(ConfigError, match=r"keys.1.models: 'goood' is not one of .*; did you mean 'good'"):
        load_settings(None, settings | {"keys": [settings["keys"][0], key]})


def test_llms_are_all_there_are_only_where_no_other_name_was_written() -> None:
    upstreams = {"main": {"base_url": "http://127.0.0.1:1/v1"}}
    models = {"good": llm("good"), "eyes": llm("eyes")}
    settings = load_settings(None, {"rankers": {"good": {}, "nano": {}}, "upstreams": upstreams, "models": models})
    assert llms_for(settings, None) is llms_for(settings, ("auto", "nano")) is None
    assert llms_for(settings, ("auto", "good")) == {"auto", "good"}, "a ranker may have the name of an LLM"
    assert llms_for(settings, ("auto", "goood")) == {"auto", "goood"}, "which is none of them"


def test_models_lists_rankers_routers_and_llms(proxy: Proxy, client: openai.OpenAI) -> None:
    assert {"auto", "toy", "good", "eyes", "nano"} <= {model.id for model in client.models.list()}


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key"])
def test_a_body_cannot_name_an_address_or_a_key(proxy: Proxy, client: openai.OpenAI, name: str) -> None:
    status, _, answer = post(proxy, "/chat/completions", {"model": "good", "messages": ASK, name: "http://evil"})
    assert (status, answer["error"]["param"]) == (400, name)
    assert not proxy.upstream.asked


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'{"model": "auto", "model": "good"}', 400),
        (b"\xff", 400),
        (b'{"a":' + b"[" * 100_000, 400),
        ({"messages": ASK}, 400),
        ({"model": 7}, 400),
        ({"model": "auot", "messages": ASK}, 404),
        ({"model": "auto:best", "messages": ASK}, 404),
        ({"model": "auto", "router": 3}, 400),
        ({"model": "auto", "router": {"cost_quality": 2}}, 400),
        ({"model": "auto", "router": {"api_base": "http://evil"}}, 400),
        ({"model": "auto", "router": {"candidates": ["slow"]}}, 400),
    ],
)
def test_a_wrong_request_is_refused_in_words(proxy: Proxy, body: Any, status: int) -> None:
    given, _, answer = post(proxy, "/chat/completions", body)
    assert given == status
    assert answer["error"]["message"] and answer["error"]["type"]


@pytest.mark.parametrize("messages", [None, [], "hello", [7], [{"role": "user", "content": [7, {"type": 3}]}]])
def test_odd_messages_are_the_upstreams_to_judge(proxy: Proxy, messages: Any) -> None:
    assert post(proxy, "/chat/completions", {"model": "auto", "messages": messages})[0] == 200


def test_an_order_is_that_of_the_ranker_in_this_process(proxy: Proxy) -> None:
    values = {"model": "toy:quality", "messages": ASK}
    asked = read_ask("toy:quality", values, {}, proxy.settings)
    assert asked is not None
    problem = pool_of(asked, needs_of(values), proxy.settings).problem
    assert problem is not None
    expected = RankerSpec(model="nano").build().rank(problem).docids
    _, _, answer = post(proxy, "/route", values)
    assert tuple(one["model"] for one in answer["order"]) == expected


def test_the_log_says_which_llm_answered_and_holds_no_text(proxy: Proxy, client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(model="r-500", messages=ASK)
    name = answer.headers["x-request-id"]
    for _ in range(50):
        if lines := [line for line in proxy.server.lines() if line.get("request_id") == name]:
            break
        time.sleep(0.1)
    assert (lines[0]["model"], lines[0]["fallbacks"]) == ("good", 1)
    assert "owls" not in proxy.server.log.read_text().lower()


def test_metrics_count_what_each_llm_answered_took_and_failed_at(proxy: Proxy, client: openai.OpenAI) -> None:
    def counts() -> dict[str, float]:
        _, _, text = proxy.server.get("/metrics", Authorization="Bearer key-all")
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
        return {name: float(value) for name, value in lines if name.startswith("r1ranker_upstream")}

    before = counts()
    client.chat.completions.create(model="r-500", messages=ASK)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="midway", messages=ASK, stream=True))
    more = {name: value - before.get(name, 0.0) for name, value in counts().items() if "_bucket" not in name}
    assert more['r1ranker_upstream_failure_total{err="500",model="m-500"}'] == 1
    assert more['r1ranker_upstream_success_total{model="good"}'] == 1
    assert more['r1ranker_upstream_first_byte_count{model="good"}'] == 1
    assert more['r1ranker_upstream_tokens_total{kind="read",model="good"}'] > 0
    assert more['r1ranker_upstream_cost_total{model="good"}'] > 0
    assert more['r1ranker_upstream_failure_total{err="broken off",model="midway"}'] == 1


def test_a_server_whose_upstream_lacks_its_key_does_not_start(proxy: Proxy) -> None:
    command = [sys.executable, "-m", "r1ranker", "serve", "--config", str(proxy.folder / "serve.yaml")]
    environment = {name: value for name, value in os.environ.items() if name != "TEST_UPSTREAM_KEY"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "TEST_UPSTREAM_KEY holds no key" in done.stderr


def test_feedback_becomes_a_line_that_a_router_learns_from(proxy: Proxy, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=ASK)
    ours = raw.headers["x-r1ranker-id"]
    assert post(proxy, "/feedback", {"id": ours, "score": 1})[0] == 200
    assert post(proxy, "/feedback", {"id": ours, "score": 1})[0] == 200
    assert post(proxy, "/feedback", {"id": ours, "score": 0})[0] == 409
    assert post(proxy, "/feedback", {"id": ours, "score": 1}, "key-narrow")[0] == 404
    assert post(proxy, "/feedback", {"id": "nobody", "score": 1})[0] == 404
    assert post(proxy, "/feedback", {"id": ours, "score": 2})[0] == 422
    log = proxy.settings.store.with_name("feedback.jsonl")
    (line,) = log.read_text().splitlines()
    record = json.loads(line)
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "prompt": "how long do owls live",
        "model": "eyes",
        "score": 1.0,
        "cost": pytest.approx(0.012),
        "prompt_tokens": 1000,
        "completion_tokens": 100,
    }
    other = client.chat.completions.with_raw_response.create(model="good", messages=ASK).headers["x-r1ranker-id"]
    assert post(proxy, "/feedback", {"id": other, "score": 0.5})[0] == 200
    splits = load("routing-log", log, llms="serve.llms.json", objectives=["performance"])
    (problem,) = [problem for problems in splits.values() for problem in problems]
    asked = read_ask("auto:quality", {}, {}, proxy.settings)
    assert asked is not None
    shown = pool_of(asked, needs_of({"messages": ASK}), proxy.settings).problem
    assert shown is not None and problem.gains == {"eyes": 10, "good": 0}
    assert (problem.query, problem.objective) == (shown.query, shown.objective)
    assert set(problem.candidates) == set(shown.candidates)


def test_the_command_shows_the_order_and_who_is_left_out(proxy: Proxy, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "r1ranker", "route", "how long do owls live", "--json", str(tmp_path / "a.json")]
    command += ["--config", str(proxy.folder / "serve.yaml"), "--router", "auto", "--max-cost", "0.005"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout and "max_cost" in done.stdout
    answer = json.loads((tmp_path / "a.json").read_text())
    assert [one["model"] for one in answer["order"]] == ["good"] and answer["left_out"] == {"eyes": "max_cost"}
