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
from statistics import fmean

from rich.console import RenderableType

from r1ranker.baselines.notes import load_splits
from r1ranker.datasets.mini import examples
from r1ranker.errors import ConfigError
from r1ranker.evaluation.measures import evaluate
from r1ranker.evaluation.results import AVERAGE, Comparison, Row, relative_gain
from r1ranker.evaluation.steps import steps_shown
from r1ranker.evaluation.systems import evaluate_systems, model_system, rank_with
from r1ranker.io.config import RunConfig, load_config
from r1ranker.io.locks import check_folder, held
from r1ranker.io.progress import track
from r1ranker.problem import Problem, Ranking, by_task
from r1ranker.prompts import Design
from r1ranker.training.logs import LOG_NAME, read_log

DESIGNS: tuple[Design, ...] = ("dranker", "iranker")
BASELINES = ("random", "prior", "bm25")
BEFORE = {"layout": "relist", "ask": "worst"}
"""How the model is asked before RL: as it was made (configs/nano.yaml). In blocks it would rank like chance."""
ABOUT_BASE = (
    "base-direct and base-iterative are the model before RL in its own best way of being asked, re-listed pools of "
    "which the worst is removed; RL is in blocks and selects the best"
)
OBJECTIVES: dict[Design, str] = {"iranker": "log", "dranker": "surrogate"}
"""A step earns 1 or near 0, so it learns by the logarithm; what moves in a list changes its nDCG by little, and the
surrogate brings such differences to one scale."""
TOKENS_PER_SECOND, BESIDE_TRAINING = 3600, 70
"""On two idle cores: of training, both designs side by side; seconds for all that is not training."""

Tell = Callable[[RenderableType], object]


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """`gain`: mean over tasks of IRanker's MRR over that of the same model without RL, minus 1.

    ahead: of each design, on how many tasks its MRR is above both random and prior. tasks: of how many.
    """

    rows: list[Row]
    comparisons: list[Comparison]
    gain: float
    ahead: dict[str, int]
    tasks: int
    seconds: float


def run_quickstart(
    out: Path, *, seed: int = 0, tokens: int | None = None, overwrite: bool = False, tell: Tell = lambda _: None
) -> QuickstartResult:
    """Train, evaluate, report. Everything is written below `out`; `results.json` and `report.html` on top.

    A folder that holds an earlier quickstart is written anew with `overwrite`; else ConfigError. `tell` is given what
    is being done, and first results as they come.
    """
    used = [
        folder for folder in (out / "report.html", *(out / design / "model" for design in DESIGNS)) if folder.exists()
    ]
    if used and not overwrite:
        raise ConfigError(f"{used[0]} is there already; name another --out, or give --overwrite to begin anew")
    check_folder(out, "--out")
    with held(out / "results.json"):
        return _quickstart(out, seed, tokens, tell)


def _quickstart(out: Path, seed: int, tokens: int | None, tell: Tell) -> QuickstartResult:
    began = time.perf_counter()
    runs: dict[str, RunConfig] = {design: quickstart_config(design, out, seed, tokens) for design in DESIGNS}
    base = runs["iranker"]
    tell(_plan(base))
    for config in runs.values():
        (config.out / LOG_NAME).unlink(missing_ok=True)  # of the quickstart that is written over
    problems, rankings = _train_and_rank(runs, tell)
    result = evaluate_systems(
        BASELINES,
        problems,
        given=rankings,
        models=rankings,
        out=out,
        title="R1-Ranker quickstart",
        curves={design: read_log(config.out) for design, config in runs.items()},
        settings=base.model_dump(mode="json"),
        notes=[ABOUT_BASE],
    )
    gain = relative_gain(result.rows, "iranker", "base-iterative")
    ahead: dict[str, int] = {design: tasks_ahead(result.rows, design) for design in DESIGNS}
    seconds = time.perf_counter() - began
    return QuickstartResult(result.rows, result.comparisons, gain, ahead, len(by_task(problems)), seconds)


