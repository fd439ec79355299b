"""The main job on the embedded model and data: train both designs, compare everything, write the page.

DRanker and IRanker train side by side, a process and a thread each: on a small model that is twice as
fast as one after the other on two threads, and neither disturbs the other (docs/performance.md).
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path

from r1ranker.data import load_splits
from r1ranker.errors import ConfigError
from r1ranker.evaluation.results import Comparison, Row, relative_gain
from r1ranker.evaluation.systems import evaluate_systems, model_system
from r1ranker.progress import track
from r1ranker.prompts import Design
from r1ranker.training.config import RunConfig, load_config
from r1ranker.training.logs import read_log

DESIGNS: tuple[Design, ...] = ("iranker", "dranker")


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """`gain`: mean over tasks of IRanker's MRR over that of the same model without RL, minus 1."""

    rows: list[Row]
    comparisons: list[Comparison]
    gain: float
    seconds: float


def run_quickstart(out: Path, *, seed: int = 0, tokens: int | None = None) -> QuickstartResult:
    """Train, evaluate, report. Everything is written below `out`; `results.json` and `report.html` on top."""
    began = time.perf_counter()
    runs = {design: quickstart_config(design, out, seed, tokens) for design in DESIGNS}
    train_side_by_side(runs)
    base = runs["iranker"]
    models = [
        model_system("base-direct", "dranker", base.model, base),
        model_system("base-iterative", "iranker", base.model, base),
        model_system("dranker", "dranker", str(runs["dranker"].out / "model"), base),
        model_system("iranker", "iranker", str(runs["iranker"].out / "model"), base),
    ]
    result = evaluate_systems(
        ["random", "prior", "bm25", *models],
        load_splits(base.data)["test"],
        out=out,
        title="R1-Ranker quickstart",
        curves={design: read_log(config.out) for design, config in runs.items()},
        settings=base.model_dump(mode="json"),
        workers=2,
    )
    gain = relative_gain(result.rows, "iranker", "base-iterative")
    return QuickstartResult(result.rows, result.comparisons, gain, time.perf_counter() - began)


def quickstart_config(design: Design, out: Path, seed: int, tokens: int | None) -> RunConfig:
    """The packaged run of one design."""
    overrides = [f"design={design}", f"out={out / design}", f"seed={seed}"]
    if tokens is not None:
        overrides.append(f"ppo.token_budget={tokens}")
    return load_config(Path(str(files("r1ranker") / "configs" / "quickstart.yaml")), overrides)


def train_side_by_side(runs: dict[Design, RunConfig]) -> None:
    """Train each run in a process of its own, with one progress bar for all."""
    budgets = {design: config.ppo.token_budget for design, config in runs.items()}
    if None in budgets.values():
        raise ConfigError("quickstart compares designs at equal training tokens: set ppo.token_budget")
    with ProcessPoolExecutor(len(runs), mp_context=get_context("spawn")) as pool:
        training = [pool.submit(_train, config) for config in runs.values()]
        _watch(training, runs)
        for future in training:
            future.result()


def _train(config: RunConfig) -> Path:
    from r1ranker.training.ppo import train

    return train(config, load_splits(config.data))


def _watch(training: list[Future[Path]], runs: dict[Design, RunConfig]) -> None:
    """A bar of the tokens trained on so far, read from the runs' logs."""
    total = sum(config.ppo.token_budget or 0 for config in runs.values())
    seen = 0
    with track(total, "training dranker and iranker (tokens)") as advance:
        while not all(future.done() for future in training):
            time.sleep(1)
            if any(future.done() and future.exception() for future in training):
                return
            now = sum(int(row[-1].get("tokens", 0)) for config in runs.values() if (row := read_log(config.out)))
            advance(max(0, now - seen))
            seen = max(seen, now)
