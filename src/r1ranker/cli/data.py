"""`r1ranker data`: what can be loaded, whether it is sound, and as JSON Lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r1ranker.cli.common import App, Json, Overwrite, Scenarios, Settings, console, errors, run_config, write_json
from r1ranker.errors import ConfigError

data_app = App(help="Look at, check and convert problems.", no_args_is_help=True)


@data_app.command("list")
def data_list(json_: Json = None) -> None:
    """The sources that can be loaded, what they need and where they come from.

    Example: `r1ranker data list`
    """
    from rich.table import Table

    from r1ranker.datasets import SOURCES

    table = Table("source", "what", "layout", "licence")
    for name, source in SOURCES.items():
        table.add_row(name, source.description, source.layout, source.licence)
    console.print(table)
    write_json(json_, {name: {"layout": s.layout, "options": list(s.options)} for name, s in SOURCES.items()})


@data_app.command("validate")
def data_validate(
    path: Annotated[Path, typer.Argument(help="A .jsonl file, or a folder with train/dev/test.jsonl.")],
    scenarios: Scenarios = None,
    json_: Json = None,
) -> None:
    """Check your own problems; every fault is named with its line. Exits with 1 when there is one.

    Example: `r1ranker data validate problems.jsonl`
    """
    from r1ranker.datasets.jsonl import validate_jsonl
    from r1ranker.io.config import read_scenarios
    from r1ranker.io.locks import check_outputs
    from r1ranker.io.problems import is_note

    with errors():
        check_outputs({"--json": json_}, {"the problems": path, "--scenarios": scenarios})
        messages = validate_jsonl(path, read_scenarios(scenarios) if scenarios else {})
    for message in messages:
        console.print(message, highlight=False, soft_wrap=True, markup=False)
    faults = [message for message in messages if not is_note(message)]
    console.print(f"{len(faults)} faults, {len(messages) - len(faults)} notes")
    write_json(json_, {"faults": faults, "messages": messages})
    if faults:
        raise typer.Exit(1)


@data_app.command("convert")
def data_convert(
    out: Annotated[Path, typer.Argument(help="Folder for train.jsonl, dev.jsonl and test.jsonl.")],
    config: Annotated[Path | None, typer.Option(help="YAML whose `data` to convert.")] = None,
    settings: Settings = None,
    scenarios: Scenarios = None,
    overwrite: Overwrite = False,
    json_: Json = None,
) -> None:
    """Write the problems of any source as JSON Lines.

    Example: `r1ranker data convert ml -s data.0.source=movielens -s data.0.path=ml-1m`
    """
    from r1ranker.baselines.notes import load_splits
    from r1ranker.datasets import SPLIT_NAMES
    from r1ranker.io.locks import check_folder
    from r1ranker.io.problems import write_jsonl

    with errors():
        files = {split: out / f"{split}.jsonl" for split in SPLIT_NAMES}
        written = {f"{split}.jsonl": file for split, file in files.items()}
        loaded = run_config(config, settings, json_, written, scenarios)
        check_folder(out, "OUT")
        taken = [file for file in files.values() if file.exists()]
        if taken and not overwrite:
            raise ConfigError(f"{taken[0]} exists; name another folder, or give --overwrite to replace it")
        splits = load_splits(loaded.data, loaded.scenarios)
        for split, problems in splits.items():
            if problems:
                write_jsonl(problems, files[split])
            else:  # an empty file is a fault, and one from before would be another conversion's
                files[split].unlink(missing_ok=True)
    counts = {split: len(problems) for split, problems in splits.items()}
    console.print(f"wrote {out}: {counts}")
    write_json(json_, counts)


@data_app.command("stats")
def data_stats(
    config: Annotated[Path | None, typer.Option(help="YAML whose `data` to look at.")] = None,
    settings: Settings = None,
    scenarios: Scenarios = None,
    json_: Json = None,
) -> None:
    """Problems, pool sizes, ties, words per task and split.

    Example: `r1ranker data stats -s data.0.source=lastfm -s data.0.path=hetrec-lastfm`
    """
    from rich.table import Column, Table

    from r1ranker.baselines.notes import load_splits
    from r1ranker.datasets.data import stats

    with errors():
        loaded = run_config(config, settings, json_, scenarios=scenarios)
        rows = stats(load_splits(loaded.data, loaded.scenarios))
    table = Table(*(Column(name, overflow="fold") for name in rows[0]))  # a cut name names no task
    table.columns[0].no_wrap = True  # whole at any width: a name in pieces cannot be searched for
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    write_json(json_, rows)
