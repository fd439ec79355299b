"""The nine embedded tasks, small and generated from a seed; they need no file and no network.

    splits = load(seed=0, limit=100)
    splits["test"][0].candidates        # 20 titles, 10 LLMs, or 5, 7 or 9 passages
    examples()                          # a test problem of each scenario, at once

The texts are short enough for a model of a million parameters, and the structure is that of real data:

- `mini_recommendation`: rec-movie, rec-music, rec-game; tastes that last a session, and popularity;
- `mini_routing`: route-performance, route-balance, route-cost; specialised and general LLMs at a price;
- `mini_passage`: passage-5, passage-7, passage-9; answers in other words than the question's.

Every word they are made of stands in `mini_words.json`. Next in the data flow is `prompts`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from r1ranker.datasets import mini_passage, mini_recommendation, mini_routing
from r1ranker.datasets.common import SPLIT_NAMES, limit_per_task
from r1ranker.errors import DataError
from r1ranker.io.problems import read_jsonl
from r1ranker.problem import Problem, Splits

TASKS = (*mini_recommendation.TASKS, *mini_routing.TASKS, *mini_passage.TASKS)
SIZES = {"train": 1200, "dev": 40, "test": 120}
"""Problems per task and split, before any limit."""


def load(path: Path | None = None, *, seed: int = 0, limit: int | None = None) -> Splits:
    """Train, dev and test problems of the nine tasks; the seed draws titles, users, queries and pools."""
    if path is not None:
        raise DataError(f"source 'mini' is generated and reads no files; leave out the path {path}")
    splits = {split: [problem for part in _parts(seed, **SIZES) for problem in part[split]] for split in SPLIT_NAMES}
    return limit_per_task(splits, limit, seed)


def examples() -> list[Problem]:
    """A test problem of each scenario, kept in a file: nothing has to be generated first."""
    return read_jsonl(Path(__file__).with_name("mini_examples.jsonl"))


@lru_cache(maxsize=1)  # made whole for any limit, which takes seconds
def _parts(seed: int, **sizes: int) -> list[Splits]:
    return [scenario.build(seed, sizes) for scenario in (mini_recommendation, mini_routing, mini_passage)]
