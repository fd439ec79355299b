"""vLLM in this process, for models of a size where its kernels pay. In: `Prompt`s. Out: completions and choices.

    backend = VLLMBackend.load("Qwen/Qwen2.5-3B-Instruct", tensor_parallel_size=2)

Prompts become the token ids that `transformers_` reads, and a choice the same product over the branchings of the
identifiers' trie. vLLM schedules the whole batch itself, and its prefix cache finds what prompts share.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from r1ranker.backends.base import STOP, Backend, Choice, Completion, too_long
from r1ranker.backends.encoding import Encoder, TokenPath
from r1ranker.backends.loading import end_ids, pick_device, pick_dtype
from r1ranker.backends.models import resolve
from r1ranker.backends.transformers_ import identifier_probabilities
from r1ranker.backends.way import way_of
from r1ranker.errors import BackendError
from r1ranker.io.extras import library
from r1ranker.prompts import Prompt

AT_ONCE = 128
"""Tokens whose log-probability one request may ask for; a limit of vLLM's sampler."""


class VLLMBackend(Backend):
    """A `vllm.LLM` as a `Backend`."""

    def __init__(self, llm: Any, tokenizer: Any, *, name: str = "model", ends: Sequence[int] = ()) -> None:
        """ends: tokens that end a completion, beside the tokenizer's own."""
        self.llm = llm
        self.ends = list(ends)
        self._turn = threading.RLock()
        self.encoder = Encoder(tokenizer)
        self.name = name

    @classmethod
    def load(cls, model: str, *, dtype: str = "auto", **engine: Any) -> VLLMBackend:
        """A hub name, a directory or `nano`. `engine` goes to `vllm.LLM`, such as tensor_parallel_size.

        Raises BackendError with the remedy when vLLM is missing or cannot load the model.
        """
        vllm = _vllm()
        path = resolve(model)
        precision = str(pick_dtype(dtype, pick_device())).removeprefix("torch.")
        # The model's own generation defaults stay out, as in the transformers backend.
        settings = {"dtype": precision, "enable_prefix_caching": True, "generation_config": "vllm"}
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            llm = vllm.LLM(model=path, **settings | engine)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            why = " ".join(str(error).split())[:300].rstrip(".")
            raise BackendError(
                f"vLLM cannot load {path!r}: {why}. Check the name or directory; vLLM's log above may say more, and "
                "the default engine, transformers, loads any causal language model"
            ) from error
        backend = cls(llm, tokenizer, name=model, ends=end_ids(tokenizer, generation=_generation_config(path)))
        backend.trained_in = way_of(path)
        return backend

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 1024, temperature: float = 0.0
    ) -> list[Completion]:
        """See `Backend.generate`."""
        how = _vllm().SamplingParams(
            max_tokens=max_new_tokens,
            temperature=temperature,
            stop=[STOP],
            stop_token_ids=self.ends or None,
            include_stop_str_in_output=True,
        )
        outputs = self._run([self.encoder.encode(prompt) for prompt in prompts], [how] * len(prompts))
        completions = []
        for output in outputs:
            (written,) = output.outputs
            text = self.encoder.decode(written.token_ids)
            cut = written.finish_reason == "length" and STOP not in text
            completions.append(Completion(text, cut, _computed(output), len(written.token_ids)))
        return completions

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        """See `Backend.choose`. A request for each branching of each trie; what they share is computed once."""
        encoded = [self.encoder.encode(prompt) for prompt in prompts]
        tries = [self.encoder.trie(pool) for pool in pools]
        asks = [
            (i, node, children[start : start + AT_ONCE])
            for i, trie in enumerate(tries)
            for node, children in trie.branches.items()
            for start in range(0, len(children), AT_ONCE)
        ]
        params = _vllm().SamplingParams
        how = [params(max_tokens=1, logprob_token_ids=list(some), detokenize=False) for _, _, some in asks]
        outputs = self._run([encoded[i] + list(node) for i, node, _ in asks], how)
        logprobs: list[dict[TokenPath, dict[int, float]]] = [{} for _ in tries]
        read = [0] * len(tries)
        for (i, node, some), output in zip(asks, outputs, strict=True):
            (at,) = output.outputs[0].logprobs
            logprobs[i].setdefault(node, {}).update((token, at[token].logprob) for token in some)
            read[i] += _computed(output)
        return [
            Choice(
                identifier_probabilities(trie, {node: _normalised(of) for node, of in logprobs[i].items()}),
                read[i],
                len(next(iter(trie.paths.values()))),
            )
            for i, trie in enumerate(tries)
        ]

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    def length(self, prompt: Prompt) -> int:
        """See `Encoder.length`."""
        return self.encoder.length(prompt)

    def _run(self, rows: list[list[int]], how: list[Any]) -> list[Any]:
        """What vLLM answers to each row of token ids."""
        limit = self.context
        for ids, params in zip(rows, how, strict=True):
            if len(ids) + params.max_tokens > limit:  # vLLM would write less than was asked for, and not say so
                raise too_long(len(ids), params.max_tokens, limit, self.name)
        if not rows:
            return []
        with self._turn:  # vLLM hands every finished request to whoever waits
            return list(self.llm.generate([{"prompt_token_ids": ids} for ids in rows], how, use_tqdm=False))


def _computed(output: Any) -> int:
    """Prompt tokens that were not in the prefix cache."""
    return len(output.prompt_token_ids) - (output.num_cached_tokens or 0)


def _normalised(logprobs: dict[int, float]) -> dict[int, float]:
    """vLLM's are over the whole vocabulary; these are over the tokens that may stand there."""
    most = max(logprobs.values())
    total = most + math.log(sum(math.exp(value - most) for value in logprobs.values()))
    return {token: value - total for token, value in logprobs.items()}


def _generation_config(path: str) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # a model need not have one
        return None


def _vllm() -> Any:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # read at import; it logs pages about every load
    return library("vllm", "vllm", "the engine vllm")
