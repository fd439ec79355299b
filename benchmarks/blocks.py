"""What a pretrained model costs to rank with: the paper's loop, re-listed, appended and side by side in blocks.

    python benchmarks/blocks.py --model smol --json blocks.json        # an idle machine, some minutes
    python benchmarks/blocks.py --model nano --queries 8

In one run: tokens and seconds a query for 20 passages of each layout; milliseconds of blocks for what people rank
(10 and 20 passages of 100 words, 20 titles, 10 LLMs) beside MiniLM as a bi-encoder, where `r1ranker model get minilm`
has fetched it; and tokens a second, read and trained, against plain transformers.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from r1ranker.answers import parse_removal, removal_of
from r1ranker.backends.blocks import Blocks, ends, make_maskable, packed
from r1ranker.backends.loading import load
from r1ranker.backends.models import MINILM, here
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.cli.common import write_json
from r1ranker.io.provenance import provenance
from r1ranker.problem import Candidate, Problem
from r1ranker.prompts import build_prompt
from r1ranker.ranking.rankers import IRanker
from r1ranker.training.memory import add_lora, passes_in

WORDS = (
    "river",
    "bridge",
    "light",
    "engine",
    "winter",
    "garden",
    "paper",
    "city",
    "market",
    "stone",
    "signal",
    "history",
)
ANSWER_TOKENS = 8


def text(words: int, rng: random.Random) -> str:
    """So many words; what they say costs nothing."""
    return " ".join(rng.choice(WORDS) for _ in range(words))


def pool(n: int, words: int, number: int, scenario: str = "passage") -> Problem:
    """A query of eight words and n candidates of `words`."""
    rng = random.Random(f"{number}:{n}:{words}")
    candidates = tuple(Candidate(f"d{i}", text(words, rng)) for i in range(n))
    return Problem(f"q{number}", "bench", scenario, candidates, query=text(8, rng))  # type: ignore[arg-type]


def paper_loop(backend: TransformersBackend, problem: Problem) -> int:
    """Prompt tokens of the paper's evaluation: the rest is listed anew, and a whole generation read for each step."""
    left, computed = list(problem.identifiers), 0
    while len(left) > 1:
        prompt = build_prompt(problem, left, "iranker", think=False)
        (said,) = backend.generate([prompt], max_new_tokens=ANSWER_TOKENS)
        answer = parse_removal(prompt.prefill + said.text, left, said.truncated)
        left.remove(removal_of(answer, tuple(left)))
        computed += said.prompt_tokens
    return computed


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(result, seconds)."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def layouts(backend: TransformersBackend, queries: int) -> list[dict[str, Any]]:
    """Seconds and tokens a query, 20 passages of 40 words."""
    problems = [pool(20, 40, number) for number in range(queries)]
    rows = []
    tokens, seconds = timed(lambda: sum(paper_loop(backend, problem) for problem in problems))
    rows.append({"way": "paper's loop", "tokens": tokens / queries, "seconds": seconds / queries})
    for way in ("relist", "append", "blocks"):
        ranker = IRanker(backend, think=False, layout=way)  # type: ignore[arg-type]
        backend.forget()
        rankings, seconds = timed(lambda ranker=ranker: ranker.rank_many(problems))
        tokens = sum(ranking.usage.prompt_tokens for ranking in rankings)
        rows.append({"way": way, "tokens": tokens / queries, "seconds": seconds / queries})
    return rows


def workloads(backend: TransformersBackend, queries: int) -> list[dict[str, Any]]:
    """Median milliseconds a query, one query at a time."""
    kinds = {
        "10 passages of 100 words": (10, 100, "passage"),
        "20 passages of 100 words": (20, 100, "passage"),
        "20 titles": (20, 6, "recommendation"),
        "10 LLMs": (10, 20, "routing"),
    }
    ranker = IRanker(backend, think=False, layout="blocks", ask="best")
    encoder = None
    if here(MINILM):
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(here(MINILM)), device="cpu")
    rows = []
    for kind, (n, words, scenario) in kinds.items():
        problems = [pool(n, words, number, scenario) for number in range(queries + 1)]
        seconds = [timed(lambda p=p: ranker.rank(p))[1] for p in problems][1:]  # type: ignore[misc]
        row = {"workload": kind, "ms": 1000 * median(seconds)}
        if encoder:
            texts = [[p.query, *(c.text for c in p.candidates)] for p in problems]
            both = [timed(lambda t=t: encoder.encode(t))[1] for t in texts][1:]  # type: ignore[misc]
            row["minilm_ms"] = 1000 * median(both)
        rows.append(row)
    return rows


