"""`r1ranker rerank`: from a corpus, queries and a first stage, each in a file, to a run; the rest is `rank`.

All of rank's options are this command's too, so that none can be here and not there.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from r1ranker.cli.common import console, errors
from r1ranker.cli.rank import rank, rank_job
from r1ranker.errors import ConfigError
from r1ranker.problem import Problem

TOLD = ("nDCG@10", "MRR")
DEPTH = 100

Corpus = Annotated[Path, typer.Option(help="Passages: JSON Lines (BEIR), or lines of identifier, tab, text.")]
Queries = Annotated[Path, typer.Option(help="Queries, in the same formats.")]
Run = Annotated[Path | None, typer.Option(help="First stage, a TREC run; without it BM25 over the whole corpus.")]
Qrels = Annotated[
    Path | None,
    typer.Option(help="Judgements, TREC's or BEIR's: the judged queries are ranked, and measured before and after."),
]
Model = Annotated[str, typer.Option(help="Directory, hub name, GGUF file or smol; at an endpoint, its name there.")]
Depth = Annotated[
    int, typer.Option(min=2, help="Rerank the first this many; others of the run keep their order behind them.")
]


def rerank(
    corpus: Corpus,
    queries: Queries,
    model: Model,
    run: Run = None,
    qrels: Qrels = None,
    depth: Depth = DEPTH,
    **options: Any,
) -> None:
    """Rerank a first stage, from files; writes a TREC run file. Exits with 1 when a query failed.

    Files may be compressed. What is ranked stands beside the run, as `RUN.problems.jsonl`. Passages are cut evenly
    where they would not fit the model's context; --truncate cuts them to fewer tokens.

    Example: `r1ranker rerank --corpus corpus.jsonl --queries queries.jsonl --model smol --out run.trec`

    With a first stage, and judged: `r1ranker rerank --corpus c.tsv --queries q.tsv --run bm25.trec --qrels qrels.txt`
    """
    from r1ranker.io.locks import check_outputs, held

    options |= {"model": model, "depth": depth, "truncate": options["truncate"] or "context"}
    read = {"--corpus": corpus, "--queries": queries, "--run": run, "--qrels": qrels}
    out: Path = options["out"]
    made = out.with_name(f"{out.name}.problems.jsonl")
    problems: list[Problem] = []

    def make() -> Path:
        from r1ranker.datasets.trec import from_files
        from r1ranker.io.problems import read_jsonl, write_jsonl

        problems.extend(from_files(corpus, queries, run, qrels, depth=depth))
        if not (options["resume"] and made.is_file()):
            write_jsonl(problems, made)
        elif read_jsonl(made) != problems:
            raise ConfigError(
                f"{out} was begun with other problems than these files give: take those files, or another --out"
            )
        return made

    with errors():
        for name, path in read.items():
            if path is not None and not path.is_file():
                raise ConfigError(f"{name}: no such file: {path}")
        check_outputs({"the problems": made}, {**read, "--out": out})
        with held(made):
            rank_job(options, make, read, lambda run: _measured(problems, run) if qrels else {})


def _measured(problems: list[Problem], run: Path) -> dict[str, Any]:
    """Means over the judged queries of the first stage and of the run, which are also printed."""
    from r1ranker.baselines.simple import prior
    from r1ranker.evaluation.measures import evaluate
    from r1ranker.io.runs import read_run

    rankings = {"first stage": prior(problems), "reranked": read_run(run) if run.stat().st_size else []}
    found: dict[str, dict[str, float]] = {}
    for name, of_one in rankings.items():
        values = evaluate(of_one, problems)
        found[name.replace(" ", "_")] = {measure: fmean(values[measure].values()) for measure in TOLD}
    for measure in TOLD:
        before, after = (of_one[measure] for of_one in found.values())
        console.print(f"{measure} {before:.4f} -> {after:.4f}", highlight=False)
    return {"judged": len(problems), "measures": found}


def _with_options_of_rank() -> None:
    """Has `rerank` show every option of `rank` that it does not name itself: commands are made from signatures."""
    own = inspect.signature(rerank, eval_str=True).parameters
    shared = inspect.signature(rank, eval_str=True).parameters
    names = {name: p for name, p in own.items() if p.kind is not p.VAR_KEYWORD}
    names |= {name: p for name, p in shared.items() if name not in ("problems", *own)}
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in names.values()]
    rerank.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    rerank.__annotations__ = {p.name: p.annotation for p in parameters}


_with_options_of_rank()
