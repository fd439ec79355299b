"""What training costs: our loop against TRL's GRPOTrainer, and an episode as one sequence against a prompt a state.

    python benchmarks/training.py
    python benchmarks/training.py --rounds 4 --json training.json
    python benchmarks/training.py --model smol-base --completions 16 --rounds 1      # a pretrained model: 20 minutes

All train the embedded model on the embedded recommendation tasks, pools of 20, in float32 on one CPU thread. Rates
are by this process's own CPU seconds, so that a busy machine is not in them; `busy` is their share of the time
by the clock on the wall. Learning rates are so low that the model stays what it is: completions are alike everywhere.

A round is 64 completions and two updates on 32 each. Ours scores them by policy and reference, and with `gae` by a
critic head; with `grpo` there are groups of 8, which read their prompt once, and no critic. TRL does the same as
`grpo`: groups of 8, scores by policy and reference, two updates; it keeps no log and no checkpoint, and activation
checkpointing is off. `TRL, least` is the least it can do: no reference, and one update on all 64, before which
nothing has to be scored. Micro-batches are the fastest for each on CPU: 2048 padded tokens for ours (4096 is as fast,
1024 and 8192 are slower), 8 rows for TRL (4, 16 and 32 are slower). The first round of each is not counted.

Another model than the embedded one thinks only (untrained it writes to the limit whatever it is asked), both in
float32 and with bfloat16 passes, and no episodes are timed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from r1ranker.backends.base import STOP
from r1ranker.backends.loading import load
from r1ranker.cli.common import write_json
from r1ranker.datasets import mini
from r1ranker.io.config import RunConfig
from r1ranker.io.provenance import provenance
from r1ranker.problem import Problem
from r1ranker.training import for_trl, rollout
from r1ranker.training.learner import new_learner
from r1ranker.training.ppo import ppo_step

GROUP, ROWS = 8, 8
LEARNING_RATE, KL = 1e-7, 0.001
EPISODES, DECISIONS = 8, 19
WRITERS = {"DRanker": ("dranker", False, 64), "IRanker, thinking": ("iranker", True, 48)}
"""Design, thoughts, and how many tokens a completion may have. The embedded model's are shorter."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained: a model by name, completions a round, rounds that are counted, and the passes' type."""

    model: str
    completions: int
    rounds: int
    dtype: str = "float32"

    @property
    def minibatch(self) -> int:
        return self.completions // 2


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a run stands: its seconds by CPU and by the wall, and the tokens it has trained on."""

    cpu: float
    wall: float
    tokens: int


def mark(tokens: int) -> Mark:
    return Mark(time.process_time(), time.perf_counter(), tokens)


class Clock(TrainerCallback):
    """A mark after each update of TRL."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.marks.append(mark(state.num_input_tokens_seen))


def run_config(job: Job, design: str, think: bool, limit: int, layout: str = "relist", **ppo: Any) -> RunConfig:
    """Of our loop; what `ppo` does not name is as TRL has it."""
    alike = {"batch": job.completions, "minibatch": job.minibatch, "kl": KL, "entropy": 0.0, "max_new_tokens": limit}
    ours = {"micro_tokens": 2048, "critic": "head", "actor_lr": LEARNING_RATE, "critic_lr": LEARNING_RATE}
    run = {"model": job.model, "design": design, "think": think, "layout": layout}
    run |= {"device": "cpu", "threads": 1, "dtype": job.dtype}
    return RunConfig.model_validate(run | {"ppo": {"episode_share": 0.0} | alike | ours | ppo})


def ours(problems: Sequence[Problem], config: RunConfig, rounds: int) -> tuple[Mark, Mark]:
    """Marks after the first round and after the last."""
    learner = new_learner(config)
    marks = []
    for _ in range(1 + rounds):
        ppo_step(learner, problems, config)
        learner.step += 1
        marks.append(mark(learner.tokens))
    return marks[0], marks[-1]


def trl(job: Job, rows: Any, limit: int, **settings: Any) -> tuple[Mark, Mark]:
    """The same of TRL's trainer."""
    network, tokenizer = load(job.model, device="cpu", threads=1, dtype="float32")
    if job.model == "nano":
        network.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(STOP), tokenizer.eos_token_id]
    updates = job.completions // (ROWS * settings["gradient_accumulation_steps"])
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            max_steps=updates * (1 + job.rounds),
            per_device_train_batch_size=ROWS,
            generation_batch_size=job.completions,
            num_generations=GROUP,
            max_completion_length=limit,
            learning_rate=LEARNING_RATE,
            use_cpu=True,
            bf16=job.dtype == "bfloat16",
            activation_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        trainer = GRPOTrainer(network, for_trl.reward, config, rows, processing_class=tokenizer, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)  # it would print into the tables
        trainer.train()
    return clock.marks[updates - 1], clock.marks[-1]


