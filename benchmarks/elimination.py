"""What elimination adds to judges: quality beside cost, from the embedded model on the embedded tasks.

    python benchmarks/elimination.py --seeds 0 --json out.json      # hours on one core; what is done is kept
    python benchmarks/elimination.py --seeds 0 --limit 40 --systems judge added --json out.json

A judge gives each candidate a number and a query is one pass; an identifier is a decision that attends to all that are
left. Every run is that of the quickstart, some in parts: a part begins from the model of the one before, with another
read-out. In: nothing. Out: a row for each system: average MRR, its difference from the first system's with a 95 %
interval, nDCG@10, tokens (read and written) and decisions a query. Models and rankings stay in `--out`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from r1ranker.baselines.notes import load_splits
from r1ranker.cli.common import write_json
from r1ranker.evaluation.measures import evaluate
from r1ranker.evaluation.significance import bootstrap_means, percentile_interval
from r1ranker.io.config import RunConfig, load_config
from r1ranker.io.files import write_whole
from r1ranker.io.provenance import provenance
from r1ranker.problem import Problem, Ranking, by_task, first_by_task
from r1ranker.ranking.rankers import DRanker, Hybrid, IRanker, Ranker

if TYPE_CHECKING:
    from r1ranker.backends.transformers_ import TransformersBackend

Overrides = tuple[str, ...]
SECOND_LOOK = 5
LONGEST = 20
"""Candidates of the longest pool: so many leaving at once are all in one decision."""
AT_ONCE = 60
"""Queries between two writes of a file."""
BEST: Overrides = ("design=iranker", "readout=judge", "ask=best", "ppo.objective=log")
STEPS: Overrides = ("ppo.validate_problems=10",)
"""A ranking of many decisions costs as much on dev as hundreds of training samples, so fewer choose the model."""
LABEL: Overrides = (*BEST, *STEPS, "readout=identifier")
RELIST: Overrides = (*BEST, *STEPS, "layout=relist", "ppo.actor_lr=5e-5", "ppo.critic=head")
RUNS: dict[str, tuple[tuple[float, Overrides], ...]] = {
    "judge": ((1.0, BEST),),
    "judge-worst": ((1.0, (*BEST, "ask=worst")),),
    "identifier": ((1.0, LABEL),),
    "identifier-worst": ((1.0, (*LABEL, "ask=worst")),),
    "judge, then identifier": ((0.5, BEST), (0.5, LABEL)),
    "judge, and identifier": ((1.0, BEST), (0.25, LABEL)),
    "judge, then relist": ((0.5, BEST), (0.5, RELIST)),
    "list": ((1.0, ("design=dranker", "readout=judge", "ppo.objective=surrogate")),),
}
"""What each part of a run trains, and on how much of the token budget. `judge, and identifier` has a quarter more than
the others: what it does not reach is not for want of tokens."""


def judge(backend: TransformersBackend) -> Ranker:
    """Each candidate by its own number."""
    return IRanker(backend, layout="blocks", ask="best")


def named(backend: TransformersBackend, **settings: str | int) -> IRanker:
    """A decision a step."""
    return IRanker(backend, layout="blocks", readout="identifier", **({"ask": "best"} | settings))  # type: ignore[arg-type]


def listed(backend: TransformersBackend, layout: str, ask: str = "worst") -> IRanker:
    """A decision a step over candidates that see each other; the embedded model was made to remove the worst so."""
    return IRanker(backend, layout=layout, ask=ask)  # type: ignore[arg-type]


def again(backend: TransformersBackend, then: Ranker) -> Ranker:
    """The best few of the judge's order are read once more."""
    return Hybrid(then, first=judge(backend), size=SECOND_LOOK)


SYSTEMS: dict[str, tuple[str, Callable[[TransformersBackend], Ranker]]] = {
    "judge": ("judge", judge),
    "judge-worst": ("judge-worst", lambda b: IRanker(b, layout="blocks", ask="worst")),
    "list": ("list", lambda b: DRanker(b, layout="blocks")),
    "identifier": ("identifier", named),
    "identifier-one-step": ("identifier", lambda b: named(b, drop=LONGEST)),
    "taught": ("judge, then identifier", named),
    "taught-one-step": ("judge, then identifier", lambda b: named(b, drop=LONGEST)),
    "taught-judge": ("judge, then identifier", judge),
    "taught-judge-5": ("judge, then identifier", lambda b: again(b, named(b))),
    "added": ("judge, and identifier", named),
    "added-one-step": ("judge, and identifier", lambda b: named(b, drop=LONGEST)),
    "added-judge": ("judge, and identifier", judge),
    "added-judge-5": ("judge, and identifier", lambda b: again(b, named(b))),
    "judge-judge-5": ("judge", lambda b: again(b, judge(b))),
    "judge-relist-5": ("judge", lambda b: again(b, listed(b, "relist"))),
    "judge-relist-5-best": ("judge", lambda b: again(b, listed(b, "relist", "best"))),
    "judge-append-5": ("judge", lambda b: again(b, listed(b, "append"))),
    "identifier-worst": ("identifier-worst", lambda b: named(b, ask="worst")),
    "identifier-worst-one-step": ("identifier-worst", lambda b: named(b, ask="worst", drop=LONGEST)),
    "relisted": ("judge, then relist", lambda b: listed(b, "relist", "best")),
    "relisted-judge": ("judge, then relist", judge),
    "relisted-judge-5": ("judge, then relist", lambda b: again(b, listed(b, "relist", "best"))),
}
"""By name: the run whose model ranks, and how."""
RANKINGS = TypeAdapter(list[Ranking])


