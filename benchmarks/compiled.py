"""Whether torch.compile pays in training: forward and backward passes over padded batches, eager and compiled.

    python benchmarks/compiled.py --json compiled.json
    python benchmarks/compiled.py --model Qwen/Qwen2.5-0.5B-Instruct --device cuda --tokens 16384

Batches are of about `--tokens` tokens, rows of one batch within a factor of two of each other, a new shape for each
batch, as in training; compiled with dynamic shapes. Rates are by CPU seconds on a CPU and by the wall on a GPU.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from r1ranker.backends.loading import load
from r1ranker.cli.common import write_json
from r1ranker.io.provenance import provenance
from r1ranker.training.batch import Batch, Sample, pack, score

LENGTHS = (128, 160, 200, 256, 300, 350)
BATCHES = 20


def padded_batches(tokens: int, pad_id: int, device: torch.device) -> list[Batch]:
    """Random token ids; the same at every call."""
    rng = random.Random(0)

    def sample(longest: int) -> Sample:
        length = rng.randint(longest // 2, longest)
        return Sample([rng.randrange(10, 300) for _ in range(length)], [7, 8], None, 0.0)

    longest = [rng.choice(LENGTHS) for _ in range(BATCHES)]
    return [pack([sample(most) for _ in range(max(1, tokens // most))], pad_id, device) for most in longest]


def passes(network: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """Seconds of a pass over all batches, and tokens per second."""
    device = batches[0].input_ids.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    for batch in batches:
        network.zero_grad()
        score(network, batch).logprobs_B_T.sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - began
    return {"seconds": seconds, "tokens/s": sum(int(b.attention_mask.sum()) for b in batches) / seconds}


def main() -> None:
    """Parse, run, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=2048, help="in a batch, padding included")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    network, tokenizer = load(given.model, given.device, "auto")
    batches = padded_batches(given.tokens, tokenizer.pad_token_id, network.device)
    began = time.perf_counter()
    compiled = torch.compile(network, dynamic=True)
    passes(compiled, batches)
    compiling = time.perf_counter() - began
    passes(network, batches)
    rows = []
    for _ in range(given.rounds):  # in turn, so that what else the machine does falls on both
        rows.append({"eager": passes(network, batches), "compiled": passes(compiled, batches)})
        Console().print({name: round(found["tokens/s"]) for name, found in rows[-1].items()}, "tokens/s")
    Console().print(f"first pass over {BATCHES} batches, with compiling: {compiling:.0f} s")
    settings = {name: str(value) for name, value in vars(given).items() if name != "json"}
    write_json(given.json, {"provenance": provenance(), "settings": settings, "compiling": compiling, "rows": rows})


if __name__ == "__main__":
    main()
