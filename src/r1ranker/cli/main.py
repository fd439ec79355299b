"""The command line: one thin command per job. Everything here can be called from Python with the same names."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from r1ranker.cli.common import (
    Against,
    App,
    Config,
    Json,
    Overwrite,
    Scenarios,
    Settings,
    complain,
    console,
    errors,
    run_config,
    say,
    write_json,
)
from r1ranker.cli.config import config_app
from r1ranker.cli.data import data_app
from r1ranker.cli.demo import demo
from r1ranker.cli.mcp import mcp
from r1ranker.cli.model import model_app
from r1ranker.cli.rank import rank
from r1ranker.cli.reproduce import reproduce
from r1ranker.cli.rerank import rerank
from r1ranker.cli.route import route
from r1ranker.cli.serve import serve
from r1ranker.cli.view import view
from r1ranker.errors import ConfigError

EVALUATION = ("results.json", "results.csv", "per_query.json", "comparisons.json", "provenance.json", "report.html")
"""What an evaluation writes, beside its runs."""

app = App(
    help="Train a language model to rank anything by reinforcement learning, and rank with it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
NO_BETTER = (
    "no step was better on dev than the start: what was kept is {model}, as it came. Train longer, change "
    "ppo.actor_lr, or give more dev problems (ppo.validate_problems) if their score is mostly noise"
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from r1ranker import __version__

        console.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_say_version, is_eager=True)
    ] = False,
) -> None: ...


app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where results go.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of training; the data stay the same.")] = 0,
    tokens: Annotated[
        int | None, typer.Option(help="Training tokens of each design; default: what fits minutes.")
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = None,
) -> None:
    """Train DRanker and IRanker from the embedded model, compare all systems on the nine embedded tasks.

    Example: `r1ranker quickstart --seed 1 --out runs/seed1`
    """
    from r1ranker.evaluation.table import results_table
    from r1ranker.experiments.quickstart import ABOUT_BASE, run_quickstart
    from r1ranker.io.locks import check_outputs

    with errors():
        check_outputs({"--json": json_}, {})
        result = run_quickstart(out, seed=seed, tokens=tokens, overwrite=overwrite, tell=say)
    console.print(results_table(result.rows, result.comparisons, intervals=console.width >= 150))
    console.print(ABOUT_BASE, style="dim")
    for design, ahead in result.ahead.items():
        console.print(f"{design} above random and prior on {ahead} of {result.tasks} tasks")
    console.print(f"IRanker over the same model without RL: {result.gain:+.1%} average relative MRR")
    console.print(f"results {out / 'results.json'}   page {out / 'report.html'}   seconds {result.seconds:.0f}")
    rows = [dataclasses.asdict(row) for row in result.rows]
    write_json(json_, {"rows": rows, "gain": result.gain, "ahead": result.ahead, "seconds": result.seconds, "out": out})


@app.command()
def warmstart(
    config: Config = None,
    settings: Settings = None,
    scenarios: Scenarios = None,
    overwrite: Overwrite = False,
    json_: Json = None,
) -> None:
    """Supervised start: teach a model the format and a weak first opinion.

    Example: `r1ranker warmstart nano -s out=runs/nano`
    """
    from r1ranker.baselines.notes import load_splits
    from r1ranker.io.locks import check_folder
    from r1ranker.training.parallel import join_crew
    from r1ranker.training.warmstart import warmstart as run

    with errors():
        loaded = run_config(config, settings, json_, scenarios=scenarios)
        check_folder(loaded.out, "out")
        directory = run(loaded, load_splits(loaded.data, loaded.scenarios)["train"], overwrite=overwrite)
    if join_crew().leads:
        console.print(f"model {directory}")
        write_json(json_, {"model": directory})


@app.command()
def train(
    config: Config = None,
    settings: Settings = None,
    scenarios: Scenarios = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the run's folder.")] = False,
    engine: Annotated[
        Literal["own", "verl"], typer.Option(help="own, or verl on Ray for many GPUs (docs/verl.md).")
    ] = "own",
    verl: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of verl's own config, in hydra's grammar; repeatable.")
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = None,
) -> None:
    """Train a ranker by PPO; keeps the model that is best on dev.

    Example: `r1ranker train mini -s design=dranker -s out=runs/dranker`

    Eight GPUs: `torchrun --nproc-per-node 8 -m r1ranker train paper`
    """
    from r1ranker import api
    from r1ranker.io.locks import check_folder
    from r1ranker.training.logs import kept_of, read_log
    from r1ranker.training.parallel import join_crew

    with errors("`train --resume` with the same settings goes on from the last checkpoint, where there is one already"):
        loaded = run_config(config, settings, json_, scenarios=scenarios)
        if verl and engine != "verl":
            raise ConfigError("--verl sets verl's own config: give --engine verl with it")
        if engine == "verl":
            from r1ranker.training.verl.launch import launch

            check_folder(loaded.out, "out")
            if resume and overwrite:
                raise ConfigError(api.EITHER)
            directory = launch(loaded, verl or [], resume=resume, overwrite=overwrite)
            console.print(f"model {directory}")
            write_json(json_, {"model": directory})
            return
        directory = api.train(loaded, resume=resume, overwrite=overwrite)
    if not join_crew().leads:
        return
    last, kept = read_log(loaded.out)[-1], kept_of(loaded.out)
    console.print(f"model {directory}   {kept}", soft_wrap=True)
    if kept and not kept.improved:
        complain("warning", NO_BETTER.format(model=loaded.model))
    write_json(json_, {"model": directory, "last": last, "kept": kept and dataclasses.asdict(kept)})


app.command()(demo)
app.command()(rank)
app.command()(rerank)
app.command()(reproduce)
app.command()(view)
app.command()(serve)
app.command()(mcp)
app.command()(route)


@app.command()
def evaluate(
    config: Config = None,
    settings: Settings = None,
    scenarios: Scenarios = None,
    system: Annotated[
        list[str] | None, typer.Option(help="NAME=DESIGN:MODEL, such as iranker=iranker:runs/x/model; repeatable.")
    ] = None,
    run: Annotated[list[str] | None, typer.Option(help="NAME=FILE of a TREC run; repeatable.")] = None,
    baselines: Annotated[
        str, typer.Option(help="Baselines and specialists, by comma, such as prior,bpr.")
    ] = "random,prior,bm25",
    against: Against = "prior",
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    out: Annotated[Path, typer.Option(help="Folder for results.json, report.html and the run files.")] = Path(
        "runs/eval"
    ),
    workers: Annotated[int, typer.Option(min=1, help="Systems ranked side by side.")] = 1,
    overwrite: Overwrite = False,
    json_: Json = None,
) -> None:
    """Compare systems on the data of a config: measures, intervals, tests, costs, an HTML page.

    Example: `r1ranker evaluate mini --system base=iranker:nano --system iranker=iranker:runs/x/model`
    """
    from r1ranker import api
    from r1ranker.evaluation.table import results_table
    from r1ranker.io.files import write_whole
    from r1ranker.ranking.journal import failed_of

    with errors("the same command begins anew; `rank --resume` can go on, and --run NAME=FILE takes what it wrote"):
        written = {f"{name} of --out": out / name for name in EVALUATION}
        loaded = run_config(config, settings, json_, written, scenarios)
        given = [_named(text) for text in run or []]
        if twice := [name for name, times in Counter(name for name, _ in given).items() if times > 1]:
            raise ConfigError(f"the system name {twice[0]!r} is taken: two runs have it; rename one")
        result = api.evaluate(
            loaded,
            system or [],
            baselines=[name for name in map(str.strip, baselines.split(",")) if name],
            runs=dict(given),
            against=against,
            split=split,
            out=out,
            workers=workers,
            overwrite=overwrite,
        )
    for note in result.notes:
        complain("note", note)
    for name, rankings in result.rankings.items():
        failed = [ranking for ranking in rankings if ranking.error]
        if failed:
            lines = [json.dumps({"qid": r.qid, "error": r.error}, ensure_ascii=False) for r in failed]
            write_whole(why := failed_of(out / "runs" / f"{name}.trec"), "\n".join(lines) + "\n")
            complain("failed", f"{name}: {len(failed)} queries, which count 0; {why} says why")
    console.print(results_table(result.rows, result.comparisons, intervals=console.width >= 150))
    console.print(f"results {out / 'results.json'}   page {out / 'report.html'}")
    write_json(json_, [dataclasses.asdict(row) for row in result.rows])


@app.command()
def compare(
    out: Annotated[Path, typer.Argument(help="Folder of a finished `r1ranker evaluate` or `quickstart`.")],
    against: Annotated[
        str | None, typer.Option(help="System the others are tested against; default: as in the evaluation.")
    ] = None,
    measure: Annotated[str, typer.Option(help="Measure to compare by.")] = "MRR",
    json_: Json = None,
) -> None:
    """Differences to one system: paired randomisation test, Holm-adjusted over all tasks and systems under test.

    Also the relative difference; of the average, the mean of each task's. random, prior, bm25 and oracle are not
    under test: they are adjusted among themselves.

    Example: `r1ranker compare runs/quickstart --against base-iterative`
    """
    from r1ranker import api
    from r1ranker.evaluation.table import comparison_table
    from r1ranker.io.locks import check_outputs

    with errors():
        check_outputs({"--json": json_}, {name: out / name for name in EVALUATION})
        tests = api.compare(out, against, measure=measure)
    console.print(comparison_table(tests))
    write_json(json_, [dataclasses.asdict(test) for test in tests])


@app.command()
def push(
    model: Annotated[Path, typer.Argument(help="Model directory, such as runs/iranker/model.")],
    repo: Annotated[str, typer.Argument(help="Where it goes on the hub: ORG/NAME.")],
    results: Annotated[
        Path | None, typer.Option(help="Folder of a finished `r1ranker evaluate`, for the card's table.")
    ] = None,
    private: Annotated[bool, typer.Option(help="Create the repository private.")] = False,
    json_: Json = None,
) -> None:
    """Publish a trained model as an ordinary transformers model, with a model card that holds its results.

    Example: `r1ranker push runs/iranker/model org/my-ranker --results runs/eval`
    """
    from r1ranker.training.publish import push as run

    with errors():
        url = run(model, repo, results=results, private=private)
    console.print(f"published {url}", soft_wrap=True)
    write_json(json_, {"url": url})


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ConfigError(f"{text!r}: give NAME=VALUE")
    return name, value
