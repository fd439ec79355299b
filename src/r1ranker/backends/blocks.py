"""Layout `blocks`: candidates that are read side by side and do not see each other.

    head       [block 1] [block 2] ... [block n]      question
    sees itself   head and itself, each               head, the blocks that are left, itself

With the query first it stands in the head, and a judge speaks at the end of every block. With the query last it stands
in the question; a judge then has a question for each block, which sees the head and that block.

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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from r1ranker.backends.attention import SPARSE, Part, Sight, sight, without_mask
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
    def judged(self) -> bool:
        """Whether each block is judged for itself; else a question about several is answered by a label."""
        return not self.labels

    def part(self, places: Sequence[int]) -> Blocks:
        """A judge's pool of the blocks at these places alone, each with its question where there are any."""
        asked = [self.questions[place] for place in places] if self.questions else []
        questions = tuple(replace(question, sees=(n,)) for n, question in enumerate(asked))
        return replace(self, blocks=tuple(self.blocks[place] for place in places), questions=questions)

    @property
    def tokens(self) -> int:
        """Tokens that one pass over it reads."""
        return len(self.head) + sum(map(len, self.blocks)) + sum(len(question.ids) for question in self.questions)


@dataclass(frozen=True, slots=True)
class Row:
    """Pools side by side in one sequence.

    kinds: heads, blocks and questions. ends_S: the last token of each block and then of each question.
    """

    ids_L: Tensor
    positions_L: Tensor
    kinds: tuple[list[Part], list[Part], list[Part]]
    ends_S: Tensor


def make_maskable(network: Any, name: str) -> None:
    """Tell a network's attention who sees whom.

    Raises BackendError for networks that cannot be told: windows, recurrent states, positions that are not rotary.
    """
    if network.config._attn_implementation == SPARSE:
        return
    inner = network.config.get_text_config()
    rotary = getattr(inner, "rope_parameters", None) or getattr(inner, "rope_theta", None)
    if not (can_reuse(network) and rotary and network.config._attn_implementation in ("sdpa", "eager")):
        raise BackendError(
            f"layout blocks needs attention over everything with rotary positions and a mask of our own; {name} "
            f"({inner.model_type}, {network.config._attn_implementation}) has not: use layout relist"
        )
    network.set_attn_implementation(SPARSE)


def packed(pools: Sequence[Blocks]) -> Row:
    """One row of all pools, none of which sees another."""
    ids: list[int] = []
    positions: list[int] = []
    heads: list[Part] = []
    blocks: list[Part] = []
    questions: list[Part] = []

    def read(segment: Ids, position: int, before: Sequence[int]) -> Part:
        part = Part(len(ids), len(ids) + len(segment), before)
        ids.extend(segment)
        positions.extend(range(position, position + len(segment)))
        return part

    for pool in pools:
        P, first = len(pool.head), len(blocks)
        heads.append(read(pool.head, 0, ()))
        blocks += [read(block, P, heads[-1].own) for block in pool.blocks]
        questions += [read(question.ids, *_behind(question, heads[-1], blocks[first:])) for question in pool.questions]
    ends_S = torch.tensor([part.end - 1 for part in (*blocks, *questions)])
    return Row(torch.tensor(ids), torch.tensor(positions), (heads, blocks, questions), ends_S)


def _behind(question: Question, head: Part, blocks: Sequence[Part]) -> tuple[int, list[int]]:
    """(position of a question's first token, the tokens that it sees)."""
    seen = [blocks[place] for place in question.sees]
    position = len(head.own) + max((len(part.own) for part in seen), default=0)
    return position, [*head.own, *(token for part in seen for token in part.own)]


def ends(network: Any, row: Row) -> Tensor:
    """(S, H) last hidden states at the ends of the row's blocks and questions."""
    out = _pass(network, row.ids_L, row.positions_L, sight(row.kinds), use_cache=False)
    return torch.as_tensor(out.last_hidden_state[0, row.ends_S.to(network.device)])


