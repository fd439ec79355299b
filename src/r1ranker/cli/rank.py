"""`r1ranker rank`, the command with the most options: each is a field of `RankerSpec`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from r1ranker.cli.common import Json, Scenarios, complain, console, errors, warn_of_answers, write_json
from r1ranker.prompts import Design, Layout, QueryPlace, Readout, Wanted
from r1ranker.ranking.spec import Engine, RankerSpec

CHEAPER, LONG, ENDPOINTS, RUNS = "Cheaper", "Long lists", "Endpoints", "Where it runs"


def rank(
    problems: Annotated[Path, typer.Argument(help="Problems as JSON Lines; `r1ranker data convert` makes them.")],
    out: Annotated[Path, typer.Option(help="TREC run file to write.")] = Path("run.trec"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a job that was killed.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Also write whole rankings here: steps, thoughts, usage (JSON Lines).")
    ] = None,
    scenarios: Scenarios = None,
    json_: Json = None,
    model: Annotated[
        str, typer.Option(help="Directory, hub name, GGUF file, nano or smol; at an endpoint, its name there.")
    ] = "nano",
    design: Annotated[Design, typer.Option(help="iranker or dranker.")] = "iranker",
    think: Annotated[bool, typer.Option(help="A free thought before each answer.")] = False,
    layout: Annotated[
        Layout | None,
        typer.Option(help="relist (the paper's), append (one prefix) or blocks; default: as the model was trained."),
    ] = None,
    readout: Annotated[
        Readout | None, typer.Option(help="Of layout blocks: judge, or identifier; default: as the model was trained.")
    ] = None,
    ask: Annotated[
        Wanted | None, typer.Option(help="Remove the worst, or select the best; default: as the model was trained.")
    ] = None,
    query: Annotated[
        QueryPlace | None,
        typer.Option(help="Of layout blocks: first, or last, behind candidates; default: as the model was trained."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 1024,
    truncate: Annotated[
        int | None,
        typer.Option(min=1, help="Cut candidates' texts evenly where a prompt has more tokens than this."),
    ] = None,
    thoughts: Annotated[
        str | None, typer.Option(help="File of recorded thoughts; those on like queries stand before each prompt.")
    ] = None,
    recall: Annotated[
        str | None, typer.Option(help="How they are found: a sentence-transformers model; default BM25.")
    ] = None,
    shuffles: Annotated[int, typer.Option(min=1, help="Rank in this many random orders and merge.")] = 1,
    fuse: Annotated[
        str | None, typer.Option(help="Fuse with the first stage's order: rrf, or the model's weight from 0 to 1.")
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Stop when this many are left (iranker).", rich_help_panel=CHEAPER)
    ] = 1,
    drop: Annotated[
        int, typer.Option(min=1, help="Remove this many in one step (iranker, no thought).", rich_help_panel=CHEAPER)
    ] = 1,
    depth: Annotated[
        int | None,
        typer.Option(
            min=2, help="Rank the first this many; the others keep their order behind them.", rich_help_panel=CHEAPER
        ),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(min=1, help="Rank directly, then the best this many again iteratively.", rich_help_panel=CHEAPER),
    ] = None,
    max_calls: Annotated[
        int | None, typer.Option(min=1, help="Calls a query may cost (iranker).", rich_help_panel=CHEAPER)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens a query may cost (iranker).", rich_help_panel=CHEAPER)
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Seconds a query may take (iranker).", rich_help_panel=CHEAPER)
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps every reply, to ask nothing twice.", rich_help_panel=CHEAPER)
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="File that keeps what was read of candidates, for any query (--query last); made and added to.",
            rich_help_panel=CHEAPER,
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Slide a window of this size from end to head.", rich_help_panel=LONG)
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
    dtype: Annotated[
        str, typer.Option(help="auto (what is faster), float32, bfloat16, float16.", rich_help_panel=RUNS)
    ] = "auto",
    engine: Annotated[
        Engine, typer.Option(help="What runs the model here: transformers or vllm.", rich_help_panel=RUNS)
    ] = "transformers",
    batch_size: Annotated[int, typer.Option(min=1, help="Queries in one batch.", rich_help_panel=RUNS)] = 64,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, auto, or local.", rich_help_panel=RUNS)
    ] = None,
) -> None:
    """Rank the candidates of every problem; writes a TREC run file. Exits with 1 when a query failed.

    Example: `r1ranker rank problems.jsonl --model runs/iranker/model --out run.trec --resume`

    Long lists: `r1ranker rank problems.jsonl --window 20 --stride 10`

    The first twenty of a first stage: `r1ranker rank problems.jsonl --depth 20`

    The best ten, cheaper: `r1ranker rank problems.jsonl --layout append --top-k 10 --max-calls 15`

    Endpoints: `r1ranker rank problems.jsonl --model org/model --base-url http://a:8000/v1 --base-url http://b:8000/v1`
    """
    options = dict(locals())
    rank_job(options, lambda: problems, {"the problems": problems})


def rank_job(
    options: Mapping[str, Any],
    problems: Callable[[], Path],
    read: Mapping[str, Path | None],
    measured: Callable[[Path], dict[str, Any]] = lambda _: {},
) -> None:
    """Rank a file of problems as a command's options say, and tell what came of it. Exits with 1 when a query failed.

    options: those of `rank` by their parameters' names. problems: makes the file, when all else has been checked.
    read: files that no output may be, by what messages call them. measured: what `--json` holds beside, of the run.
    """
    from r1ranker.io.config import read_scenarios
    from r1ranker.io.locks import check_outputs
    from r1ranker.ranking.jobs import rank_file
    from r1ranker.ranking.journal import check_unused, failed_of, journal_of

    out, trace, resume, json_ = (options[name] for name in ("out", "trace", "resume", "json_"))
    with errors(f"go on by the same command with --resume: what is finished stands in {out}"):
        spec = _spec(options)
        written = {"--out": out, "--trace": trace, "the journal": journal_of(out), "the failures": failed_of(out)}
        thoughts = Path(spec.thoughts) if spec.thoughts else None
        more_read = {"--prices": spec.prices, "--thoughts": thoughts, "--scenarios": options["scenarios"]}
        more_read["--store"] = spec.store
        check_outputs(written | {"--json": json_}, {**read, **more_read})
        records = read_scenarios(options["scenarios"]) if options["scenarios"] else {}
        spec.check()
        if not resume:
            check_unused(out, trace)
        result = rank_file(problems(), spec, out, resume=resume, trace=trace, ray=options["ray"], scenarios=records)
    with errors():
        more = measured(out)
    usage = result.usage
    console.print(
        f"run {out}   queries {result.queries}   kept {result.kept}   broken answers {result.broken}   "
        f"calls {usage.calls}   retries {usage.retries}   cost {usage.cost:.4g}   "
        f"seconds {result.seconds:.1f}   tokens/s {result.tokens_per_second:.0f}",
        soft_wrap=True,
    )
    write_json(json_, {"spec": dataclasses.asdict(spec)} | dataclasses.asdict(result) | more)
    warn_of_answers(str(spec.design), result.broken, usage.calls)
    if usage.cut:
        fits = "the model's context" if spec.truncate == "context" else f"{spec.truncate} tokens"
        complain("note", f"texts were cut in {usage.cut} lists to fit {fits}")
    if result.unasked:
        few = f"they have no more than {spec.top_k} candidates" if spec.top_k > 1 else ""
        rule = few or "their settings left nothing to ask"
        complain("warning", f"nothing was asked about {result.unasked} queries, which stand as they came: {rule}")
    if result.failed:
        where = f"{failed_of(out)} says why; remove it and go on by --resume to try them again"
        complain("failed", f"{result.failed} queries; {where}")
        complain("error", f"the first: {_first(failed_of(out))}")
        raise typer.Exit(1)


def _spec(options: Mapping[str, Any]) -> RankerSpec:
    """The ranker that a command's options describe."""
    from r1ranker.ranking.fusing import parse_fusion

    fields = {field.name: options[field.name] for field in dataclasses.fields(RankerSpec) if field.name in options}
    fuse = options["fuse"]
    special = {"fuse": None if fuse is None else parse_fusion(fuse), "base_urls": tuple(options["base_url"] or ())}
    return RankerSpec(**{**fields, **special})


def _first(failures: Path) -> str:
    with failures.open(encoding="utf-8") as lines:
        first = json.loads(next(lines))
    return f"{first['qid']}: {first['error']}"
