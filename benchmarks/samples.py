"""How much training it takes to be as good as plain PPO is at its end.

    python benchmarks/samples.py --json out.json      # a seed took half an hour beside two other jobs

Plain is the paper's: sampled answers, binary rewards, states of every pool size, at three learning rates. Ours is what
`reproduce --scale mini` trains with (all answers credited, pools of up to six), with plain's rewards and the highest of
its rates, both chosen with seed 3. All begin from the embedded model. In: nothing. Out: for each seed the dev MRR at
which the best plain run ends, and the best that any was seen at; and what ours and the first plain run to stand there
had been trained on by then: tokens read, and decisions, each of which is one generated token.
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
PLAIN: dict[str, Any] = {"answer": "sampled", "reward": "paper", "largest_pool": None}
SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {"actor_lr": 2.0e-4, "reward": "paper"},
    "plain, 5e-5": PLAIN | {"actor_lr": 5.0e-5},
    "plain, 1e-4": PLAIN | {"actor_lr": 1.0e-4},
    "plain, 2e-4": PLAIN | {"actor_lr": 2.0e-4},
}


def trained(seed: int, budget: int, out: Path) -> dict[str, Curve]:
    """The curves of all settings with one seed; trains what is not done."""
    base = load_config(Path("reproduce-mini"), [f"seed={seed}", f"ppo.token_budget={budget}"])
    study = Study("samples", "mini", base, out, out / "models", None)
    models = study.trained_all([overrides(name) for name in SETTINGS])
    return {name: curve(model.parent, study.config.ppo.batch) for name, model in zip(SETTINGS, models, strict=True)}


def overrides(name: str) -> list[str]:
    """What a run changes of the base run."""
    every = 3 if name == "ours" else 10  # ours is soon past what plain comes to, so it is looked at more often
    return [f"ppo.{key}={json.dumps(value)}" for key, value in (SETTINGS[name] | {"validate_every": every}).items()]


def curve(run: Path, batch: int) -> Curve:
    """What each validation saw; `batch`: decisions of a step."""
    return [
        (row["dev_mrr"], int(row.get("tokens", 0)), int(row["step"]) * batch)
        for row in read_log(run)
        if "dev_mrr" in row
    ]


def compared(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """When ours and any plain run first stood where plain ends, and at the best that plain was seen at."""
    plain = [points for name, points in curves.items() if name != "ours"]
    goals = {"end": max(points[-1][0] for points in plain), "best": max(max(points)[0] for points in plain)}
    return [
        {"goal": f"plain's {name}", "MRR": goal} | _reached(goal, curves["ours"], plain) for name, goal in goals.items()
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
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    curves: dict[int, dict[str, Curve]] = {}
    for seed in given.seeds:
        curves[seed] = trained(seed, given.budget, given.out)
        rows += [{"seed": seed} | row for row in compared(curves[seed])]
        found = {"provenance": provenance(), "budget": given.budget, "rows": rows, "curves": curves}
        write_json(given.json, found)
    table = Table(*rows[0], title="training until plain PPO's dev MRR")
    for row in rows:
        table.add_row(*(f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in row))
    Console().print(table)


if __name__ == "__main__":
    main()
