"""Killed at random moments: is what was written whole or absent, and does going on end with the same bytes?

    python benchmarks/killed.py --moments 200            # of rank, train, evaluate and reproduce, in turn
    python benchmarks/killed.py --moments 20 --commands rank train

Each command runs once undisturbed. Then it is started, killed (SIGKILL) at a random moment, its files are looked at,
and it is started again as its own message says, until it ends; its files are then compared. A process is a fork of
this one, which has imported everything, so that moments fall into the work.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from safetensors import safe_open

import r1ranker.evaluation.systems
import r1ranker.experiments.main
import r1ranker.ranking.distributed
import r1ranker.ranking.jobs
import r1ranker.training.ppo
import r1ranker.training.warmstart  # noqa: F401  (what the commands import when they run)
from r1ranker.cli import app
from r1ranker.io.problems import write_jsonl
from r1ranker.problem import Candidate, Problem

PPO = {
    "batch": 4,
    "minibatch": 4,
    "validate_every": 2,
    "validate_problems": 0,
    "checkpoint_every": 1,
    "largest_pool": 6,
}
TIMES = {"seconds", "tokens_per_s", "usage", "time"}
"""What differs from run to run."""
WORDS = ("owls", "mice", "live", "long", "tractors", "night", "forest", "bark", "river", "stone", "winter", "bread")
POOL = 5
IN_A_ROW = 8
"""Kills of one job: one that begins anew each time might never end."""


@dataclass(frozen=True)
class Command:
    """A command with a place for its outputs. again: what is added to go on, by what is there."""

    arguments: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]


def commands(data: Path) -> dict[str, Command]:
    """The commands on small data."""
    source = ["-s", "data.0.source=jsonl", "-s", f"data.0.path={data}"]
    run = [f"{'ppo.' if key in PPO else ''}{key}={value}" for key, value in (PPO | {"model": "nano"}).items()]
    train = [part for setting in (*run, "ppo.steps=4", "ppo.token_budget=90000") for part in ("-s", setting)]
    system = ["--system", "x=iranker:nano", "--baselines", "random,prior"]
    return {
        "rank": Command(
            lambda out: ["rank", f"{data}/test.jsonl", "--out", f"{out}/run.trec", "--trace", f"{out}/trace.jsonl"],
            lambda out: ["--resume"],
        ),
        "train": Command(
            lambda out: ["train", *source, *train, "-s", f"out={out}"],
            lambda out: ["--resume" if list(out.glob("checkpoint-*.pt")) else "--overwrite"],
        ),
        "evaluate": Command(lambda out: ["evaluate", *source, *system, "--out", str(out)], lambda out: ["--overwrite"]),
        "reproduce": Command(
            lambda out: ["reproduce", "main", "--scale", "small", *source, "--limit", "2", "--out", str(out)],
            lambda out: [],
        ),
    }


def started(arguments: list[str], log: Path) -> int:
    """The process that runs the command."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code: Any = 1
    try:
        torch.set_num_threads(1)
        code = app(arguments, standalone_mode=False)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(code if isinstance(code, int) else 0)


