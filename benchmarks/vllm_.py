"""vLLM beside the transformers backend: the same elimination of 20, time and prompt tokens computed.

    python benchmarks/vllm_.py --queries 64 --json vllm.json

On CPU both compute by one thread. vLLM runs eagerly, its engine in a process of its own as is its default. Each row is
ranked once before it is timed, from an empty cache of prefixes. `block` is the size of a block of it, in tokens.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from r1ranker.backends.base import Backend
from r1ranker.backends.models import NANO
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.backends.vllm_ import VLLMBackend
from r1ranker.cli.common import write_json
from r1ranker.io.provenance import provenance
from r1ranker.problem import Problem
from r1ranker.prompts import LAYOUTS
from r1ranker.ranking.rankers import IRanker

CANDIDATES = 20
BLOCKS = (128, 32)
"""vLLM's own on CPU, and the smallest that its kernels there like; on a GPU it takes 16 by itself."""


def rows_of(
    system: str, backend: Backend, forget: Callable[[], Any], problems: list[Problem]
) -> tuple[list[dict[str, Any]], list[list[tuple[str, ...]]]]:
    """A row for each layout, and the orders found."""
    rows, orders = [], []
    for layout in LAYOUTS:
        ranker = IRanker(backend, think=False, layout=layout)
        ranker.rank_many(problems)  # what is loaded or compiled once
        forget()
        began = time.perf_counter()
        rankings = ranker.rank_many(problems)
        seconds = time.perf_counter() - began
        rows.append(
            {
                "system": system,
                "layout": layout,
                "queries per second": len(problems) / seconds,
                "prompt tokens computed": sum(r.usage.prompt_tokens for r in rankings) / len(problems),
            }
        )
        orders.append([ranking.docids for ranking in rankings])
    return rows, orders


def compared(queries: int) -> list[dict[str, Any]]:
    """All rows; `equal orders` is the share of queries ranked as by the transformers backend."""
    # Imported here, since vLLM's engine reads this file too: 0.32 fails on CPU in a process that has loaded numba.
    from ranking import pool_of

    problems = [pool_of(CANDIDATES, i) for i in range(queries)]
    usual = TransformersBackend.load(NANO)
    rows, expected = rows_of("transformers", usual, usual.forget, problems)
    for block in BLOCKS:
        backend = VLLMBackend.load(NANO, enforce_eager=True, block_size=block)
        more, orders = rows_of(f"vLLM, block {block}", backend, backend.llm.reset_prefix_cache, problems)
        for row, mine, theirs in zip(more, orders, expected, strict=True):
            rows.append(row | {"equal orders": sum(a == b for a, b in zip(mine, theirs, strict=True)) / queries})
        backend.llm.llm_engine.engine_core.shutdown()
    return rows


def main() -> None:
    """Parse, run, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = compared(given.queries)
    table = Table(*rows[-1], title=f"elimination of {CANDIDATES}, {given.queries} queries, {NANO}")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else value for value in row.values()))
    Console().print(table)
    whence = provenance()
    names = {each.name: each.version for each in distributions()}
    whence["versions"] |= {name: names[name] for name in ("vllm", "vllm-cpu") if name in names}
    write_json(given.json, {"provenance": whence, "queries": given.queries, "rows": rows})


if __name__ == "__main__":
    main()
