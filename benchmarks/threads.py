"""What CPU threads do to a small model: tokens per second, alone and beside a second process.

    python benchmarks/threads.py

Each cell is one forward and backward pass over 32 prompts of 200 tokens through a network of 1.1 M parameters.
"""

from __future__ import annotations

import os
import platform
import time
from multiprocessing import get_context

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

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
    """Print the table and the machine."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print("| processes | threads each | tokens/s each |")
    print("| --- | --- | --- |")
    for processes in (1, 2):
        for threads in (1, 2):
            with get_context("spawn").Pool(processes) as pool:
                speeds = pool.map(tokens_per_second, [threads] * processes)
            print(f"| {processes} | {threads} | {sum(speeds) / processes:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
