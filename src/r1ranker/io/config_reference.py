"""Every key of a run's YAML, from the types that check it. In: `RunConfig`. Out: Markdown.

`r1ranker config reference` prints it, and docs/reference/config.md holds it; a test keeps them equal.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from r1ranker.io.config import RunConfig

WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", type(None): "null"}
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
HEAD = ("| key | type | default | bounds | |", "| --- | --- | --- | --- | --- |")


def reference() -> str:
    """A table of the run's own keys and one for each part."""
    lines = ["## The run", "", *HEAD]
    parts: list[str] = []
    for name, field in RunConfig.model_fields.items():
        lines.append(_row(name, field))
        if part := _part(field.annotation):
            parts += ["", *_section(name, part, field)]
    return "\n".join([*lines, *parts])


def _section(prefix: str, part: type[BaseModel], field: FieldInfo) -> Iterator[str]:
    """The keys of a part, and behind them those of its own parts."""
    path = f"{prefix}.0" if typing.get_origin(field.annotation) is tuple else prefix
    yield from (f"## `{path}`", "", " ".join((part.__doc__ or "").split()), "", *HEAD)
    inner = {name: (kind, one) for name, one in part.model_fields.items() if (kind := _part(one.annotation))}
    yield from (_row(f"{path}.{name}", one) for name, one in part.model_fields.items())
    for name, (kind, one) in inner.items():
        yield from ("", *_section(f"{path}.{name}", kind, one))


def _row(key: str, field: FieldInfo) -> str:
    bounds = ", ".join(
        f"{sign} {getattr(m, at):g}" for m in field.metadata for at, sign in SIGNS.items() if hasattr(m, at)
    )
    cells = (f"`{key}`", type_words(field.annotation), _default(field), bounds, field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    if _part(field.annotation) and field.default is not None:
        return "see below"
    return f"`{value_words(field.get_default(call_default_factory=True))}`"


def value_words(value: Any) -> str:
    """A default as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_words, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def type_words(kind: Any) -> str:
    """A type in words: `whole number, or null`."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inside)
    if origin in (Union, types.UnionType):
        return ", or ".join(map(type_words, inside))
    if origin is tuple or (inside and origin is not dict):
        return f"list of {type_words(inside[0])}"
    if origin is dict or _part(kind):
        return "keys and values"
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _part(kind: Any) -> type[BaseModel] | None:
    """The model that a type is, or holds."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next(filter(None, map(_part, typing.get_args(kind))), None)
