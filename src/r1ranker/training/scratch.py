"""A small model from nothing: a tokenizer trained on the prompts, and a Llama network with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from r1ranker.io.config import ScratchConfig
from r1ranker.rewards import TAGS

END, PAD = "<|end|>", "<|pad|>"
MATCH, COPY = 0.3, 0.5


def train_tokenizer(texts: Iterable[str], scratch: ScratchConfig) -> PreTrainedTokenizerFast:
    """Byte-level BPE. The four tags and the identifiers [1]..[n] are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()  # a small model gains more than it loses
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Kept out of "special tokens", which decoding would drop: the parser has to see them.
    kept = [AddedToken(tag, normalized=False) for tag in TAGS]
    kept += [AddedToken(f"[{k}]", normalized=False) for k in range(1, scratch.identifiers + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=scratch.vocab - len(kept),
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(kept)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=scratch.context
    )


def new_network(tokenizer: Any, scratch: ScratchConfig, seed: int) -> LlamaForCausalLM:
    """A Llama network with random weights, biases in its attention and tied embeddings.

    Computed as Qwen2 is. But where a config says `qwen2`, transformers 5 builds Qwen2's own tokenizer whatever
    tokenizer.json says: no lower case, other word boundaries. The model would then not read what it was taught with.
    """
    torch.manual_seed(seed)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=scratch.hidden,
            intermediate_size=scratch.hidden * 3,
            num_hidden_layers=scratch.layers,
            num_attention_heads=scratch.heads,
            num_key_value_heads=scratch.heads,
            max_position_embeddings=scratch.context,
            # A high base keeps most rotary dimensions still over a prompt, so that heads can match words by content.
            rope_parameters={"rope_type": "default", "rope_theta": 1e5},
            attention_bias=True,
            tie_word_embeddings=True,
            # The usual 0.02 suits wide networks; in a narrow one it leaves attention flat for thousands of steps.
            initializer_range=scratch.hidden**-0.5,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for layer in network.model.layers:
        _look_for_the_same(layer.self_attn)
    return network


@torch.no_grad()
def _look_for_the_same(attention: Any) -> None:
    """Begin with attention that finds like tokens and passes on what it finds (Trockman & Kolter 2023).

    Matching words of query and candidate, and copying identifiers, then need not be discovered.
    """
    keys = nn.init.orthogonal_(torch.empty_like(attention.k_proj.weight)) * MATCH**0.5
    attention.k_proj.weight.copy_(keys)
    attention.q_proj.weight.copy_(keys)
    values = nn.init.orthogonal_(torch.empty_like(attention.v_proj.weight))
    attention.v_proj.weight.copy_(values)
    attention.o_proj.weight.copy_(COPY * values.T)
