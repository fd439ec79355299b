"""verl's data files from our problems. In: problems of a split. Out: a parquet file, one row a problem.

    {"data_source": "passage-5", "prompt": [{"role": "user", "content": "Query: why is the sky blue ..."}],
     "ability": "ranking", "reward_model": {"style": "rule", "ground_truth": '{"1": 3, "4": 1}'},
     "extra_info": {"split": "train", "index": 0, "problem": '{"qid": "q17", ...}'}}

The ground truth (gains by identifier) and the prompt are for verl's logs: the agent loop and the reward read the
problem. Next in the data flow: `agent_loop`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1ranker.io.config import RunConfig
from r1ranker.io.problems import PROBLEM
from r1ranker.problem import Problem
from r1ranker.prompts import build_prompt

TRAIN, DEV = "train", "dev"


def write_rows(problems: Sequence[Problem], path: Path, split: str, config: RunConfig) -> Path:
    """Write the rows of a split's problems; returns `path`."""
    rows = [_row(problem, index, split, config) for index, problem in enumerate(problems)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def problem_of(extra_info: Mapping[str, Any]) -> Problem:
    """The problem that a row's `extra_info` holds."""
    return PROBLEM.validate_json(extra_info["problem"])


def _row(problem: Problem, index: int, split: str, config: RunConfig) -> dict[str, Any]:
    prompt = build_prompt(problem, problem.identifiers, config.design, layout=config.layout, think=config.think)
    gains = {k: problem.gain(k) for k in problem.identifiers if problem.gain(k)}
    return {
        "data_source": problem.task,
        "prompt": [{"role": "user", "content": prompt.text}],
        "ability": "ranking",
        "reward_model": {"style": "rule", "ground_truth": json.dumps(gains)},
        "extra_info": {"split": split, "index": index, "problem": PROBLEM.dump_json(problem).decode()},
    }
