"""Networks of many kinds: what padding or kept keys would change is read alone, and comes out the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from r1ranker import IRanker
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.problem import Problem

V = 400
SHAPE = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
OLD = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
STATE = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8}
KINDS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "qwen3": ({**SHAPE, "num_key_value_heads": 2, "head_dim": 8}, True, True),
    "gpt2": (OLD, True, True),
    "openai-gpt": (OLD, True, False),
    "gpt_neo": ({"vocab_size": V, "hidden_size": 32, "max_position_embeddings": 512, **NEO}, True, False),
    "bloom": ({"vocab_size": V, "hidden_size": 32, "n_layer": 2, "n_head": 4}, True, False),
    "mpt": ({"vocab_size": V, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}, True, False),
    "mistral": ({**SHAPE, "num_key_value_heads": 2, "sliding_window": 8}, True, False),
    "mamba": (STATE, True, False),
    "rwkv": ({"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 512}, False, False),
}


def network(kind: str) -> Any:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind][0])).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1 and parameter.std() < 0.05:
                parameter.mul_(5)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_orders_do_not_depend_on_who_is_in_the_batch(kind: str, tiny_dir: Path, problems: list[Problem]) -> None:
    made, tokenizer = network(kind), AutoTokenizer.from_pretrained(str(tiny_dir))
    backend = TransformersBackend(made, tokenizer, name=kind)
    assert (backend.pads, backend.keeps) == KINDS[kind][1:]
    some = problems[:4]
    for layout in ("relist", "append"):
        ranker = IRanker(backend, think=False, layout=layout)  # type: ignore[arg-type]
        together = ranker.rank_many(some)
        for problem, ranking in zip(some, together, strict=True):
            alone = IRanker(TransformersBackend(made, tokenizer), think=False, layout=layout).rank(problem)  # type: ignore[arg-type]
            assert ranking.docids == alone.docids
    prompts_of_two = IRanker(backend, think=True, max_new_tokens=3)
    assert [r.docids for r in prompts_of_two.rank_many(some[:2])] == [prompts_of_two.rank(p).docids for p in some[:2]]


def test_a_network_that_padding_disturbs_says_so(tiny_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    TransformersBackend(network("rwkv"), AutoTokenizer.from_pretrained(str(tiny_dir)), name="mine")
    assert "mine says other things beside padding" in caplog.text
