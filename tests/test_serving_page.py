"""The page at `/` of a running server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from r1ranker.serving.html import build
from serving_server import Server


class Parts(HTMLParser):
    """Texts of scripts and styles, and the attributes of every tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[tuple[str, str]] = []
        self.attributes: list[dict[str, str | None]] = []
        self.last = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.last = tag
        self.attributes.append(dict(attributes))

    def handle_data(self, data: str) -> None:
        if self.last in ("script", "style") and data.strip():
            self.texts.append((self.last, data))


@pytest.fixture(scope="module")
def answer(served: Server) -> tuple[dict[str, str], str]:
    """Headers and page, asked for without a key."""
    status, headers, html = served.request("GET", "/", Authorization="")
    assert status == 200
    return headers, html


def hashed_text(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_page_needs_no_key_and_holds_no_data(answer: tuple[dict[str, str], str]) -> None:
    headers, html = answer
    assert headers["content-type"] == "text/html; charset=utf-8"
    data, _ = (text for tag, text in Parts(html).texts if tag == "script")
    assert json.loads(data) == {"mode": "serve"}


def test_policy_lets_only_the_pages_own_style_and_script_run(answer: tuple[dict[str, str], str]) -> None:
    headers, html = answer
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    style, _, script = (text for _, text in Parts(html).texts)
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == hashed_text(script)
    assert policy["style-src"] == hashed_text(style)
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_page_loads_nothing_from_elsewhere(answer: tuple[dict[str, str], str]) -> None:
    html = answer[1]
    addresses = [value for one in Parts(html).attributes for name, value in one.items() if name in ("src", "href")]
    assert all(address and address.startswith(("#", "data:")) for address in addresses)
    assert not re.search("https?://|@import|url[(]", html.replace("http://www.w3.org/2000/svg", ""))


def test_every_field_of_the_page_has_a_label(answer: tuple[dict[str, str], str]) -> None:
    html = answer[1]
    fields = set(re.findall(r'<(?:textarea|select|input) id="([^"]+)"', html))
    wrapped = {"file", "only-broken"}
    assert fields - wrapped == set(re.findall(r'<label for="([^"]+)"', html))
    assert 'aria-live="polite"' in html


def test_what_the_page_asks_for_is_there(served: Server) -> None:
    models = served.request("GET", "/v1/models")[2]["data"]
    assert {"id", "kind"} <= models[0].keys()
    assert {model["kind"] for model in models} == {"ranker"}
    body = {"model": "nano", "query": "q", "documents": ["<b>a</b>", "b", "c"], "explain": True}
    status, _, ranked = served.post("/v1/rerank", body)
    assert status == 200
    trace = ranked["explain"]
    assert [candidate["text"] for candidate in trace["candidates"]] == body["documents"]
    assert sorted(trace["docids"]) == sorted(candidate["docid"] for candidate in trace["candidates"])
    assert trace["ask"] == "worst"
    assert [len(step["pool"]) for step in trace["steps"]] == [3, 2]
    assert {"calls", "prompt_tokens", "generated_tokens", "seconds", "cost"} <= trace["usage"].keys()


def test_texts_cannot_end_the_element_that_holds_them() -> None:
    html = build({"mode": "traces", "text": "</script><!--<script>@SCRIPT@ \ud800"}, asks=False).html
    assert html.count("</script>") == 2
    data, _ = (text for tag, text in Parts(html).texts if tag == "script")
    assert json.loads(data)["text"] == "</script><!--<script>@SCRIPT@ \ud800"
