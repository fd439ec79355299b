"""The main job on the embedded model and data: train both designs, compare everything, write the page.

DRanker and IRanker train side by side, a process and a thread each: on a small model that is twice as
fast as one after the other on two threads, and neither disturbs the other (docs/performance.md).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from multiprocessing import get_context, parent_process
from pathlib import Path

from r1ranker.baselines.notes import load_splits
from r1ranker.errors import ConfigError
from r1ranker.evaluation.results import Comparison, Row, relative_gain
from r1ranker.evaluation.systems import ModelSystem, evaluate_systems, model_system, rank_with
from r1ranker.io.config import RunConfig, load_config
from r1ranker.io.locks import check_folder, held
from r1ranker.io.progress import track
from r1ranker.problem import Problem, Ranking
from r1ranker.prompts import Design
from r1ranker.training.logs import read_log

DESIGNS: tuple[Design, ...] = ("dranker", "iranker")


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """`gain`: mean over tasks of IRanker's MRR over that of the same model without RL, minus 1."""

    rows: list[Row]
    comparisons: list[Comparison]
    gain: float
    seconds: float


def run_quickstart(out: Path, *, seed: int = 0, tokens: int | None = None, overwrite: bool = False) -> QuickstartResult:
    """Train, evaluate, report. Everything is written below `out`; `results.json` and `report.html` on top.

    A folder that holds an earlier quickstart is written anew with `overwrite`; else ConfigError.
    """
    used = [
        folder for folder in (out / "report.html", *(out / design / "model" for design in DESIGNS)) if folder.exists()
    ]
    if used and not overwrite:
        raise ConfigError(f"{used[0]} is there already; name another --out, or give --overwrite to begin anew")
    check_folder(out, "--out")
    with held(out / "results.json"):
        return _quickstart(out, seed, tokens)


def _quickstart(out: Path, seed: int, tokens: int | None) -> QuickstartResult:
    began = time.perf_counter()
    runs: dict[str, RunConfig] = {design: quickstart_config(design, out, seed, tokens) for design in DESIGNS}
    base = runs["iranker"]
    problems = load_splits(base.data, base.scenarios)["test"]
    untrained = [
        model_system("base-direct", "dranker", base.model, base),
        model_system("base-iterative", "iranker", base.model, base),
    ]
    trained = [model_system(name, config.design, str(config.out / "model"), base) for name, config in runs.items()]
    result = evaluate_systems(
        ["random", "prior", "bm25", *trained],
        problems,
        given=train_side_by_side(runs, untrained, problems),
        models=[system.name for system in untrained],
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


def _train(config: RunConfig) -> Path:
    from r1ranker.training.ppo import train

    return train(config, load_splits(config.data, config.scenarios), overwrite=True)


def train_side_by_side(
    runs: Mapping[str, RunConfig],
    untrained: Sequence[ModelSystem] = (),
    problems: Sequence[Problem] = (),
    *,
    workers: int | None = None,
    train: Callable[[RunConfig], Path] = _train,
) -> dict[str, list[Ranking]]:
    """Train each run in a process of its own, `workers` at a time (all), with one progress bar for all.

    The process that is done first ranks with the untrained systems meanwhile; returns their rankings by name.
    """
    budgets = {name: config.ppo.token_budget for name, config in runs.items()}
    if None in budgets.values():
        raise ConfigError("runs are compared at equal training tokens: set ppo.token_budget")
    with worker_pool(workers or len(runs)) as pool:
        training = [pool.submit(train, config) for config in runs.values()]
        ranking = {system.name: pool.submit(rank_with, system, problems) for system in untrained}
        _watch(training, runs)
        for future in training:
            future.result()
        return {name: ranked.result() for name, ranked in ranking.items()}


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that end with this one, even when it is killed: else they would go on beside the run that resumes."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _watch(training: Sequence[Future[Path]], runs: Mapping[str, RunConfig]) -> None:
    """A bar of the tokens trained on so far, read from the runs' logs."""
    total = sum(config.ppo.token_budget or 0 for config in runs.values())
    seen = 0
    with track(total, "training (tokens)") as advance:
        while not all(future.done() for future in training):
            time.sleep(1)
            if any(future.done() and future.exception() for future in training):
                return
            now = sum(int(row[-1].get("tokens", 0)) for config in runs.values() if (row := read_log(config.out)))
            advance(max(0, now - seen))
            seen = max(seen, now)