def _pass(network: Any, ids_L: Tensor, positions_L: Tensor, seen: Sight, **cache: Any) -> Any:
    device = network.device
    return network.base_model(
        input_ids=ids_L[None].to(device),
        attention_mask=without_mask(device),
        position_ids=positions_L[None].to(device),
        r1ranker_sight=seen.to(device),
        **cache,
    )


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

    A judge: (n,), the logit of "yes" less that of "no" at the end of each of n blocks, or of their questions; a pool
    longer than `max_tokens` is read in parts, each behind the head. An identifier: (questions, n), the logits of all
    labels at the end of each question.
    """
    parts = [(i, places, part) for i, pool in enumerate(pools) for places, part in separate(pool, max_tokens)]
    hidden: list[list[Tensor]] = [[] for _ in pools]
    read: list[list[int]] = [[] for _ in pools]
    for group in _groups([part.tokens for _, _, part in parts], max_tokens):
        row = packed([parts[j][2] for j in group])
        hidden_S_H = ends(network, row)
        of_part = [-1 if parts[j][2].questions else j for j in group for _ in parts[j][2].blocks]
        of_part += [j for j in group for _ in parts[j][2].questions]
        for j in group:
            i, places, _ = parts[j]
            hidden[i].append(hidden_S_H[[s for s, part in enumerate(of_part) if part == j]])
            read[i] += places
    return [
        _said(network, pool, torch.cat(of_pool), places, yes_no)
        for pool, of_pool, places in zip(pools, hidden, read, strict=True)
    ]


def _said(
    network: Any, pool: Blocks, hidden_S_H: Tensor, places: list[int], yes_no: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    if not pool.judged:
        return token_logits(network, hidden_S_H, pool.labels), hidden_S_H
    hidden_S_H = by_place(hidden_S_H, places)
    return by_judge(network, hidden_S_H, yes_no), hidden_S_H


def by_place(hidden_S_H: Tensor, places: Sequence[int]) -> Tensor:
    """What was read in the order of `places`, which are all of a pool's (see `separate`), in the pool's own."""
    return hidden_S_H[torch.tensor(places).argsort()]


def by_judge(network: Any, hidden_S_H: Tensor, yes_no: tuple[int, int]) -> Tensor:
    """(S,) the logit of "yes" less that of "no"."""
    logits_S_2 = token_logits(network, hidden_S_H, yes_no)
    return logits_S_2[:, 0] - logits_S_2[:, 1]


class Known:
    """A pool whose head and blocks are read once, for one question after the other.

    cache: their keys and values, where they are known from elsewhere.
    """

    def __init__(self, network: Any, pool: Blocks, cache: DynamicCache | None = None) -> None:
        self._network, self._pool, self._cache = network, pool, cache

    @torch.inference_mode()
    def ask(self, left: Sequence[int]) -> tuple[Tensor, int]:
        """(logits of the labels of the blocks at these places, tokens read)."""
        pool = replace(self._pool, questions=(replace(self._pool.questions[0], sees=tuple(left)),))
        read = 0
        if self._cache is None:
            self._cache, read = read_cached(self._network, pool)
        hidden_1_H = ask_behind(self._network, pool, self._cache)
        logits = token_logits(self._network, hidden_1_H, [pool.labels[place] for place in left])
        return logits[0], read + len(pool.questions[0].ids)


@torch.inference_mode()
def read_cached(network: Any, pool: Blocks) -> tuple[DynamicCache, int]:
    """(keys and values of the pool's head and blocks in the order of `packed`, tokens read)."""
    row = packed([replace(pool, questions=())])
    cache = DynamicCache(config=network.config)
    _pass(network, row.ids_L, row.positions_L, sight(row.kinds), past_key_values=cache, use_cache=True)
    return cache, len(row.ids_L)


@torch.inference_mode()
def ask_behind(network: Any, pool: Blocks, cache: DynamicCache) -> Tensor:
    """(questions, H) last hidden states at the ends of the questions; the cache has the rest, and stays as it is."""
    row = packed([pool])
    begin = cache.get_seq_length()
    seen = sight(row.kinds[2:], begin)
    out = _pass(network, row.ids_L[begin:], row.positions_L[begin:], seen, past_key_values=cache, use_cache=True)
    cache.crop(begin - len(row.ids_L))
    ends_S = row.ends_S[len(pool.blocks) :] - begin
    return torch.as_tensor(out.last_hidden_state[0, ends_S.to(network.device)])


def read_tokens(pools: Sequence[Blocks], max_tokens: int) -> list[int]:
    """Tokens that `read_all` reads for each pool: the head counts once for every part."""
    return [sum(part.tokens for _, part in separate(pool, max_tokens)) for pool in pools]


def separate(pool: Blocks, max_tokens: int) -> Iterator[tuple[list[int], Blocks]]:
    """The places of some blocks, and the pool of these, of at most `max_tokens` (at least one block).

    A judge's blocks go by what they say: in bfloat16 a pass rounds by what stands where in a row, and so the order in
    which candidates come changes nothing. Whole, as it is, where questions see all of it.
    """
    if not pool.judged:
        yield list(range(len(pool.blocks))), pool
        return
    order = sorted(range(len(pool.blocks)), key=pool.blocks.__getitem__)
    asked = [len(question.ids) for question in pool.questions] or [0] * len(pool.blocks)
    for group in _groups([len(pool.blocks[n]) + asked[n] for n in order], max_tokens - len(pool.head)):
        places = [order[n] for n in group]
        yield places, pool.part(places)


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
