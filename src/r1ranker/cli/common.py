"""What all commands share: their consoles, options that have one form everywhere, errors and results."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.markup import escape

from r1ranker.errors import R1RankerError
from r1ranker.io.files import at_home, write_whole

if TYPE_CHECKING:
    from r1ranker.io.config import RunConfig

Function = TypeVar("Function", bound=Callable[..., Any])
MANY = 0.1
"""Share of broken answers from which on a warning says so."""

console = Console()
stderr = Console(stderr=True)

Json = Annotated[Path | None, typer.Option("--json", help="Also write the result here, machine-readable.")]
Config = Annotated[Path | None, typer.Argument(help="YAML of the run, or the name of one here: mini, smol, paper, ...")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="Override any key of the YAML, such as -s ppo.steps=100.")
]
Scenarios = Annotated[
    Path | None, typer.Option("--scenarios", help="YAML of your own scenarios' wordings, by name (docs/scenarios.md).")
]
Against = Annotated[str, typer.Option(help="System the others are tested against.")]


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]


class App(typer.Typer):
    """A Typer whose commands get every path with `~` expanded, also where no shell has done so (`--out=~/x`)."""

    def command(self, *args: Any, **settings: Any) -> Callable[[Function], Function]:
        """As Typer's."""
        register = super().command(*args, **settings)

        def kept(function: Function) -> Function:
            @wraps(function)
            def run(**values: Any) -> Any:
                return function(**{k: at_home(v) if isinstance(v, Path) else v for k, v in values.items()})

            register(run)
            return function

        return kept


@contextmanager
def errors(again: str = "the same command begins anew") -> Iterator[None]:
    """Errors meant for users become one message and exit code 1; `again`: how to go on after Ctrl-C or a full disk."""
    told = logging.getLogger("r1ranker")
    if not told.handlers:
        told.addHandler(_Told())
        told.setLevel(logging.INFO)
    try:
        yield
    except R1RankerError as error:
        complain("error", str(error))
        raise typer.Exit(1) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain("error", f"{where}{error.strerror or error}; once that is mended, {again}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        complain("stopped", again)
        raise typer.Exit(130) from error


class _Told(logging.Handler):
    """What the package logs, such as which first stage it reads, as a line on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        complain("warning" if record.levelno >= logging.WARNING else "note", record.getMessage())


def complain(what: str, message: str) -> None:
    """A line on standard error. Brackets in the message are no markup."""
    stderr.print(f"[bold red]{what}:[/] {escape(message)}", highlight=False, soft_wrap=True)


def say(what: RenderableType) -> None:
    """What a long command tells meanwhile, above the progress bar."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        console.print(what, highlight=False)


def warn_of_answers(who: str, broken: int, calls: int) -> None:
    """A warning where so many answers were broken that the order says little about the model."""
    if broken > MANY * calls:
        complain(
            "warning",
            f"{who}: {broken} of {calls} answers were broken, and the order they left to a rule is hardly the model's; "
            "--trace or the page show them; without --think, or with more --max-new-tokens, there may be fewer",
        )


def write_json(path: Path | None, result: Any) -> None:
    if path is not None:
        with errors():
            write_whole(path, json.dumps(result, indent=2, default=str) + "\n")


def run_config(
    config: Path | None,
    settings: Sequence[str] | None,
    json_: Path | None,
    written: Mapping[str, Path] | None = None,
    scenarios: Path | None = None,
) -> RunConfig:
    """The run that a command is asked for. ConfigError where an output would hit an input; exit code 2 without one."""
    from r1ranker.io.config import load_config
    from r1ranker.io.locks import check_outputs

    if config is None and not settings:
        complain(
            "error",
            "which run? Give its YAML, or the name of one here: r1ranker config init lists them and writes one to "
            "begin with; or set keys: -s data.0.source=mini",
        )
        raise typer.Exit(2)
    loaded = load_config(config, settings or [], scenarios)
    read = {"the config": config, "--scenarios": scenarios} | {
        f"data.{n}.path": one.path for n, one in enumerate(loaded.data)
    }
    check_outputs({**(written or {}), "--json": json_}, read)
    return loaded
