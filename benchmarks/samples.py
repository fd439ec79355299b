"""How much training it takes to be as good as plain PPO is at its end.

    python benchmarks/samples.py --json out.json      # a seed takes about fifteen minutes on two cores

Plain is the paper's: sampled answers, binary rewards, states of every pool size; of three learning rates the one that
ends best counts. Ours is what `quickstart` trains with (all answers credited, pools of up to six), with plain's rewards
and the highest of its rates, both chosen with seed 3. All begin from the embedded model. In: nothing. Out: for each
seed the best dev MRR of plain within the budget, and what either had been trained on when it first stood there: tokens
read, and decisions, each of which is one generated token.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1ranker.cli_common import write_json
from r1ranker.provenance import provenance
from r1ranker.quickstart import quickstart_config, train_side_by_side
from r1ranker.reproduce.study import DONE, train_or_resume
from r1ranker.training.config import RunConfig
from r1ranker.training.logs import read_log

PLAIN: dict[str, Any] = {"answer": "sampled", "reward": "paper", "largest_pool": None}
SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {"actor_lr": 2.0e-4, "reward": "paper"},
    "plain, 5e-5": PLAIN | {"actor_lr": 5.0e-5},
    "plain, 1e-4": PLAIN | {"actor_lr": 1.0e-4},
    "plain, 2e-4": PLAIN | {"actor_lr": 2.0e-4},
}


def runs(seed: int, budget: int, out: Path) -> Iterator[tuple[str, RunConfig]]:
    """The runs of one seed by name."""
    for name, changes in SETTINGS.items():
        every = 3 if name == "ours" else 10  # ours is soon past what plain comes to, so it is looked at more often
        base = quickstart_config("iranker", out / f"{name.replace(' ', '').replace(',', '-')}-{seed}", seed, budget)
        yield name, base.model_copy(update={"ppo": base.ppo.model_copy(update=changes | {"validate_every": every})})


def curve(config: RunConfig) -> list[tuple[float, int, int]]:
    """(dev MRR, tokens trained on, decisions trained on) at each validation."""
    return [
        (row["dev_mrr"], int(row.get("tokens", 0)), int(row["step"]) * config.ppo.batch)
        for row in read_log(config.out)
        if "dev_mrr" in row
    ]


def compared(seed: int, budget: int, out: Path) -> dict[str, Any]:
    """Train all settings with one seed; where plain got to, and when either was there first."""
    configs = dict(runs(seed, budget, out))
    todo = {name: config for name, config in configs.items() if not (config.out / DONE).is_file()}
    if todo:
        train_side_by_side(todo, workers=2, train=train_or_resume)
    curves = {name: curve(config) for name, config in configs.items()}
    goal, plain = max((max(points)[0], name) for name, points in curves.items() if name != "ours")
    first = {name: next((p for p in curves[name] if p[0] >= goal), None) for name in ("ours", plain)}
    (_, their_tokens, their_decisions), ours = first[plain], first["ours"]
    return {
        "seed": seed,
        "start": curves["ours"][0][0],
        "plain's best": goal,
        "by": plain,
        "plain: tokens": their_tokens,
        "plain: decisions": their_decisions,
        "ours: tokens": ours and ours[1],
        "ours: decisions": ours and ours[2],
        "share of tokens": ours and ours[1] / their_tokens,
        "share of decisions": ours and ours[2] / their_decisions,
        "curves": curves,
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
    for seed in given.seeds:
        rows.append(compared(seed, given.budget, given.out))
        write_json(given.json, {"provenance": provenance(), "budget": given.budget, "rows": rows})
    shown = [name for name in rows[0] if name != "curves"]
    table = Table(*shown, title="training until plain PPO's best dev MRR")
    for row in rows:
        table.add_row(*(f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in shown))
    Console().print(table)


if __name__ == "__main__":
    main()
