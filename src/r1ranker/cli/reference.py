"""The reference of all commands and of all keys of a run's YAML, made from the code. In: the app. Out: Markdown.

    python -m r1ranker.cli.reference docs/reference

A test compares the published pages with what is made here.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from r1ranker.cli import app
from r1ranker.io.config import RunConfig
from r1ranker.io.files import write_whole

PROGRAM = "r1ranker"
COMMANDS = f"""# Commands

Made from the code by `python -m r1ranker.cli.reference docs/reference`; `{PROGRAM} COMMAND --help` shows the same.
Every command exits with another code than 0 when it fails.
"""
CONFIG = """# Configuration

Made from the code by `python -m r1ranker.cli.reference docs/reference`. One YAML describes a run;
`-s ppo.steps=500` sets any key. An unknown key is refused with the nearest name, and so is a value out of bounds.
"""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def commands_page() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    parts = [COMMANDS, *(_command(path, command) for path, command in _commands(PROGRAM, root))]
    return "\n".join(parts)


def config_page() -> str:
    """Every key of a run's YAML, a section each."""
    return "\n".join([CONFIG, *_section("", RunConfig)])


def _section(key: str, model: type[BaseModel]) -> Iterator[str]:
    """A table of the keys that hold values, then one of each key that holds keys."""
    inner = {name: found for name, field in model.model_fields.items() if (found := _model(field.annotation))}
    yield f"## {key.rstrip('.') or 'The run'}\n"
    yield "| key | value | default | |\n| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        if name not in inner:
            limits = [
                (word, getattr(one, at)) for one in field.metadata for at, word in BOUNDS.items() if hasattr(one, at)
            ]
            kind = _kind(field.annotation) + "".join(f", {word} {value}" for word, value in limits)
            default = "needed" if field.is_required() else _default(field.get_default(call_default_factory=True))
            yield f"| `{key}{name}` | {kind} | {default} | {_escaped(field.description or '')} |"
    yield ""
    for name, found in inner.items():
        listed = get_origin(model.model_fields[name].annotation) is tuple
        yield from _section(f"{key}{name}.{'0.' if listed else ''}", found)


def _model(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, alone, perhaps, or in a list."""
    kinds = [annotation, *get_args(annotation)]
    return next((one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _commands(path: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(f"{path} {name}", command)
        else:
            yield f"{path} {name}", command


def _command(path: str, command: Any) -> str:
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name == "option"]
    usage = " ".join([path, *(_argument(one) for one in arguments), *(["[OPTIONS]"] if options else [])])
    lines = [f"## {path}", "", "```text", usage, "```", "", *command.help.splitlines(), ""]
    if shown:
        lines += ["| | value | default | |", "| --- | --- | --- | --- |", *map(_row, [*arguments, *options]), ""]
    return "\n".join(lines)


def _argument(one: Any) -> str:
    name = one.name.rstrip("_").upper()
    return name if one.required else f"[{name}]"


def _row(one: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
    if one.param_type_name == "argument":
        names = f"`{_argument(one)}`"
    flag = getattr(one, "is_flag", False)
    default = "needed" if one.required else "" if flag or callable(one.default) else _default(one.default)
    value = "" if flag else _kind(one.type_descriptor.annotation)
    bounds = {"at least": getattr(one, "min", None), "at most": getattr(one, "max", None)}
    value += "".join(f", {word} {bound}" for word, bound in bounds.items() if bound is not None)
    cells = (names, value, default, _escaped(one.help or ""))
    return f"| {' | '.join(cells)} |"


def _default(value: Any) -> str:
    """A default as it would be written; empty where there is none."""
    if value is None or value in ((), [], {}, ""):
        return ""
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(annotation: Any) -> str:
    """What may be given, in words."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return ", ".join(_kind(one) for one in get_args(annotation) if one is not type(None))
    if get_origin(annotation) in (list, tuple):
        return f"list of {_kind(get_args(annotation)[0])}"
    if get_origin(annotation) in (dict, Mapping):
        return "keys and values"
    names = {Path: "path", str: "text", bool: "true, false", int: "whole number", float: "number", Any: "any"}
    return str(names.get(annotation, getattr(annotation, "__name__", annotation)))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_whole(Path(sys.argv[1]) / "commands.md", commands_page())
    write_whole(Path(sys.argv[1]) / "config.md", config_page())
