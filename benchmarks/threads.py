"""What CPU threads do to a small model: tokens per second, alone and beside a second process.

    python benchmarks/threads.py --json out.json

Each cell is one forward and backward pass over 32 prompts of 200 tokens through a network of 1.1 M parameters.
"""

from __future__ import annotations

import argparse
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from r1ranker.cli.common import write_json
from r1ranker.io.provenance import provenance

BATCH, LENGTH, PASSES = 32, 200, 3


def tokens_per_second(threads: int) -> float:
    """Forward and backward passes of the embedded model's shape."""
    torch.set_num_threads(threads)
    config = Qwen2Config(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    network = Qwen2ForCausalLM(config)
    input_ids = torch.randint(0, 2048, (BATCH, LENGTH))
    for timed in (False, True):
        began = time.perf_counter()
        for _ in range(PASSES if timed else 1):
            network(input_ids=input_ids, logits_to_keep=2, use_cache=False).logits.sum().backward()
    return PASSES * BATCH * LENGTH / (time.perf_counter() - began)


def main() -> None:
    """Print the table, and write it with the machine where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the rows here, with versions and machine")
    args = parser.parse_args()
    rows = []
    print("| processes | threads each | tokens/s each |")
    print("| --- | --- | --- |")
    for processes in (1, 2):
        for threads in (1, 2):
            with get_context("spawn").Pool(processes) as pool:
                speeds = pool.map(tokens_per_second, [threads] * processes)
            rows.append({"processes": processes, "threads": threads, "tokens/s": sum(speeds) / processes})
            print(f"| {processes} | {threads} | {rows[-1]['tokens/s']:,.0f} |", flush=True)
    write_json(args.json, {"provenance": provenance(), "rows": rows})


if __name__ == "__main__":
    main()
