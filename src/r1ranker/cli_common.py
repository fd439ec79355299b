"""What all commands share: their consoles, options that have one form everywhere, errors and results."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from r1ranker.errors import R1RankerError

console = Console()
stderr = Console(stderr=True)

Json = Annotated[Path | None, typer.Option("--json", help="Also write the result here, machine-readable.")]
Config = Annotated[Path | None, typer.Argument(help="YAML of the run; see configs/.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="Override any key of the YAML, such as -s ppo.steps=100.")
]
Against = Annotated[str, typer.Option(help="System the others are tested against.")]


@contextmanager
def errors() -> Iterator[None]:
    """Errors meant for users become one message and exit code 1; what the package tells on its way is a line."""
    told = logging.getLogger("r1ranker")
    if not told.handlers:
        told.addHandler(_Told())
        told.setLevel(logging.INFO)
    try:
        yield
    except R1RankerError as error:
        complain("error", str(error))
        raise typer.Exit(1) from error


class _Told(logging.Handler):
    """What the package logs, such as which first stage it reads, as a line on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        complain("warning" if record.levelno >= logging.WARNING else "note", record.getMessage())


def complain(what: str, message: str) -> None:
    """A line on standard error. Brackets in the message are no markup."""
    stderr.print(f"[bold red]{what}:[/] {escape(message)}", highlight=False, soft_wrap=True)


def write_json(path: Path | None, result: Any) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
