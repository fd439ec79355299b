"""Writing, a token at a time. In: rows whose prompts are known but for their last tokens. Out: what each row wrote.

The loop does what `generate` of transformers does for a batch, with less around each token: nothing is checked or
copied that stays the same, and rows that have ended leave. Next in the data flow: `transformers_`.

Names carry their dimensions: B rows in the batch, S new tokens, L columns, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from r1ranker.errors import NotFiniteError

LEAVE = 0.75
"""Ended rows leave when this share of the batch, or less, is still writing: to leave, the others are copied."""


@dataclass(frozen=True, slots=True)
class Settings:
    """temperature: 0 takes the likeliest token. stop_ids: tokens that end a row.

    stopped: whether tokens end in a closing tag, where that is several tokens. traced: keep what the network
        said of each token, see `Trace`.
    """

    max_new_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]
    stopped: Callable[[list[int]], bool] | None = None
    traced: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """What the network said of T tokens that it wrote, on the CPU, in float32.

    logprobs_T: by its own distribution, which is that of temperature 1. hidden_T_H: the state that each token was
        predicted from.
    """

    logprobs_T: Tensor
    hidden_T_H: Tensor


@dataclass(slots=True)
class Written:
    """What a row wrote, with what ended it; where traced, what makes a `Trace`, token by token."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)


@torch.inference_mode()
def write(
    network: Any, cache: Cache, ids_B_S: Tensor, mask_B_L: Tensor, settings: Settings, *, leave: bool = True
) -> list[Written]:
    """What each row writes behind its prompt.

    ids_B_S: the last tokens of the prompts, which `cache` does not know yet, padded on the left. mask_B_L: which of
        the cache's columns and of these belong to a row. leave: False keeps the cache's rows as they are, though
        they have ended; the cache then knows what was written but for the last column.
    """
    written = [Written() for _ in range(len(ids_B_S))]
    rows = list(range(len(written)))
    L = mask_B_L.shape[1]
    mask = torch.cat([mask_B_L.long(), mask_B_L.new_ones((len(rows), settings.max_new_tokens), dtype=torch.long)], 1)
    last_B = mask_B_L.sum(-1) - 1
    ids, positions = ids_B_S, (mask_B_L.cumsum(-1) - 1).clamp(min=0)[:, -ids_B_S.shape[1] :]
    running = set(rows)
    for t in range(settings.max_new_tokens):
        out = network(
            input_ids=ids,
            attention_mask=mask[:, : L + t],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=settings.traced,
        )
        logits_B_V = out.logits[:, -1].float()
        tokens_B = pick(logits_B_V, settings.temperature)
        traces = _trace(tokens_B, logits_B_V, out.hidden_states[-1][:, -1]) if settings.traced else None
        for place, token in enumerate(tokens_B.tolist()):
            row = rows[place]
            if row not in running:
                continue
            written[row].token_ids.append(token)
            if traces:
                written[row].logprobs.append(traces[0][place])
                written[row].hidden.append(traces[1][place])
            if _ended(written[row].token_ids, settings):
                running.remove(row)
        if not running:
            break
        if leave and len(running) <= LEAVE * len(rows):
            stay = [place for place, row in enumerate(rows) if row in running]
            rows = [rows[place] for place in stay]
            index = torch.tensor(stay, device=ids.device)
            cache.batch_select_indices(index)
            mask, last_B, tokens_B = mask[index], last_B[index], tokens_B[index]
        ids, positions = tokens_B[:, None], last_B[:, None] + t + 1
    return written


def pick(logits_B_V: Tensor, temperature: float) -> Tensor:
    """A token (B,) for each row: the likeliest at temperature 0, else drawn from the softmax at this temperature.

    Drawn by inverting the cumulated distribution: one random number a row, where `torch.multinomial` draws one for
    each token of the vocabulary. In float32 probabilities are met to 2^-24. NotFiniteError: what is no number.
    """
    if temperature == 0:
        tokens_B = logits_B_V.argmax(-1)
        check_logits(logits_B_V.gather(-1, tokens_B[:, None]))
        return tokens_B
    cumulated_B_V = torch.softmax(logits_B_V / temperature, -1).cumsum(-1)
    check_logits(cumulated_B_V[:, -1])
    drawn_B_1 = torch.rand_like(cumulated_B_V[:, :1]) * cumulated_B_V[:, -1:]
    return torch.searchsorted(cumulated_B_V, drawn_B_1, right=True).squeeze(-1).clamp(max=logits_B_V.shape[1] - 1)


def check_logits(most_B: Tensor) -> None:
    """Raises NotFiniteError unless each row's largest number is one: NaN and infinity come out on top."""
    if not bool(most_B.isfinite().all()):
        raise NotFiniteError(
            "the model's logits are not finite. Its weights, or the dtype it runs in, are at fault: take an earlier "
            "checkpoint, or a wider dtype"
        )


def _trace(tokens_B: Tensor, logits_B_V: Tensor, hidden_B_H: Tensor) -> tuple[list[float], list[Tensor]]:
    """(log-probability, hidden state) of each row's token, on the CPU."""
    logprobs_B = logits_B_V.gather(-1, tokens_B[:, None]).squeeze(-1) - logits_B_V.logsumexp(-1)
    return logprobs_B.tolist(), list(hidden_B_H.float().cpu())


def _ended(token_ids: list[int], settings: Settings) -> bool:
    return token_ids[-1] in settings.stop_ids or bool(settings.stopped and settings.stopped(token_ids))
