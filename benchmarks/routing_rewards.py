"""Which LLM a router is taught to send everything to, at each weight of quality, by each reward.

    python benchmarks/routing_rewards.py data/llm-routing --json routing-rewards.json

In: a folder of `llmrouter`. Out: by weight and reward the single LLM that earns most on training questions, and its
mean utility there; `best` is the LLM of the best mean utility, which a reward should name.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from r1ranker.cli.common import write_json
from r1ranker.datasets import llmrouter
from r1ranker.io.provenance import provenance
from r1ranker.problem import Answer, Problem, by_task
from r1ranker.rewards import kind_of

WEIGHTS = (0.5, 0.8, 0.85, 0.9, 0.95, 0.98, 1)
REWARDS = {"paper": "paper", "graded": "graded", "worth": "r1ranker.datasets.llmrouter:worth"}


def most_earned(problems: list[Problem], reward: str) -> str:
    """The LLM whose selection on every question earns most in the mean."""
    selection = kind_of(reward).selection
    earned: dict[str, list[float]] = {}
    for problem in problems:
        for k in problem.identifiers:
            value = selection(Answer("valid", (k,)), problem, problem.identifiers)
            earned.setdefault(problem.candidate(k).docid, []).append(value)
    return max(earned, key=lambda llm: fmean(earned[llm]))


def row_of(problems: list[Problem]) -> dict[str, Any]:
    """What each reward names at one weight, and the best; a problem's prior is the mean utility of each LLM."""
    utility = problems[0].prior
    chosen = {name: most_earned(problems, reward) for name, reward in REWARDS.items()}
    chosen["best"] = max(utility, key=lambda llm: utility[llm])
    named = {name: {"llm": llm, "utility": utility[llm]} for name, llm in chosen.items()}
    return {"weight": problems[0].task.rpartition("-")[2], **named}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=1000, help="training questions of each weight")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    splits = llmrouter.load(given.data, limit=given.limit, objectives=WEIGHTS)
    rows = [row_of(problems) for problems in by_task(splits["train"]).values()]
    for row in rows:
        print(*row.values())
    write_json(given.json, {"rows": rows, "provenance": provenance() | {"questions": given.limit}})


if __name__ == "__main__":
    main()
