"""`r1ranker reproduce`: one command for each of the paper's tables. In: a scale. Out: a folder, and `results.md` in it.

What is done is found done, so the same command goes on after it was stopped, however it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from r1ranker.cli.common import Json, Settings, complain, console, errors, write_json
from r1ranker.errors import ConfigError, R1RankerError
from r1ranker.experiments import EXPERIMENTS
from r1ranker.experiments.scales import SCALES, Scale
from r1ranker.io.files import write_whole
from r1ranker.io.locks import check_folder, check_outputs, held

if TYPE_CHECKING:
    from r1ranker.io.config import RunConfig

TAKE_SYSTEMS = ("recommendation", "routing")


def reproduce(
    experiment: Annotated[str, typer.Argument(help=f"{', '.join(EXPERIMENTS)}, all, or report.")],
    scale: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {one.about}" for name, one in SCALES.items()) + ".")
    ] = "mini",
    out: Annotated[
        Path | None, typer.Option(help="Where results go; default runs/reproduce/SCALE-seedSEED.", show_default=False)
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of your own base run, in place of a scale.")] = None,
    settings: Settings = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of training; default: the config's. The data stay the same.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Test problems per task, at most; some experiments have their own."),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="With recommendation or routing: another ranker, NAME=DESIGN:MODEL as in `evaluate`; repeatable."
        ),
    ] = None,
    pages: Annotated[
        Path | None,
        typer.Option(help="With report, of a folder of several runs: where their pages go; default --out itself."),
    ] = None,
    json_: Json = None,
) -> None:
    """Make the paper's tables: train, evaluate, test, render. Run it again to go on where it was stopped.

    Example: `r1ranker reproduce main`

    Everything, then the page alone: `r1ranker reproduce all` and `r1ranker reproduce report`

    A page for each of several runs: `r1ranker reproduce report --out results --pages docs/results`

    Routers on your outcomes: `r1ranker reproduce routing --config routing.yaml --system smol=iranker:smol`

    A pretrained model on public data, in small: `r1ranker reproduce main --scale smol --limit 5`

    Public data: `r1ranker reproduce main --scale paper -s data.0.path=data/ml-1m`

    Four judgements: `r1ranker reproduce recommendation --config recommendation.yaml --system smol=iranker:smol`
    """
    from r1ranker.experiments.published import write_pages
    from r1ranker.experiments.report import parts_of, write_results

    began = time.perf_counter()
    name = config.stem if config else scale
    with errors("the same command goes on where it was stopped"):
        base = _config(scale, config, [*(settings or []), *([] if seed is None else [f"seed={seed}"])])
        names = _names(experiment, base)
        if names and pages:
            raise ConfigError("--pages is where `reproduce report` writes the pages of several runs")
        if system and (len(names) != 1 or names[0] not in TAKE_SYSTEMS):
            raise ConfigError(f"--system is for {' and '.join(TAKE_SYSTEMS)}; other experiments train their own")
        folder = out or Path("runs/reproduce") / f"{name}-seed{base.seed}"
        check_outputs({"--json": json_}, {"--config": config})
        check_folder(folder, "--out")
        with held(folder / "config.yaml") if names else nullcontext():
            failed = run(names, name, base, folder, limit, system or ()) if names else {}
            several = not names and not parts_of(folder)
            page = write_pages(folder, pages or folder) if several else folder / "results.md"
            if not several:
                write_results(folder, page)
    seconds = time.perf_counter() - began
    console.print(f"results {page}   seconds {seconds:.0f}", soft_wrap=True)
    done = [one for one in names if one not in failed]
    write_json(json_, {"results": page, "done": done, "failed": failed, "seconds": seconds})
    if failed:
        raise typer.Exit(1)


def run(
    names: Sequence[str],
    scale: str,
    config: RunConfig,
    out: Path,
    limit: int | None = None,
    systems: Sequence[str] = (),
) -> dict[str, str]:
    """Run experiments; of several, one that cannot run does not stop the others. Returns what failed and why."""
    from r1ranker.datasets.data import check_there
    from r1ranker.evaluation.systems import parse_system
    from r1ranker.experiments.study import Study

    check_there(config.data)
    given = tuple(parse_system(text, config) for text in systems)
    models = out / "models"
    base = Study("base", scale, config, out / "base", models, None)
    if config.warmstart.scratch:
        config = config.model_copy(update={"model": str(base.warmstarted())})
    write_whole(out / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    failed: dict[str, str] = {}
    for name in names:
        console.print(f"{name} ({scale})")
        try:
            most = limit or SCALES.get(scale, Scale()).limits.get(name)
            EXPERIMENTS[name](Study(name, scale, config, out / name, models, most, given))
        except R1RankerError as error:
            if len(names) == 1:
                raise
            failed[name] = str(error)
            complain(name, str(error))
    return failed


def _names(experiment: str, config: RunConfig) -> list[str]:
    """The experiments to run; none for `report`. Of all, `unseen` is one only where data are held out."""
    if experiment in ("all", "report"):
        held_out = any(data.held_out for data in config.data)
        every = [name for name in EXPERIMENTS if held_out or name != "unseen"]
        return every if experiment == "all" else []
    if experiment not in EXPERIMENTS:
        raise ConfigError(f"unknown experiment {experiment!r}; there are {', '.join(EXPERIMENTS)}, all and report")
    return [experiment]


def _config(scale: str, path: Path | None, settings: Sequence[str]) -> RunConfig:
    from r1ranker.io.config import load_config

    if path is None:
        if scale not in SCALES:
            raise ConfigError(f"unknown scale {scale!r}; there are {', '.join(SCALES)}, or give your own with --config")
        path = Path(str(files("r1ranker") / "configs" / f"reproduce-{scale}.yaml"))
    return load_config(path, settings)
