"""How much training it takes to be as good as plain PPO is at its end.

    python benchmarks/samples.py --json out.json      # a seed took half an hour beside two other jobs
    python benchmarks/samples.py --saved out.json --json out.json      # curves that stand there are not trained again

Plain is the paper's: sampled answers, binary rewards, states of every pool size, at three learning rates. `expected` is
what `reproduce --scale mini` trains with (all answers credited, pools of up to six), with plain's rewards and the
highest of its rates, both chosen with seed 3. `blocks` is what `quickstart` trains with (judges, the best one
selected, the logarithm), with plain's rewards. All begin from the embedded model. In: nothing. Out: for each seed the
dev MRR at which the best plain run ends, and the best that any was seen at; and what each of ours and the first plain
run to stand there had been trained on by then: tokens read, and decisions, of which each is one generated token in
plain and in `expected`, and none of a judge.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1ranker.cli.common import write_json
from r1ranker.experiments.study import Study
from r1ranker.io.config import load_config
from r1ranker.io.provenance import provenance
from r1ranker.training.logs import read_log

Curve = list[tuple[float, int, int]]
"""(dev MRR, tokens trained on, decisions trained on) at each validation."""
OURS = {
    "expected": ["ppo.actor_lr=2.0e-4", "ppo.validate_every=3"],
    "blocks": [
        *("layout=blocks", "ask=best", "ppo.objective=log", "ppo.actor_lr=5.0e-4"),
        *("ppo.token_budget=375000", "ppo.validate_every=1"),
    ],
}
"""Ours are soon past what plain comes to, so they are looked at more often."""
PLAIN = {
    f"plain, {rate}": [
        *("ppo.answer=sampled", "ppo.largest_pool=null"),
        *(f"ppo.actor_lr={rate}", "ppo.validate_every=10"),
    ]
    for rate in ("5e-5", "1e-4", "2e-4")
}


def trained(seed: int, budget: int, out: Path, saved: Mapping[str, Curve]) -> dict[str, Curve]:
    """The curves of all settings with one seed; trains what is neither saved nor done."""
    base = load_config(Path("reproduce-mini"), [f"seed={seed}", f"ppo.token_budget={budget}", "ppo.reward=paper"])
    study = Study("samples", "mini", base, out, out / "models", None)
    todo = {name: overrides for name, overrides in (OURS | PLAIN).items() if name not in saved}
    models = study.trained_all(list(todo.values()))
    new = {name: curve(model.parent, study.config.ppo.batch) for name, model in zip(todo, models, strict=True)}
    return {name: saved.get(name) or new[name] for name in OURS | PLAIN}


def curve(run: Path, batch: int) -> Curve:
    """What each validation saw; `batch`: decisions of a step."""
    return [
        (row["dev_mrr"], int(row.get("tokens", 0)), int(row["step"]) * batch)
        for row in read_log(run)
        if "dev_mrr" in row
    ]


def compared(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """When ours and any plain run first stood where plain ends, and at the best that plain was seen at."""
    plain = [curves[name] for name in PLAIN]
    goals = {"end": max(points[-1][0] for points in plain), "best": max(max(points)[0] for points in plain)}
    return [
        {"goal": f"plain's {goal}", "MRR": mrr, "ours": name} | _reached(mrr, curves[name], plain)
        for name in OURS
        for goal, mrr in goals.items()
    ]


def _reached(goal: float, ours: Curve, plain: Sequence[Curve]) -> dict[str, Any]:
    first = next((point for point in ours if point[0] >= goal), None)
    theirs = min((point for points in plain for point in points if point[0] >= goal), key=lambda point: point[1])
    return {
        "plain: tokens": theirs[1],
        "plain: decisions": theirs[2],
        "ours: tokens": first and first[1],
        "ours: decisions": first and first[2],
        "share of tokens": first and first[1] / theirs[1],
        "share of decisions": first and first[2] / theirs[2],
    }


def main() -> None:
    """Parse, run, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=1_500_000, help="training tokens of plain PPO")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/samples"), help="runs; what is done is not done again")
    parser.add_argument("--saved", type=Path, help="JSON of an earlier run, whose curves are taken as they are")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    earlier = json.loads(given.saved.read_text(encoding="utf-8")) if given.saved else {}
    saved = earlier.get("curves", {})
    rows: list[dict[str, Any]] = []
    curves: dict[int, dict[str, Curve]] = {}
    for seed in given.seeds:
        curves[seed] = trained(seed, given.budget, given.out, saved.get(str(seed), {}))
        rows += [{"seed": seed} | row for row in compared(curves[seed])]
        found = {"provenance": provenance(), "saved": earlier.get("provenance"), "budget": given.budget}
        found |= {"rows": rows, "curves": curves}
        write_json(given.json, found)
    table = Table(*rows[0], title="training until plain PPO's dev MRR")
    for row in rows:
        table.add_row(*(f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in row))
    Console().print(table)


if __name__ == "__main__":
    main()
