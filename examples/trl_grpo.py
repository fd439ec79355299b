"""Train the embedded model by TRL's GRPOTrainer on the embedded tasks, then rank with it: a few steps on a CPU.

pip install 'r1-ranker[trl]'
python examples/trl_grpo.py --steps 20
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from trl import GRPOConfig, GRPOTrainer

from r1ranker import IRanker, Problem, TransformersBackend
from r1ranker.backends.base import STOP
from r1ranker.backends.loading import load
from r1ranker.datasets import mini
from r1ranker.training import for_trl


def train(problems: Sequence[Problem], steps: int, out: Path) -> None:
    """Writes a model directory: the policy after `steps` updates, each on 8 completions of 4 prompts."""
    network, tokenizer = load("nano", device="cpu")
    # A completion ends at the closing tag, which is one token here. Where it is several, the end-of-turn token ends it.
    network.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(STOP), tokenizer.eos_token_id]
    settings = GRPOConfig(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=8,  # room for an identifier and the closing tag
        learning_rate=1e-4,
        beta=0.001,  # KL to the embedded model
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    rows = for_trl.dataset(problems, tokenizer, "iranker", think=False)
    trainer = GRPOTrainer(network, for_trl.reward, settings, rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/trl"))
    given = parser.parse_args()
    splits = mini.load(limit=20)
    train(splits["train"], given.steps, given.out)
    ranker = IRanker(TransformersBackend.load(str(given.out)), think=False)
    print(*ranker.rank(splits["test"][0]).docids)