def reading(model: str, tokens: int = 400) -> dict[str, float]:
    """Tokens a second of prompts of 400 tokens: plain transformers in float32, and as this package loads it."""
    plain = TransformersBackend.load(model, dtype="float32")
    ours = TransformersBackend.load(model)
    ids = torch.randint(100, 3000, (1, tokens), generator=torch.Generator().manual_seed(0))
    speed = {}
    with torch.inference_mode():
        for name, backend in (("float32", plain), ("ours", ours)):
            seconds = [timed(lambda b=backend: b.network(ids, logits_to_keep=1))[1] for _ in range(6)][1:]  # type: ignore[misc]
            speed[name] = tokens / median(seconds)
    return speed


def training(model: str, pools: int = 2) -> dict[str, float]:
    """Tokens a second of training adapters on a row of blocks: as this package does, and as transformers and peft do.

    Theirs is attention written out under a mask over the whole row, in float32 and in bfloat16, with peft's layers.
    """
    rng = random.Random(0)
    ids = [[tuple(rng.randrange(100, 3000) for _ in range(80)) for _ in range(9)] for _ in range(pools)]
    row = packed([Blocks(head, tuple(blocks)) for head, *blocks in ids])
    length = len(row.ids_L)
    seen = torch.zeros((length, length), dtype=torch.bool)
    for part in (part for kind in row.kinds for part in kind):
        for token in part.own:
            seen[token, [*part.before, *range(part.begin, token + 1)]] = True
    speed = {}
    for name, dtype, sparse in (
        ("float32", torch.float32, False),
        ("bfloat16", torch.bfloat16, False),
        ("ours", torch.bfloat16, True),
    ):
        network, _ = load(model, "cpu", "float32")
        add_lora(network, 16, dtype if sparse else torch.float32)
        if sparse:
            make_maskable(network, model)
        else:
            network.set_attn_implementation("eager")
            for module in network.modules():
                if hasattr(module, "lora_A"):
                    del module.forward  # ours
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[None, None]

        def step(network: Any = network, dtype: torch.dtype = dtype, mask: Any = mask, sparse: bool = sparse) -> None:
            with passes_in(dtype, network.device):
                if sparse:
                    hidden = ends(network, row)
                else:
                    inputs = {"input_ids": row.ids_L[None], "position_ids": row.positions_L[None]}
                    out = network.base_model(**inputs, attention_mask=mask, use_cache=False)
                    hidden = out.last_hidden_state[0, row.ends_S]
            hidden.float().pow(2).mean().backward()

        speed[name] = length / median([timed(step)[1] for _ in range(4)][1:])
    return speed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol")
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    console = Console()
    backend = TransformersBackend.load(asked.model)
    torch.set_num_threads(asked.threads)
    rows, kinds = layouts(backend, asked.queries), workloads(backend, max(5, asked.queries))
    speed, trained = reading(asked.model), training(asked.model)
    table = Table("way", "tokens a query", "seconds a query", "faster", title=f"{asked.model}, 20 passages of 40 words")
    for row in rows:
        faster = f"{rows[0]['seconds'] / row['seconds']:.1f}x"
        table.add_row(row["way"], f"{row['tokens']:.0f}", f"{row['seconds']:.3f}", faster)
    console.print(table)
    table = Table("what", "ms a query", "MiniLM, ms")
    for row in kinds:
        table.add_row(row["workload"], f"{row['ms']:.0f}", f"{row.get('minilm_ms', float('nan')):.0f}")
    console.print(table)
    console.print(f"tokens a second: float32 {speed['float32']:.0f}, here {speed['ours']:.0f}")
    console.print("tokens a second in training: " + ", ".join(f"{way} {rate:.0f}" for way, rate in trained.items()))
    write_json(
        asked.json,
        {"layouts": rows, "workloads": kinds, "tokens_per_s": speed, "trained_per_s": trained} | provenance(),
    )


if __name__ == "__main__":
    main()
