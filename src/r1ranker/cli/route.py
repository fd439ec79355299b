"""`r1ranker route`: which LLM a prompt would go to, and why, on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from r1ranker.cli.common import Json, console, errors, write_json
from r1ranker.errors import BackendError, ConfigError


def route(
    prompt: Annotated[str, typer.Argument(help="What would be asked.")],
    config: Annotated[Path, typer.Option(help="YAML of models, prices and routers, as `serve` takes it.")],
    router: Annotated[
        str | None, typer.Option(help="A router of the YAML, or with a wish, such as auto:cost; default: the first.")
    ] = None,
    cost_quality: Annotated[
        float | None, typer.Option(min=0, max=1, help="Weight of quality: 0: only price matters, 1: only quality.")
    ] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Dollars an answer may cost, as estimated.")] = None,
    json_: Json = None,
) -> None:
    """Show the order of the LLMs for a prompt, what an answer would cost, and which are left out. No LLM is asked.

    Example: `r1ranker route "Prove that there are infinitely many primes." --config serve.yaml --router auto:cost`
    """
    from rich.table import Table

    from r1ranker.io.locks import check_outputs
    from r1ranker.ranking.scores import scores
    from r1ranker.serving.body import BodyError
    from r1ranker.serving.decide import decision_of, pool_of, read_ask
    from r1ranker.serving.needs import needs_of
    from r1ranker.serving.route_settings import routers_of
    from r1ranker.serving.settings import load_settings

    with errors():
        check_outputs({"--json": json_}, {"--config": config})
        settings = load_settings(config, {})
        name = router or next(iter(routers_of(settings)), "auto")
        values: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        values["router"] = {"cost_quality": cost_quality, "max_cost": max_cost}
        try:
            asked = read_ask(name, values, {}, settings)
        except BodyError as error:
            raise ConfigError(str(error)) from error
        if asked is None:
            raise ConfigError(f"{name!r} is an LLM: nothing is to be decided; name a router")
        pool = pool_of(asked, needs_of(values), settings)
        decision = decision_of(pool)
        if pool.problem is not None:
            which = asked.router.ranker or settings.default_ranker
            ranking = settings.rankers[which].build().rank(pool.problem)
            if ranking.error:
                raise BackendError(f"{which} could not rank: {ranking.error}")
            if not ranking.steps:
                raise ConfigError(f"{which} asks nothing about {len(pool.names)} LLMs: lower its top_k")
            decision = decision_of(pool, ranking.docids, scores(pool.problem, ranking), which)
    table = Table("place", "model", "score", "estimated cost", "left out for")
    for place, (model, score) in enumerate(zip(decision.order, decision.scores or [None], strict=False), 1):
        table.add_row(str(place), model, "" if score is None else f"{score:.3f}", f"${decision.costs[model]:.6f}", "")
    for model, why in decision.left_out.items():
        table.add_row("", model, "", f"${decision.costs[model]:.6f}", why)
    console.print(table)
    console.print(f"objective: {asked.objective}   {decision.reason}", highlight=False, markup=False, soft_wrap=True)
    write_json(json_, {"router": asked.name, "objective": asked.objective} | decision.as_json())
    if not decision.order:
        raise typer.Exit(1)
