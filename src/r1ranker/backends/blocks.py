"""Layout `blocks`: candidates that are read side by side and do not see each other.

    head       [block 1] [block 2] ... [block n]      question
    sees itself   head and itself, each               head, the blocks that are left, itself

Positions restart behind the head for every block, so a candidate's place says nothing and there is no order of
candidates. A question begins behind the longest block it sees. Who leaves is masked: a question over the survivors is
computed as in a prompt that never held the others. In: `Blocks`. Out: last hidden states at the ends of blocks and
questions, and logits there of the few tokens that are asked for. Used by `transformers_` and, with gradients, by
`training.batch`.

Names carry their dimensions: L tokens of a row, S segments (heads, blocks, questions) of it, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from r1ranker.backends.prefix import can_reuse
from r1ranker.errors import BackendError

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked behind the blocks at the places `sees`, which are those that are left."""

    ids: Ids
    sees: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A pool as token ids: `blocks` by place, and what is asked about them."""

    head: Ids
    blocks: tuple[Ids, ...]
    questions: tuple[Question, ...] = ()
    labels: Ids = ()
    """The token that names each block, where a question is answered by one of them; else blocks are judged."""

    @property
    def tokens(self) -> int:
        """Tokens that one pass over it reads."""
        return len(self.head) + sum(map(len, self.blocks)) + sum(len(question.ids) for question in self.questions)


@dataclass(frozen=True, slots=True)
class Row:
    """Pools side by side in one sequence. ends_S: the last token of each of `blocks` and then of each of `questions`.

    seen_L_L: whether a token (first index) sees another.
    """

    ids_L: Tensor
    positions_L: Tensor
    seen_L_L: Tensor
    ends_S: Tensor


def check_maskable(network: Any, name: str) -> None:
    """Refuse networks that cannot be told who sees whom: windows, recurrent states, positions that are not rotary."""
    inner = network.config.get_text_config()
    rotary = getattr(inner, "rope_parameters", None) or getattr(inner, "rope_theta", None)
    if not (can_reuse(network) and rotary and network.config._attn_implementation in ("sdpa", "eager")):
        raise BackendError(
            f"layout blocks needs attention over everything with rotary positions and a mask of our own; {name} "
            f"({inner.model_type}, {network.config._attn_implementation}) has not: use layout relist"
        )


def packed(pools: Sequence[Blocks]) -> Row:
    """One row of all pools, none of which sees another."""
    segments: list[Ids] = []
    starts: list[int] = []  # position of each segment's first token
    sees: list[set[int]] = []  # segments that each segment sees, beside itself
    block_ends: list[int] = []
    question_ends: list[int] = []
    for pool in pools:
        head, P = len(segments), len(pool.head)
        first = head + 1
        segments += [pool.head, *pool.blocks, *(question.ids for question in pool.questions)]
        starts += [0, *(P for _ in pool.blocks)]
        sees += [set(), *({head} for _ in pool.blocks)]
        for question in pool.questions:
            starts.append(P + max((len(pool.blocks[place]) for place in question.sees), default=0))
            sees.append({head, *(first + place for place in question.sees)})
        block_ends += range(first, first + len(pool.blocks))
        question_ends += range(first + len(pool.blocks), len(segments))
    lengths = torch.tensor([len(ids) for ids in segments])
    segment_L = torch.repeat_interleave(torch.arange(len(segments)), lengths)
    begin_S = torch.tensor([0, *accumulate(len(ids) for ids in segments)][:-1])
    within_L = torch.arange(len(segment_L)) - begin_S[segment_L]
    sees_S_S = torch.zeros((len(segments), len(segments)), dtype=torch.bool)
    for segment, others in enumerate(sees):
        sees_S_S[segment, list(others)] = True
    same_L_L = segment_L[:, None] == segment_L[None]
    seen_L_L = sees_S_S[segment_L][:, segment_L] | (same_L_L & (within_L[:, None] >= within_L[None]))
    ends_S = (begin_S + lengths - 1)[torch.tensor([*block_ends, *question_ends], dtype=torch.long)]
    ids_L = torch.tensor([token for ids in segments for token in ids])
    return Row(ids_L, torch.tensor(starts)[segment_L] + within_L, seen_L_L, ends_S)


def ends(network: Any, row: Row) -> Tensor:
    """(S, H) last hidden states at the ends of the row's blocks and questions."""
    device = network.device
    out = network.base_model(
        input_ids=row.ids_L[None].to(device),
        attention_mask=_added(row.seen_L_L, network),
        position_ids=row.positions_L[None].to(device),
        use_cache=False,
    )
    return torch.as_tensor(out.last_hidden_state[0, row.ends_S.to(device)])