def _train_and_rank(runs: Mapping[str, RunConfig], tell: Tell) -> tuple[list[Problem], dict[str, list[Ranking]]]:
    """Test problems, and how the model ranks them before and after RL; two processes do all of it, so both are busy."""
    base = runs["iranker"]
    before = base.model_copy(update=BEFORE)
    untrained = [
        model_system("base-direct", "dranker", base.model, before),
        model_system("base-iterative", "iranker", base.model, before),
    ]
    trained = [model_system(name, config.design, str(config.out / "model"), config) for name, config in runs.items()]
    with worker_pool(len(runs)) as pool:
        (example, *_) = examples()
        shown = pool.submit(rank_with, untrained[-1], [example])
        training = _submit(pool, runs, _train)
        problems = load_splits(base.data, base.scenarios)["test"]
        ranked = {system.name: pool.submit(rank_with, system, problems) for system in untrained}
        tell(_first_results(problems))
        tell(f"One elimination by {base.model} before RL; a bar is the probability of leaving:")
        tell(steps_shown(example, shown.result()[0]))
        _finish(training, runs, tell)
        tell(f"Trained. Now they rank {len(problems)} test queries.")
        ranked |= {system.name: pool.submit(rank_with, system, problems) for system in trained}
        return problems, {name: future.result() for name, future in ranked.items()}


def _plan(config: RunConfig) -> str:
    """What will be done, and how long it takes."""
    budget = config.ppo.token_budget or 0
    minutes = (BESIDE_TRAINING + budget / TOKENS_PER_SECOND) / 60
    return (
        f"DRanker and IRanker are trained by rewards from {config.model}, side by side, on {budget:,} tokens each; "
        f"then all systems rank the test queries of the nine embedded tasks. About {minutes:.1f} minutes on two idle "
        "cores."
    )


def _first_results(problems: Sequence[Problem]) -> str:
    def mrr(name: str) -> float:
        each = by_task(problems).values()
        return fmean(fmean(evaluate(rank_with(name, of_task), of_task)["MRR"].values()) for of_task in each)

    said = ", ".join(f"{name} {mrr(name):.3f}" for name in BASELINES)
    return f"MRR of what needs no training, {len(problems)} test queries: {said}."


def tasks_ahead(rows: Sequence[Row], system: str) -> int:
    """On how many tasks the system's MRR is above that of random and prior."""
    values = {(row.task, row.system): row.value for row in rows if row.measure == "MRR" and row.task != AVERAGE}
    tasks = {task for task, _ in values}
    return sum(all(values[task, system] > values[task, other] for other in ("random", "prior")) for task in tasks)


def quickstart_config(design: Design, out: Path, seed: int, tokens: int | None) -> RunConfig:
    """The packaged run of one design."""
    overrides = [f"design={design}", f"out={out / design}", f"seed={seed}", f"ppo.objective={OBJECTIVES[design]}"]
    if tokens is not None:
        overrides.append(f"ppo.token_budget={tokens}")
    return load_config(Path(str(files("r1ranker") / "configs" / "quickstart.yaml")), overrides)


Train = Callable[[RunConfig], Path]


def _train(config: RunConfig) -> Path:
    from r1ranker.training.ppo import train

    return train(config, load_splits(config.data, config.scenarios), overwrite=True)


def train_side_by_side(runs: Mapping[str, RunConfig], *, workers: int, train: Train) -> None:
    """Train each run in a process of its own, `workers` at a time, with one progress bar for all."""
    with worker_pool(workers) as pool:
        _finish(_submit(pool, runs, train), runs)


def _submit(pool: ProcessPoolExecutor, runs: Mapping[str, RunConfig], train: Train) -> list[Future[Path]]:
    if None in (config.ppo.token_budget for config in runs.values()):
        raise ConfigError("runs are compared at equal training tokens: set ppo.token_budget")
    return [pool.submit(train, config) for config in runs.values()]


def _finish(training: Sequence[Future[Path]], runs: Mapping[str, RunConfig], tell: Tell = lambda _: None) -> None:
    """Until all are trained; raises what one of them raised."""
    _watch(training, runs, tell)
    for future in training:
        future.result()


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that end with this one, even when it is killed: else they would go on beside the run that resumes."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _watch(training: Sequence[Future[Path]], runs: Mapping[str, RunConfig], tell: Tell) -> None:
    """A bar of the tokens trained on so far, and each validation, read from the runs' logs."""
    total = sum(config.ppo.token_budget or 0 for config in runs.values())
    seen, told = 0, dict.fromkeys(runs, 0)
    with track(total, "training (tokens)") as advance:
        while True:
            done = all(future.done() for future in training)
            if any(future.done() and future.exception() for future in training):
                return
            logs = {name: read_log(config.out) for name, config in runs.items()}
            for name, rows in logs.items():
                for row in rows[told[name] :]:
                    if "dev_mrr" in row:
                        tell(f"  {name}: dev MRR {row['dev_mrr']:.3f} after {int(row.get('tokens', 0)):,} tokens")
                told[name] = len(rows)
            now = sum(int(rows[-1].get("tokens", 0)) for rows in logs.values() if rows)
            advance(max(0, now - seen))
            seen = max(seen, now)
            if done:
                return
            time.sleep(1)
