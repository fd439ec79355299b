"""The page in which rankings are watched, as one string. In: its data. Out: HTML that asks nobody else for anything.

    page = build({"mode": "serve"}, asks=True)

Its parts stand in the folder `assets`: a frame, a style, and a script in several files, which are joined here. The
policy lets these very texts run, by their hashes, and nothing else; data are JSON in which no markup can begin.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

SCRIPTS = ("model.js", "draw.js", "traces.js", "rank.js", "route.js", "app.js")
"""In the order in which they are joined: each uses what stands before it."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page and the headers it goes out with."""

    html: str
    headers: Mapping[str, str]


def build(data: Mapping[str, Any], *, asks: bool) -> Page:
    """The page with its data. asks: it may ask the server that it came from, and nobody else; else nobody at all."""
    style = _part("page.css")
    script = "(() => {\n'use strict';\n" + "\n".join(map(_part, SCRIPTS)) + "})();"
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashed(script)}",
            f"style-src {_hashed(style)}",
            "connect-src 'self'" if asks else "connect-src 'none'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    html = _part("page.html")
    for name, text in (("POLICY", policy), ("STYLE", style), ("SCRIPT", script), ("DATA", _embedded(data))):
        html = html.replace(f"@{name}@", text, 1)  # data come last, so that nothing in them is taken for a place
    headers = {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Page(html, headers)


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON in ASCII without `<`: no text in it can end the element that holds it, whatever the page's encoding."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


@cache
def _part(name: str) -> str:
    return (files("r1ranker.serving") / "assets" / name).read_text(encoding="utf-8")


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
