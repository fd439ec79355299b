"""`r1ranker config`: a YAML to begin with, and what may stand in one."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from r1ranker.cli.common import App, Json, Overwrite, console, errors, write_json
from r1ranker.errors import ConfigError

config_app = App(help="A config to begin with, and every key that one may have.", no_args_is_help=True)

TITLE = """# Every key of a run

Written by `r1ranker config reference`. A run is one YAML; `-s ppo.steps=500` sets any key from the command line, and
`-s data.0.path=DIR` one of a list. An unknown key is refused with the nearest name.
"""


@config_app.command("init")
def init(
    name: Annotated[
        str | None, typer.Argument(help="search, recommendation, routing or smol; without: a list.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write it; default: NAME.yaml here.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = None,
) -> None:
    """Write a commented config to begin with; without a name, list those there are.

    Example: `r1ranker config init search --out my-search.yaml`
    """
    from rich.table import Table

    from r1ranker.io import configs
    from r1ranker.io.files import write_whole
    from r1ranker.io.locks import check_outputs
    from r1ranker.io.text import read_text

    if name is None:
        table = Table("config", "what")
        for one in configs.names():
            table.add_row(one, configs.about(one))
        console.print(table)
        write_json(json_, {one: configs.about(one) for one in configs.names()})
        return
    with errors():
        text = read_text(configs.named(name))
        path = out or Path(f"{name}.yaml")
        check_outputs({"--out": path, "--json": json_}, {})
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; name another file with --out, or give --overwrite to replace it")
        write_whole(path, text)
    console.print(f"wrote {path}: {configs.about(name)}", soft_wrap=True, highlight=False)
    write_json(json_, {"name": name, "config": path})


@config_app.command("reference")
def reference(json_: Json = None) -> None:
    """Print every key of a config with its type, default and bounds, as Markdown; --json writes the JSON schema.

    Example: `r1ranker config reference --json schema.json`
    """
    from r1ranker.io.config import RunConfig

    typer.echo(pages())
    write_json(json_, RunConfig.model_json_schema())


def pages() -> str:
    """The whole reference: the keys of a run, and the options of every source."""
    from r1ranker.datasets import SOURCES
    from r1ranker.datasets.recommendation import recommendation_problems
    from r1ranker.io.config_reference import reference as keys
    from r1ranker.io.config_reference import type_words, value_words

    lines = [TITLE, keys(), "", "## `data.0.options`", "", "Of each source (`r1ranker data list`):", ""]
    lines += ["| source | option | type | default |", "| --- | --- | --- | --- |"]
    shared = inspect.signature(recommendation_problems).parameters
    for name, source in SOURCES.items():
        given = shared | inspect.signature(source.load).parameters
        for option, kind in source.kinds.items():
            default = value_words(given[option].default)
            lines.append(f"| `{name}` | `{option}` | {type_words(kind)} | `{default}` |")
    return "\n".join(lines)