def row(setting: str, system: str, what: str, count: int, marks: tuple[Mark, Mark]) -> dict[str, Any]:
    """A line of a table: `count` things of the kind `what` were done between the marks."""
    first, last = marks
    seconds, tokens = last.cpu - first.cpu, last.tokens - first.tokens
    return {
        "setting": setting,
        "system": system,
        f"{what}/s": count / seconds,
        "tokens/s": tokens / seconds,
        f"tokens per {what[:-1]}": tokens / count,
        "CPU seconds": seconds,
        "busy": seconds / (last.wall - first.wall),
    }


def against_trl(problems: Sequence[Problem], job: Job) -> list[dict[str, Any]]:
    """Sampled completions: our two estimators and two ways to set TRL."""
    rows = []
    for setting, (design, think, limit) in WRITERS.items():
        if job.model != "nano" and not think:
            continue
        _, tokenizer = load(job.model, device="cpu", threads=1)
        asked = for_trl.dataset(problems, tokenizer, design, think=think)
        ours_as_trl = run_config(job, design, think, limit, estimator="grpo", group=GROUP)
        runs = {
            "ours, gae": partial(ours, problems, run_config(job, design, think, limit), job.rounds),
            "ours, grpo": partial(ours, problems, ours_as_trl, job.rounds),
            "TRL": partial(trl, job, asked, limit, beta=KL, gradient_accumulation_steps=job.minibatch // ROWS),
            "TRL, least": partial(
                trl, job, asked, limit, beta=0.0, gradient_accumulation_steps=job.completions // ROWS
            ),
        }
        setting = setting if job.dtype == "float32" else f"{setting}, {job.dtype}"
        rows += [row(setting, name, "completions", job.completions * job.rounds, run()) for name, run in runs.items()]
    return rows


def by_sequence(problems: Sequence[Problem], job: Job) -> list[dict[str, Any]]:
    """Whole episodes of an IRanker without thoughts: the same decisions in one sequence, or each in its own."""
    rows = []
    for layout, one in (("append", True), ("append", False), ("relist", False)):
        sizes = {"batch": EPISODES * DECISIONS, "minibatch": EPISODES // 2 * (1 if one else DECISIONS)}
        config = run_config(job, "iranker", False, 8, layout, episode_share=1.0, **sizes)
        joined = rollout.joined if one else lambda _: None
        with mock.patch.object(rollout, "joined", joined):
            marks = ours(problems, config, job.rounds)
        name = "one sequence an episode" if one else "one sequence a decision"
        rows.append(row(layout, name, "decisions", EPISODES * DECISIONS * job.rounds, marks))
    return rows


def shown(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """One line a row."""
    table = Table(*rows[0], title=title)
    for each in rows:
        table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in each.values()))
    return table


def main() -> None:
    """Parse, run, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--completions", type=int, default=64, help="of a round, a multiple of 16")
    parser.add_argument("--rounds", type=int, default=2, help="that are counted, after one that is not")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    problems = [p for p in mini.load(limit=40)["train"] if p.scenario == "recommendation"]
    origin = provenance()
    machine = origin["machine"]
    console.print(f"{machine['system']}, {machine['cores']} cores, torch {torch.__version__}", highlight=False)
    job = Job(given.model, given.completions, given.rounds)
    tables = {"completions": against_trl(problems, job)}
    if given.model != "nano":
        tables["completions"] += against_trl(problems, replace(job, dtype="bfloat16"))
    console.print(shown("training on completions", tables["completions"]))
    if given.model == "nano":
        tables["episodes"] = by_sequence(problems, job)
        console.print(shown(f"training on episodes of {DECISIONS} decisions", tables["episodes"]))
    write_json(given.json, {"provenance": origin} | tables)


if __name__ == "__main__":
    main()
