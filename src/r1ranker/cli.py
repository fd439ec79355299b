"""The command line: one thin command per job. Everything here can be called from Python with the same names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from r1ranker.errors import ConfigError, R1RankerError
from r1ranker.problem import Splits
from r1ranker.prompts import Design, Layout

app = typer.Typer(
    help="Train a language model to rank anything by reinforcement learning, and rank with it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at, check and convert problems.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console = Console()
stderr = Console(stderr=True)

Json = Annotated[Path | None, typer.Option("--json", help="Also write the result here, machine-readable.")]
Config = Annotated[Path | None, typer.Argument(help="YAML of the run; see configs/.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="Override any key of the YAML, such as -s ppo.steps=100.")
]
CHEAPER, LONG, ENDPOINTS, RUNS = "Cheaper", "Long lists", "Endpoints", "Where it runs"


@contextmanager
def _errors() -> Iterator[None]:
    """Errors meant for users become one message and exit code 1."""
    try:
        yield
    except R1RankerError as error:
        stderr.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _write_json(path: Path | None, result: Any) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, default=str) + "\n")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where results go.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of training; the data stay the same.")] = 0,
    tokens: Annotated[
        int | None, typer.Option(help="Training tokens of each design; default: what fits minutes.")
    ] = None,
    json_: Json = None,
) -> None:
    """Train DRanker and IRanker from the embedded model, compare all systems on the nine embedded tasks.

    Example: `r1ranker quickstart --seed 1 --out runs/seed1`
    """
    from r1ranker.evaluation.table import results_table
    from r1ranker.quickstart import run_quickstart

    with _errors():
        result = run_quickstart(out, seed=seed, tokens=tokens)
    console.print(results_table(result.rows, result.comparisons, intervals=console.width >= 150))
    console.print(f"IRanker over the same model without RL: {result.gain:+.1%} average relative MRR")
    console.print(f"results {out / 'results.json'}   page {out / 'report.html'}   seconds {result.seconds:.0f}")
    rows = [dataclasses.asdict(row) for row in result.rows]
    _write_json(json_, {"rows": rows, "gain": result.gain, "seconds": result.seconds, "out": out})


@app.command()
def warmstart(config: Config = None, settings: Settings = None, json_: Json = None) -> None:
    """Supervised start: teach a model the format and a weak first opinion.

    Example: `r1ranker warmstart configs/nano.yaml -s out=runs/nano`
    """
    from r1ranker.data import load_splits
    from r1ranker.training.config import load_config
    from r1ranker.training.warmstart import warmstart as run

    with _errors():
        loaded = load_config(config, settings or [])
        directory = run(loaded, load_splits(loaded.data)["train"])
    console.print(f"model {directory}")
    _write_json(json_, {"model": directory})


@app.command()
def train(
    config: Config = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the run's folder.")] = False,
    json_: Json = None,
) -> None:
    """Train a ranker by PPO; keeps the model that is best on dev.

    Example: `r1ranker train configs/mini.yaml -s design=dranker -s out=runs/dranker`
    """
    from r1ranker.data import load_splits
    from r1ranker.training.config import load_config
    from r1ranker.training.logs import read_log
    from r1ranker.training.ppo import train as run

    with _errors():
        loaded = load_config(config, settings or [])
        directory = run(loaded, load_splits(loaded.data), resume=resume)
    last = read_log(loaded.out)[-1]
    console.print(f"model {directory}   step {last['step']:.0f}   dev MRR {last.get('dev_mrr', float('nan')):.3f}")
    _write_json(json_, {"model": directory, "last": last})


@app.command()
def rank(
    problems: Annotated[Path, typer.Argument(help="Problems as JSON Lines; `r1ranker data convert` makes them.")],
    out: Annotated[Path, typer.Option(help="TREC run file to write.")] = Path("run.trec"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a job that was killed.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Also write whole rankings here: steps, thoughts, usage (JSON Lines).")
    ] = None,
    json_: Json = None,
    model: Annotated[str, typer.Option(help="Hub name, directory, or nano; at an endpoint, its name there.")] = "nano",
    design: Annotated[Design, typer.Option(help="iranker or dranker.")] = "iranker",
    think: Annotated[bool, typer.Option(help="A free thought before each answer.")] = False,
    layout: Annotated[
        Layout, typer.Option(help="relist (the paper's), or append: one prefix, for models trained in it (iranker).")
    ] = "relist",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 1024,
    shuffles: Annotated[int, typer.Option(min=1, help="Rank in this many random orders and merge.")] = 1,
    top_k: Annotated[
        int, typer.Option(min=1, help="Stop when this many are left (iranker).", rich_help_panel=CHEAPER)
    ] = 1,
    drop: Annotated[
        int, typer.Option(min=1, help="Remove this many in one step (iranker, no thought).", rich_help_panel=CHEAPER)
    ] = 1,
    head: Annotated[
        int | None,
        typer.Option(min=1, help="Rank directly, then the best this many again iteratively.", rich_help_panel=CHEAPER),
    ] = None,
    max_calls: Annotated[
        int | None, typer.Option(min=0, help="Calls a query may cost (iranker).", rich_help_panel=CHEAPER)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=0, help="Tokens a query may cost (iranker).", rich_help_panel=CHEAPER)
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Seconds a query may take (iranker).", rich_help_panel=CHEAPER)
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps every reply, to ask nothing twice.", rich_help_panel=CHEAPER)
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Slide a window of this size from end to head.", rich_help_panel=LONG)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Slide it by this many; default: half of it.", rich_help_panel=LONG)
    ] = None,
    tournament: Annotated[
        int | None,
        typer.Option(min=2, help="Groups of this size; the better half of each goes on.", rich_help_panel=LONG),
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            help="OpenAI-compatible, such as http://localhost:8000/v1; repeatable.", rich_help_panel=ENDPOINTS
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Queries under way at a time.", rich_help_panel=ENDPOINTS)
    ] = 32,
    prices: Annotated[
        Path | None, typer.Option(help="YAML or JSON file of prices by model.", rich_help_panel=ENDPOINTS)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.", rich_help_panel=RUNS)] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Queries in one batch.", rich_help_panel=RUNS)] = 64,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, auto, or local.", rich_help_panel=RUNS)
    ] = None,
) -> None:
    """Rank the candidates of every problem; writes a TREC run file. Exits with 1 when a query failed.

    Example: `r1ranker rank problems.jsonl --model runs/iranker/model --out run.trec --resume`

    Long lists: `r1ranker rank problems.jsonl --window 20 --stride 10`

    The best ten, cheaper: `r1ranker rank problems.jsonl --layout append --top-k 10 --max-calls 15`

    Endpoints: `r1ranker rank problems.jsonl --model org/model --base-url http://a:8000/v1 --base-url http://b:8000/v1`
    """
    from r1ranker.jobs import failed_of, rank_file
    from r1ranker.spec import RankerSpec

    with _errors():
        spec = RankerSpec(
            design=design,
            model=model,
            think=think,
            layout=layout,
            top_k=top_k,
            drop=drop,
            max_calls=max_calls,
            max_tokens=max_tokens,
            max_seconds=max_seconds,
            head=head,
            window=window,
            stride=stride,
            tournament=tournament,
            shuffles=shuffles,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            device=device,
            base_urls=tuple(base_url or ()),
            concurrency=concurrency,
            prices=prices,
            cache=cache,
        )
        result = rank_file(problems, spec, out, resume=resume, trace=trace, ray=ray)
    usage = result.usage
    console.print(
        f"run {out}   queries {result.queries}   kept {result.kept}   broken answers {result.broken}   "
        f"calls {usage.calls}   retries {usage.retries}   cost {usage.cost:.4g}   "
        f"seconds {result.seconds:.1f}   tokens/s {result.tokens_per_second:.0f}",
        soft_wrap=True,
    )
    _write_json(json_, {"spec": dataclasses.asdict(spec)} | dataclasses.asdict(result))
    if result.failed:
        where = f"{failed_of(out)} says why; remove it and go on by --resume to try them again"
        stderr.print(f"[bold red]failed:[/] {result.failed} queries; {escape(where)}", highlight=False, soft_wrap=True)
        raise typer.Exit(1)


@app.command()
def evaluate(
    config: Config = None,
    settings: Settings = None,
    system: Annotated[
        list[str] | None, typer.Option(help="NAME=DESIGN:MODEL, such as iranker=iranker:runs/x/model; repeatable.")
    ] = None,
    run: Annotated[list[str] | None, typer.Option(help="NAME=FILE of a TREC run; repeatable.")] = None,
    baselines: Annotated[str, typer.Option(help="Baselines, by comma.")] = "random,prior,bm25",
    against: Annotated[str, typer.Option(help="System the others are tested against.")] = "prior",
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    out: Annotated[Path, typer.Option(help="Folder for results.json, report.html and the run files.")] = Path(
        "runs/eval"
    ),
    workers: Annotated[int, typer.Option(min=1, help="Systems ranked side by side.")] = 1,
    json_: Json = None,
) -> None:
    """Compare systems on the data of a config: measures, intervals, tests, costs, an HTML page.

    Example: `r1ranker evaluate configs/mini.yaml --system base=iranker:nano --system iranker=iranker:runs/x/model`
    """
    from r1ranker.data import load_splits
    from r1ranker.evaluation.runs import read_run
    from r1ranker.evaluation.systems import evaluate_systems, parse_system
    from r1ranker.evaluation.table import results_table
    from r1ranker.training.config import load_config

    with _errors():
        loaded = load_config(config, settings or [])
        problems = _split(load_splits(loaded.data), split)
        models = [parse_system(text, loaded) for text in system or []]
        runs = {name: read_run(Path(path)) for name, path in (_named(text) for text in run or [])}
        result = evaluate_systems(
            [*filter(None, baselines.split(",")), *models],
            problems,
            out=out,
            split=split,
            baseline=against,
            settings=loaded.model_dump(mode="json"),
            given=runs,
            workers=workers,
        )
    console.print(results_table(result.rows, result.comparisons, intervals=console.width >= 150))
    console.print(f"results {out / 'results.json'}   page {out / 'report.html'}")
    _write_json(json_, [dataclasses.asdict(row) for row in result.rows])


@app.command()
def compare(
    out: Annotated[Path, typer.Argument(help="Folder of a finished `r1ranker evaluate` or `quickstart`.")],
    against: Annotated[str, typer.Option(help="System the others are tested against.")] = "prior",
    measure: Annotated[str, typer.Option(help="Measure to compare by.")] = "MRR",
    json_: Json = None,
) -> None:
    """Differences to one system: paired randomisation test, Holm-adjusted over all tasks and systems.

    Example: `r1ranker compare runs/quickstart --against base-iterative`
    """
    from r1ranker.evaluation.results import comparison
    from r1ranker.evaluation.systems import read_per_query
    from r1ranker.evaluation.table import comparison_table

    with _errors():
        tests = comparison(against, read_per_query(out), measures=[measure])
    console.print(comparison_table(tests))
    _write_json(json_, [dataclasses.asdict(test) for test in tests])


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
    _write_json(json_, {name: {"layout": s.layout, "options": list(s.options)} for name, s in SOURCES.items()})


@data_app.command("validate")
def data_validate(
    path: Annotated[Path, typer.Argument(help="A .jsonl file, or a folder with train/dev/test.jsonl.")],
    json_: Json = None,
) -> None:
    """Check your own problems; every fault is named with its line. Exits with 1 when there is one.

    Example: `r1ranker data validate problems.jsonl`
    """
    from r1ranker.datasets.jsonl import NOTE, validate_jsonl

    with _errors():
        messages = validate_jsonl(path)
    for message in messages:
        console.print(message, highlight=False, soft_wrap=True, markup=False)
    faults = [message for message in messages if f" {NOTE}" not in message]
    console.print(f"{len(faults)} faults, {len(messages) - len(faults)} notes")
    _write_json(json_, {"faults": faults, "messages": messages})
    if faults:
        raise typer.Exit(1)


@data_app.command("convert")
def data_convert(
    out: Annotated[Path, typer.Argument(help="Folder for train.jsonl, dev.jsonl and test.jsonl.")],
    config: Annotated[Path | None, typer.Option(help="YAML whose `data` to convert.")] = None,
    settings: Settings = None,
    json_: Json = None,
) -> None:
    """Write the problems of any source as JSON Lines.

    Example: `r1ranker data convert ml -s data.0.source=movielens -s data.0.path=ml-1m`
    """
    from r1ranker.datasets.jsonl import write_jsonl

    with _errors():
        splits = _load(config, settings)
        out.mkdir(parents=True, exist_ok=True)
        for split, problems in splits.items():
            write_jsonl(problems, out / f"{split}.jsonl")
    counts = {split: len(problems) for split, problems in splits.items()}
    console.print(f"wrote {out}: {counts}")
    _write_json(json_, counts)


@data_app.command("stats")
def data_stats(
    config: Annotated[Path | None, typer.Option(help="YAML whose `data` to look at.")] = None,
    settings: Settings = None,
    json_: Json = None,
) -> None:
    """Problems, pool sizes, ties, words per task and split.

    Example: `r1ranker data stats -s data.0.source=lastfm -s data.0.path=hetrec-lastfm`
    """
    from rich.table import Table

    from r1ranker.data import stats

    with _errors():
        rows = stats(_load(config, settings))
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    _write_json(json_, rows)


def _load(config: Path | None, settings: Sequence[str] | None) -> Splits:
    from r1ranker.data import load_splits
    from r1ranker.training.config import load_config

    return load_splits(load_config(config, settings or []).data)


def _split(splits: Splits, split: str) -> list[Any]:
    if not splits.get(split):
        raise ConfigError(f"the data have no {split!r} problems; splits: {', '.join(splits)}")
    return splits[split]


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ConfigError(f"{text!r}: give NAME=VALUE")
    return name, value


if __name__ == "__main__":
    app()