def ended(pid: int, within: float | None = None) -> int | None:
    """Exit code; None where it has not ended in that time and was killed with all that it started."""
    until = time.monotonic() + within if within is not None else float("inf")
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def not_whole(folder: Path) -> Iterator[str]:
    """Files that are neither whole nor marked as unfinished. Of a file that grows the last line may be cut."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if any(part.endswith((".new", ".old", ".lock")) or part.startswith("new-") for part in path.parts):
            continue
        try:
            read(path)
        except Exception as error:
            yield f"{path.relative_to(folder)}: {type(error).__name__}: {str(error)[:100]}"


def read(path: Path) -> Any:
    """What a file says, without what differs from run to run; raises where it is damaged."""
    if path.suffix == ".json":
        return untimed(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [untimed(json.loads(line)) for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")]
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        return {name: value.numpy().tobytes() for name, value in state["policy"].items()} | {"step": state["step"]}
    if path.suffix == ".csv":
        return list(csv.DictReader(path.read_text().splitlines()))
    if path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
        raise ValueError("no end")
    return path.read_bytes()


def untimed(value: Any) -> Any:
    """A JSON value without times."""
    if isinstance(value, dict):
        return {key: untimed(one) for key, one in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [untimed(one) for one in value if not (isinstance(one, dict) and one.get("measure") in TIMES)]
    return value


def difference(one: Any, other: Any, place: str = "") -> str:
    """Where two values differ first; empty where nowhere. Only JSON has floats: a probability's last digits depend on
    who was in a batch with it, and that on how fast the machine was."""
    if isinstance(one, float) and isinstance(other, float):
        return "" if math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6) else f"{place}: {one} and {other}"
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next(filter(None, (difference(one[key], other[key], f"{place}/{key}") for key in one)), "")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(*two, f"{place}/{i}") for i, two in pairs)), "")
    return "" if one == other else f"{place}: {str(one)[:80]!r} and {str(other)[:80]!r}"


def results(folder: Path) -> dict[str, Any]:
    """What must come out the same: runs, traces, values of each query, weights."""
    wanted = ("*.trec", "trace.jsonl", "per_query.json", "model/model.safetensors", "checkpoint-*.pt")
    found = {path for pattern in wanted for path in folder.rglob(pattern)}
    return {str(path.relative_to(folder)): read(path) for path in sorted(found)}


def killed(name: str, command: Command, place: Path, moments: int, workers: int, seed: int) -> dict[str, Any]:
    """Kill the command that often, by so many processes side by side; returns counts and what was wrong."""
    whole, log = place / f"{name}-whole", place / f"{name}.log"
    began = time.monotonic()
    code = ended(started(command.arguments(whole), log))
    seconds = time.monotonic() - began
    if code:
        raise SystemExit(f"{name} ended with {code} undisturbed: {log.read_text()[-500:]}")
    expected, counts, pids = results(whole), list[Path](), list[int]()
    for worker in range(workers):
        own = place / f"{name}-{worker}"
        own.mkdir()
        counts.append(own / "count.json")
        if pid := os.fork():
            pids.append(pid)
            continue
        try:
            share = moments // workers + (worker < moments % workers)
            count = kill_often(command, own, share, seconds, expected, random.Random(f"{name}:{seed}:{worker}"))
            counts[-1].write_text(json.dumps(count))
        finally:
            os._exit(0)
    for pid in pids:
        os.waitpid(pid, 0)
    kills, jobs, faults = zip(*(json.loads(path.read_text()) for path in counts), strict=True)
    return {
        "command": name,
        "seconds": round(seconds, 1),
        "kills": sum(kills),
        "jobs": sum(jobs),
        "faults": [fault for of_worker in faults for fault in of_worker],
    }


def kill_often(
    command: Command, place: Path, moments: int, seconds: float, expected: dict[str, Any], rng: random.Random
) -> tuple[int, int, list[str]]:
    """(kills, jobs that ended, what was wrong)."""
    kills = jobs = 0
    faults = list[str]()
    while kills < moments:
        out, log, extra = place / f"{jobs}" / "out", place / "log", list[str]()
        pause: float | None = rng.uniform(0, seconds)
        row = 0
        while (code := ended(started([*command.arguments(out), *extra], log), pause)) is None:
            kills, row = kills + 1, row + 1
            pause = rng.uniform(0, seconds) if row < IN_A_ROW else None
            faults += [f"after kill {kills}: {fault}" for fault in not_whole(out)]
            extra = command.again(out)
        jobs += 1
        if code:
            faults.append(f"job {jobs} ended with {code} after {kills} kills: {log.read_text()[-300:]}")
        elif differs := difference(expected, results(out)):
            faults.append(f"job {jobs} ended with other results after {kills} kills: {differs}")
        shutil.rmtree(out.parent, ignore_errors=True)
        print(
            f"{place.name}: {kills} of {moments} kills, {jobs} jobs", *faults, sep="\n  ", file=sys.stderr, flush=True
        )
    return kills, jobs, faults


def write_data(folder: Path, queries: int) -> None:
    """Small problems of the three splits."""
    rng = random.Random(0)
    for split in ("train", "dev", "test"):
        write_jsonl((problem(f"{split}{i}", rng) for i in range(queries)), folder / f"{split}.jsonl")


def problem(qid: str, rng: random.Random) -> Problem:
    """A question with one word of its best passage."""
    texts = [" ".join(rng.choices(WORDS, k=6)) for _ in range(POOL)]
    candidates = tuple(Candidate(f"{qid}-{k}", text) for k, text in enumerate(texts))
    best = rng.randrange(POOL)
    return Problem(
        qid=qid,
        task="toy",
        scenario="passage",
        query=f"which text says {texts[best].split()[0]}",
        candidates=candidates,
        gains={f"{qid}-{best}": 1},
        prior={candidate.docid: rng.random() for candidate in candidates},
    )


def main() -> None:
    """Print a row for each command; exit with 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="kills of each command")
    parser.add_argument("--commands", nargs="+", default=["rank", "train", "evaluate", "reproduce"])
    parser.add_argument("--queries", type=int, default=12, help="of each split")
    parser.add_argument("--workers", type=int, default=2, help="processes that kill side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place, data = Path(folder), Path(folder) / "data"
        write_data(data, given.queries)
        for name in given.commands:
            row = killed(name, commands(data)[name], place, given.moments, given.workers, given.seed)
            rows.append(row)
            print(
                f"{name}: {row['kills']} kills in {row['jobs']} jobs of {row['seconds']} s", *row["faults"], sep="\n  "
            )
    if given.json:
        given.json.write_text(json.dumps({"machine": platform.platform(), "rows": rows}, indent=2) + "\n")
    sys.exit(any(row["faults"] for row in rows))


if __name__ == "__main__":
    main()
