"""The reference of all commands, made from the commands themselves. In: the app. Out: Markdown.

    python -m r1ranker.cli.reference docs/reference/commands.md

A test compares the published page with what is made here.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import typer

from r1ranker.cli import app
from r1ranker.io.config_reference import type_words, value_words
from r1ranker.io.files import write_whole

PROGRAM = "r1ranker"
HEAD = f"""# Commands

Made from the code by `python -m r1ranker.cli.reference docs/reference/commands.md`;
`{PROGRAM} COMMAND --help` shows the same. Every command exits with another code than 0 when it fails.
"""


def commands_page() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    parts = [HEAD, *(_command(path, command) for path, command in _commands(PROGRAM, root))]
    return "\n".join(parts)


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
    return f"`{value_words(value)}`"


def _kind(annotation: Any) -> str:
    """What may be given, in words; that it may be left out is said by the default."""
    if get_origin(annotation) in (Union, types.UnionType):
        return ", or ".join(type_words(one) for one in get_args(annotation) if one is not type(None))
    return type_words(annotation)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_whole(Path(sys.argv[1]), commands_page())
