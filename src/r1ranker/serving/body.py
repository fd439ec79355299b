"""A request's body, so that one value in it can be changed and no other byte. In: bytes. Out: members and places.

    body = parse(b'{"model": "auto", "temperature": 1.0, "router": {"fallbacks": 1}}')
    body.values["model"]            # "auto"
    body.with_model("gpt-5-mini")   # b'{"model": "gpt-5-mini", "temperature": 1.0}'

Written again by a JSON library, a number could change its form and a key its place; spliced, it cannot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
OWN = "router"
"""The member that is for us, taken out before the body is sent on."""
REFUSED = ("api_base", "base_url", "api_key")
"""A body that named an address would get the server's keys sent there."""


class BodyError(ValueError):
    """What is wrong with a body, and the parameter that is to blame."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class _Span(NamedTuple):
    """Of a member: where its key begins, where its value begins, and where it ends."""

    key: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class Body:
    """A JSON object as text, its members' values, and where they stand."""

    text: str
    values: Mapping[str, Any]
    spans: Mapping[str, _Span]

    def with_model(self, name: str) -> bytes:
        """The same bytes with another model, and without the member that is for us."""
        edits = [(self.spans["model"].value, self.spans["model"].end, json.dumps(name))]
        if OWN in self.spans:
            edits.append((*self._member(OWN), ""))
        text = self.text
        for begin, end, new in sorted(edits, reverse=True):
            text = text[:begin] + new + text[end:]
        return text.encode()

    def _member(self, key: str) -> tuple[int, int]:
        """Begin and end of a member with one of the commas at its sides; `model` is another one, so there is one."""
        order = list(self.spans)
        place = order.index(key)
        if place:
            return self.spans[order[place - 1]].end, self.spans[key].end
        return self.spans[key].key, self.spans[order[1]].key


def parse(data: bytes) -> Body:
    """BodyError where it is no JSON object in UTF-8, or where a key stands twice (two readers would differ)."""
    try:
        text = data.decode()
        values, spans = _members(text)
    except UnicodeDecodeError as error:
        raise BodyError(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError:
        raise BodyError("the body is nested too deeply") from None
    except BodyError:
        raise
    except ValueError as error:
        raise BodyError(f"the body is not JSON: {error}") from error
    return Body(text, values, spans)


def _members(text: str) -> tuple[dict[str, Any], dict[str, _Span]]:
    values: dict[str, Any] = {}
    spans: dict[str, _Span] = {}
    at = _after(text, 0, "{")
    while text[at : at + 1] != "}":
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("a key in quotes is expected", text, at)
        key, end = scanstring(text, at + 1)
        begin = _after(text, end, ":")
        if key in values:
            raise BodyError(f"the key {key!r} stands twice", key)
        values[key], end = _DECODER.raw_decode(text, begin)
        spans[key] = _Span(at, begin, end)
        at = _skip(text, end)
        if text[at : at + 1] == "}":
            break
        at = _after(text, at, ",")
        if text[at : at + 1] == "}":
            raise json.JSONDecodeError("a key in quotes is expected", text, at)
    if _skip(text, at + 1) != len(text):
        raise json.JSONDecodeError("nothing may follow the object", text, at + 1)
    return values, spans


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _after(text: str, at: int, sign: str) -> int:
    """Where what follows `sign` begins."""
    at = _skip(text, at)
    if text[at : at + 1] != sign:
        raise json.JSONDecodeError(f"{sign!r} is expected", text, at)
    return _skip(text, at + 1)