def trained(config: RunConfig, run: str, out: Path) -> Path:
    """The model of a run, its parts one after the other; what is done is not done again."""
    from r1ranker.experiments.study import Study  # else a table of what is there would wait for transformers

    study, model = Study("elimination", "mini", config, out, out / "models", None), config.model
    for share, overrides in RUNS[run]:
        model = str(study.trained([*overrides, f"model={model}", f"ppo.token_budget={study.budget(share)}"]))
    return Path(model)


def ranked(config: RunConfig, system: str, problems: Sequence[Problem], out: Path) -> list[Ranking]:
    """The rankings of a system; those in its file are not made again."""
    file = out / "rankings" / f"seed{config.seed}" / f"{system}.json"
    known = {ranking.qid: ranking for ranking in RANKINGS.validate_json(file.read_bytes())} if file.is_file() else {}
    todo = [problem for problem in problems if problem.qid not in known]
    if todo:
        from r1ranker.backends.transformers_ import TransformersBackend

        run, ranker = SYSTEMS[system]
        backend = TransformersBackend.load(str(trained(config, run, out)))
        for first in range(0, len(todo), AT_ONCE):
            known |= {r.qid: r for r in ranker(backend).rank_many(todo[first : first + AT_ONCE])}
            write_whole(file, RANKINGS.dump_json(list(known.values())).decode())
    return [known[problem.qid] for problem in problems]


def by_oracle(problem: Problem, ranking: Ranking) -> Ranking:
    """The best few of an order in the order of their gains: more than this no second look can give."""
    head = sorted(ranking.docids[:SECOND_LOOK], key=lambda docid: -problem.gains.get(docid, 0.0))
    return dataclasses.replace(ranking, docids=(*head, *ranking.docids[SECOND_LOOK:]))


Values = Mapping[str, Mapping[str, float]]
"""Of one measure, by task and query."""


def values_of(rankings: Sequence[Ranking], problems: Sequence[Problem], measure: str) -> Values:
    """What each query of each task is worth."""
    by_qid = {ranking.qid: ranking for ranking in rankings}
    return {
        task: evaluate([by_qid[problem.qid] for problem in of_task], of_task)[measure]
        for task, of_task in by_task(problems).items()
    }


def mean(values: Values) -> float:
    """Over tasks, each weighing the same."""
    return fmean(fmean(of_task.values()) for of_task in values.values())


def interval(values: Values, baseline: Values) -> tuple[float, float]:
    """95 % bootstrap interval of the mean difference; queries are drawn anew within each task."""
    means = [
        bootstrap_means([value - baseline[task][qid] for qid, value in of_task.items()], seed=number)
        for number, (task, of_task) in enumerate(values.items())
    ]
    return percentile_interval(np.mean(means, axis=0))


def compared(given: Mapping[str, Sequence[Ranking]], problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """A row for each system; differences are those from the first of them."""
    mrr = {name: values_of(rankings, problems, "MRR") for name, rankings in given.items()}
    baseline = mrr[next(iter(mrr))]
    rows: list[dict[str, Any]] = []
    for name, rankings in given.items():
        low, high = interval(mrr[name], baseline)
        used = [ranking.usage for ranking in rankings]
        row = {"system": name, "queries": len(problems), "MRR": mean(mrr[name]), "low": low, "high": high}
        row |= {"difference": mean(mrr[name]) - mean(baseline)}
        row |= {"nDCG@10": mean(values_of(rankings, problems, "nDCG@10"))}
        row |= {"tokens": fmean(u.prompt_tokens + u.generated_tokens for u in used)}
        rows.append(row | {"decisions": fmean(u.calls for u in used)})
    return rows


def main() -> None:
    """Train, rank and evaluate, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--limit", type=int, help="test queries of each task (all)")
    parser.add_argument("--out", type=Path, default=Path("runs/elimination"), help="what is done is not done again")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in asked.seeds:
        config = load_config(Path("quickstart"), [f"seed={seed}", "threads=1"])
        problems = first_by_task(load_splits(config.data, config.scenarios)["test"], asked.limit)
        given = {name: ranked(config, name, problems, asked.out) for name in asked.systems}
        if "judge" in given:
            given["oracle-5"] = [by_oracle(*pair) for pair in zip(problems, given["judge"], strict=True)]
        rows += [{"seed": seed} | row for row in compared(given, problems)]
        write_json(asked.json, {"provenance": provenance(), "rows": rows})
    columns = ("seed", "system", "queries", "MRR", "difference", "low", "high", "nDCG@10", "tokens", "decisions")
    table = Table(*columns, title="what elimination adds to judges")
    for row in rows:
        table.add_row(*(f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in columns))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
