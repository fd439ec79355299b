"""What a chat request needs of an LLM, and which LLMs lack it. In: the body's values. Out: needs, reasons.

    needs = needs_of({"messages": [...], "tools": [...]})
    why_not("gpt-small", settings.models["gpt-small"], needs, max_cost=0.01)     # "tools", or "" where it can serve

These filters stand before the ranker and outside any model: a prompt cannot talk its way past them. Tokens are not
counted but estimated, a fourth of the UTF-8 bytes of all texts; what that lets through, the upstream refuses, and the
next LLM is asked.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from r1ranker.io.text import cut
from r1ranker.serving.route_settings import ModelSettings

BYTES_A_TOKEN = 4
TOKENS_AN_IMAGE = 1000
OUTPUT_TOKENS = 500
"""Counted for an answer where the request sets no limit."""
MOST_TOKENS, MOST_ANSWERS = 10_000_000, 128
"""Of a request's own limits; what is above them the upstream refuses, and an estimate of it would be no number."""
QUERY_CHARS = 1000
"""As in the routing data the ranker was trained on."""
IMAGES = ("image_url", "input_image", "image")
NO_TEXT = "(no text)"


@dataclass(frozen=True, slots=True)
class Needs:
    """Of one request. `output_tokens` are those of all its answers, estimated where no limit is set."""

    query: str
    prompt_tokens: int
    output_tokens: int
    limit: int
    images: bool
    tools: bool
    response_format: bool


def needs_of(values: Mapping[str, Any]) -> Needs:
    """Reads what it knows and passes over the rest: what a message may hold is the upstream's to say."""
    messages = [one for one in _list(values.get("messages")) if isinstance(one, dict)]
    parts = [part for message in messages for part in _parts(message)]
    images = sum(part.get("type") in IMAGES for part in parts)
    texts = sum(len(_text(part).encode(errors="replace")) for part in parts)
    called = [one for message in messages for one in (message.get("tool_calls"), message.get("function_call")) if one]
    tools = [tool for tool in (values.get("tools"), values.get("functions"), *called) if tool]
    form = values.get("response_format")
    form = form if isinstance(form, dict) and form.get("type") != "text" else None
    opaque = sum(len(json.dumps(one, ensure_ascii=False).encode(errors="replace")) for one in (*tools, form) if one)
    limit = _count(values.get("max_completion_tokens"), MOST_TOKENS) or _count(values.get("max_tokens"), MOST_TOKENS)
    return Needs(
        query=_query(messages),
        prompt_tokens=(texts + opaque) // BYTES_A_TOKEN + TOKENS_AN_IMAGE * images + 4 * len(messages),
        output_tokens=(_count(values.get("n"), MOST_ANSWERS) or 1) * (limit or OUTPUT_TOKENS),
        limit=limit,
        images=images > 0,
        tools=bool(tools) or any(message.get("role") in ("tool", "function") for message in messages),
        response_format=form is not None,
    )


def why_not(
    name: str,
    model: ModelSettings,
    needs: Needs,
    *,
    candidates: Collection[str] | None = None,
    allowed: Collection[str] | None = None,
    max_cost: float | None = None,
    left: float | None = None,
) -> str:
    """Why the LLM cannot serve the request, in a word, or "".

    candidates: those the request names. allowed: those its key may use. max_cost: dollars for this request. left: of
    the key's budget of today.
    """
    cost = model.cost(needs.prompt_tokens, needs.output_tokens)
    reasons = {
        "key": allowed is not None and name not in allowed,
        "candidates": candidates is not None and name not in candidates,
        "images": needs.images and not model.images,
        "tools": needs.tools and not model.tools,
        "response_format": needs.response_format and not model.response_format,
        "context": model.context is not None and needs.prompt_tokens + needs.limit > model.context,
        "max_cost": max_cost is not None and cost > max_cost,
        "budget": left is not None and cost > left,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _query(messages: list[dict[str, Any]]) -> str:
    """The user's last words; earlier ones before them where there is room, since "and in French?" says little."""
    said = [_said(message) for message in messages if message.get("role") == "user"]
    said = [text for text in said if text] or [text for message in messages if (text := _said(message))]
    kept: list[str] = []
    room = QUERY_CHARS
    for text in reversed(said):
        kept.insert(0, cut(text, room))
        room -= len(kept[0]) + 1
        if room < 1:
            break
    return "\n".join(filter(None, kept)) or NO_TEXT


def _said(message: Mapping[str, Any]) -> str:
    text = "\n".join(filter(None, map(_text, _parts(message))))
    return text.encode(errors="replace").decode().strip()  # half a surrogate pair is no text


def _parts(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        yield {"type": "text", "text": content}
    for part in _list(content):
        if isinstance(part, dict):
            yield part


def _text(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    return text if isinstance(text, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(value: Any, most: int) -> int:
    """A number above 0, at most `most`; else 0."""
    return min(value, most) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
