"""`r1ranker demo`: what an elimination looks like, at once."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from r1ranker.cli.common import Json, console, errors, write_json


def demo(
    model: Annotated[str, typer.Option(help="As in `rank`, such as runs/quickstart/iranker/model.")] = "nano",
    json_: Json = None,
) -> None:
    """Rank a bundled problem of each scenario, and show who leaves at each step.

    Example: `r1ranker demo`
    """
    from r1ranker.datasets.mini import examples
    from r1ranker.evaluation.steps import steps_shown
    from r1ranker.io.locks import check_outputs
    from r1ranker.ranking.spec import RankerSpec

    with errors():
        check_outputs({"--json": json_}, {})
        problems = examples()
        console.print(
            f"IRanker with {model}: a bar for each candidate left, by its identifier, says how probable it is that "
            "it leaves next.\n"
        )
        rankings = RankerSpec(model=model).build().rank_many(problems)
    for problem, ranking in zip(problems, rankings, strict=True):
        console.print(steps_shown(problem, ranking))
        console.print()
    write_json(json_, [dataclasses.asdict(ranking) for ranking in rankings])