def _added(seen_L_L: Tensor, network: Any) -> Tensor:
    """(1, 1, L, L) what is added to attention scores, in the dtype of the pass: nothing unseen is attended to."""
    device = network.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else network.dtype
    added = torch.zeros(seen_L_L.shape, dtype=dtype).masked_fill(~seen_L_L, torch.finfo(dtype).min)
    return added[None, None].to(device)


def token_logits(network: Any, hidden_S_H: Tensor, tokens: Sequence[int]) -> Tensor:
    """(S, tokens) logits in float32 of the tokens asked for: no other row of the language head is computed."""
    head = network.get_output_embeddings()
    chosen = torch.tensor(list(tokens), device=hidden_S_H.device)
    bias = None if head.bias is None else head.bias[chosen].float()
    with torch.autocast(hidden_S_H.device.type, enabled=False):
        return F.linear(hidden_S_H.float(), head.weight[chosen].float(), bias)


def read_all(
    network: Any, pools: Sequence[Blocks], yes_no: tuple[int, int], max_tokens: int
) -> list[tuple[Tensor, Tensor]]:
    """For each pool what its read-out says, and the last hidden states (S, H) from which.

    A judge: (n,), the logit of "yes" less that of "no" at the end of each of n blocks; a pool longer than `max_tokens`
    is read in parts, each behind the head. An identifier: (questions, n), the logits of all labels at the end of each
    question.
    """
    parts = [(i, part) for i, pool in enumerate(pools) for part in _parts(pool, max_tokens)]
    hidden: list[list[Tensor]] = [[] for _ in pools]
    for group in _groups([part.tokens for _, part in parts], max_tokens):
        row = packed([parts[j][1] for j in group])
        hidden_S_H = ends(network, row)
        places = [place for j in group for place in [j] * len(parts[j][1].blocks)]
        places += [j for j in group for _ in parts[j][1].questions]
        for j in group:
            asked = [s for s, place in enumerate(places) if place == j]
            hidden[parts[j][0]].append(hidden_S_H[asked])
    return [_said(network, pool, torch.cat(of_pool), yes_no) for pool, of_pool in zip(pools, hidden, strict=True)]


def _said(network: Any, pool: Blocks, hidden_S_H: Tensor, yes_no: tuple[int, int]) -> tuple[Tensor, Tensor]:
    if pool.labels:
        at_questions = hidden_S_H[len(pool.blocks) :]
        return token_logits(network, at_questions, pool.labels), at_questions
    logits_S_2 = token_logits(network, hidden_S_H, yes_no)
    return logits_S_2[:, 0] - logits_S_2[:, 1], hidden_S_H


class Known:
    """A pool whose head and blocks are read once, for one question after the other."""

    def __init__(self, network: Any, pool: Blocks) -> None:
        self._network, self._pool = network, pool
        self._cache: DynamicCache | None = None

    @torch.inference_mode()
    def ask(self, left: Sequence[int]) -> tuple[Tensor, int]:
        """(logits of the labels of the blocks at these places, tokens read)."""
        pool = replace(self._pool, questions=(replace(self._pool.questions[0], sees=tuple(left)),))
        row, device = packed([pool]), self._network.device
        read = len(row.ids_L) - len(pool.questions[0].ids)
        begin = read if self._cache is not None else 0
        self._cache = self._cache or DynamicCache(config=self._network.config)
        out = self._network.base_model(
            input_ids=row.ids_L[None, begin:].to(device),
            attention_mask=_added(row.seen_L_L[begin:], self._network),
            position_ids=row.positions_L[None, begin:].to(device),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache.crop(read - len(row.ids_L))
        logits = token_logits(self._network, out.last_hidden_state[0, -1:], [pool.labels[place] for place in left])
        return logits[0], len(row.ids_L) - begin


def read_tokens(pools: Sequence[Blocks], max_tokens: int) -> list[int]:
    """Tokens that `read_all` reads for each pool: the head counts once for every part."""
    return [sum(part.tokens for part in _parts(pool, max_tokens)) for pool in pools]


def _parts(pool: Blocks, max_tokens: int) -> Iterator[Blocks]:
    """The pool in parts of at most `max_tokens` (at least one block each); whole where questions see all of it."""
    if pool.questions:
        yield pool
        return
    blocks: list[Ids] = []
    tokens = len(pool.head)
    for block in pool.blocks:
        if blocks and tokens + len(block) > max_tokens:
            yield replace(pool, blocks=tuple(blocks))
            blocks, tokens = [], len(pool.head)
        blocks.append(block)
        tokens += len(block)
    yield replace(pool, blocks=tuple(blocks))


def _groups(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices in their order, in groups of at most `most` in all (at least one index)."""
    group: list[int] = []
    total = 0
    for index, size in enumerate(sizes):
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(index)
        total += size
    if group:
        yield group
