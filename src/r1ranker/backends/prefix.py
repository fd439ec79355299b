"""Keys and values that outlive a call, so that a prompt which only grew is not computed again.

In: the token ids of prompts whose text stays the same over an episode (layout `append`). Out: logits, and
how many tokens had to be computed for them. Next in the data flow: `transformers_`.

The cache is one batch of rows. All rows end at its last column; what a row does not see (padding, and
tokens it took back) are holes in `mask`, so any model whose layers attend to everything can use it.

Names carry their dimensions: B rows, L columns, S new tokens, N branchings behind them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from r1ranker.backends.encoding import TokenPath, batches
from r1ranker.backends.padding import left_pad, positions
from r1ranker.backends.sampling import Settings, Written, write

WASTE = 2.0
"""Columns are packed anew when there are this many times as many as the longest row needs."""
ROOM = 64
"""Columns that a layer has to spare when its buffers are made anew."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that writes into buffers with room, where the library's copies all it has for every token."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new columns; the keys and values of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        old, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        self.keys = self._grown("_all_keys", self.keys, end)
        self.values = self._grown("_all_values", self.values, end)
        self.keys[:, :, old:], self.values[:, :, old:] = key_states, value_states
        return self.keys, self.values

    def _grown(self, name: str, known: Tensor, end: int) -> Tensor:
        """A view of the first `end` columns of a buffer that begins with what is known."""
        buffer = getattr(self, name, None)
        if (
            buffer is None
            or known.data_ptr() != buffer.data_ptr()
            or buffer.shape[2] < end
            or len(buffer) != len(known)
        ):
            B, H, _, D = known.shape
            buffer = known.new_empty(B, H, end + max(ROOM, end // 4), D)
            buffer[:, :, : known.shape[2]] = known
            setattr(self, name, buffer)
        return buffer[:, :, :end]


def empty_cache(network: Any) -> Cache:
    """A cache for all layers of the network."""
    return Cache(layers=[RoomyLayer() for _ in DynamicCache(config=network.config).layers])


def can_reuse(network: Any) -> bool:
    """Whether every layer of the network attends to all that came before: no window, no recurrent state."""
    layers = DynamicCache(config=network.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


class _Read(Exception):
    """The last layer's keys and values are known."""


class _Reading(Cache):  # type: ignore[misc]
    """Ends a pass at the last layer's keys and values: of a prompt, what that layer makes of them nobody asks for."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        known = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == len(self.layers) - 1:
            raise _Read
        return known


def keys_and_values(network: Any, ids_B_L: Tensor, mask_B_L: Tensor, layer: type[DynamicLayer] = RoomyLayer) -> Cache:
    """The keys and values of rows padded on the left. Gradients flow back through plain layers only."""
    kind = Cache if hasattr(network, "unshard") else _Reading  # FSDP has to see a pass end
    cache = kind(layers=[layer() for _ in DynamicCache(config=network.config).layers])
    with suppress(_Read):
        network(
            input_ids=ids_B_L,
            attention_mask=mask_B_L,
            position_ids=positions(mask_B_L),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return Cache(layers=cache.layers)


@torch.inference_mode()
def read_rows(network: Any, rows: Sequence[list[int]], pad_id: int, max_tokens: int) -> tuple[Cache, Tensor]:
    """(keys and values of rows, mask (B, L) of what is no padding). Rows that are equal are computed once."""
    distinct = [list(row) for row in dict.fromkeys(map(tuple, rows))]
    order, parts = [], []
    for group in batches([len(row) for row in distinct], max_tokens):
        ids, mask = left_pad([distinct[i] for i in group], pad_id, network.device)
        parts.append((keys_and_values(network, ids, mask), mask))
        order += group
    L = parts[-1][1].shape[1]  # the longest come last
    place = {tuple(distinct[i]): n for n, i in enumerate(order)}
    index = torch.tensor([place[tuple(row)] for row in rows], device=network.device)
    cache = empty_cache(network)
    for layer, *of_parts in zip(cache.layers, *(part.layers for part, _ in parts), strict=True):
        keys, values = (
            torch.cat([_pad_columns(getattr(part, name), L) for part in of_parts])[index] for name in ("keys", "values")
        )
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
    return cache, torch.cat([_pad_left(mask, L) for _, mask in parts])[index]


@dataclass(frozen=True, slots=True)
class Row:
    """One episode: `key` finds what is known of it, `ids` is the whole prompt, `branches` are continuations
    (paths of tokens, every beginning of a path among them) whose next token is asked for as well."""

    key: str
    ids: list[int]
    branches: tuple[TokenPath, ...] = ()


class PrefixCache:
    """Rows that stay known from one call to the next; rows that a call does not name are forgotten."""

    def __init__(self, network: Any, pad_id: int, max_tokens: int) -> None:
        self.network, self.pad_id, self.max_tokens = network, pad_id, max_tokens
        self.forget()

    def forget(self) -> None:
        """Drop everything: after an update of the weights, what is known is no longer true."""
        self.keys: list[str] = []
        self.known: list[list[int]] = []
        self.cache = empty_cache(self.network)
        self.ids_B_L = torch.zeros((0, 0), dtype=torch.long)
        self.mask_B_L = torch.zeros((0, 0), dtype=torch.bool)

    @torch.inference_mode()
    def next_logits(self, rows: Sequence[Row]) -> tuple[Tensor, list[int]]:
        """(logits (B, 1 + N, V) after each prompt and each of its branches, tokens computed for each row)."""
        computed = self._prepare(rows)
        fresh = [row.ids[known:] for row, known in zip(rows, self._shared(rows), strict=True)]
        N = max(len(row.branches) for row in rows)
        ids_B_S, mask_B_S = self._padded(fresh)
        tree_B_N, mask_B_N, seen_B_N_N, depth_B_N = _tree([row.branches for row in rows], N, self.pad_id)
        start_B = self.mask_B_L.sum(-1, keepdim=True)
        positions_B_S = (start_B + mask_B_S.cumsum(-1) - 1).clamp(min=0)
        positions_B_N = start_B + mask_B_S.sum(-1, keepdim=True) + depth_B_N
        out = self.network(
            input_ids=self._there(torch.cat([ids_B_S, tree_B_N], 1)),
            position_ids=self._there(torch.cat([positions_B_S, positions_B_N], 1)),
            attention_mask=self._there(self._attention(mask_B_S, mask_B_N, seen_B_N_N)),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=N + 1,
        )
        if N:
            self.cache.crop(-N)
        self._append(ids_B_S, mask_B_S)
        return out.logits.float(), [
            c + len(f) + len(row.branches) for c, f, row in zip(computed, fresh, rows, strict=True)
        ]

    @torch.inference_mode()
    def write(self, rows: Sequence[Row], settings: Settings) -> tuple[list[Written], list[int]]:
        """(what is written after each prompt, tokens computed for each prompt)."""
        computed = self._prepare(rows)
        fresh = [row.ids[known:] for row, known in zip(rows, self._shared(rows), strict=True)]
        ids_B_S, mask_B_S = self._padded(fresh)
        mask_B_L = torch.cat([self.mask_B_L, mask_B_S], 1)
        written = write(self.network, self.cache, self._there(ids_B_S), self._there(mask_B_L), settings, leave=False)
        self._append(ids_B_S, mask_B_S)
        rows_T = [torch.tensor(row.token_ids) for row in written]
        ids_B_T = pad_sequence(rows_T, batch_first=True, padding_value=self.pad_id)
        mask_B_T = pad_sequence([torch.ones_like(row_T, dtype=torch.bool) for row_T in rows_T], batch_first=True)
        read = self.cache.get_seq_length() - self.ids_B_L.shape[1]  # the last token was not
        self._append(ids_B_T[:, :read], mask_B_T[:, :read])
        return written, [c + len(f) for c, f in zip(computed, fresh, strict=True)]

    def _prepare(self, rows: Sequence[Row]) -> list[int]:
        """Bring the rows into the cache, in order, with all but the last token of the new ones computed."""
        known = {key: index for index, key in enumerate(self.keys)}
        kept = [index for row in rows if (index := known.pop(row.key, None)) is not None]
        places = {self.keys[index]: place for place, index in enumerate(kept)}
        new = [row for row in rows if places.setdefault(row.key, -1) < 0]
        if kept != list(range(len(self.keys))):
            self._select(kept)
        if not new:
            return [0] * len(rows)
        for group in batches([len(row.ids) for row in new], self.max_tokens):
            self._prefill([new[i] for i in group])
        order = {key: place for place, key in enumerate(self.keys)}
        wanted = [order[row.key] for row in rows]
        if wanted != list(range(len(rows))):
            self._select(wanted)
        fresh = {row.key for row in new}
        return [len(row.ids) - 1 if row.key in fresh else 0 for row in rows]

    def _prefill(self, rows: Sequence[Row]) -> None:
        """Compute new rows but for their last token, and put them below the known ones."""
        ids_B_S, mask_B_S = self._padded([row.ids[:-1] for row in rows])
        cache = keys_and_values(self.network, self._there(ids_B_S), self._there(mask_B_S.long()))
        L = max(self.mask_B_L.shape[1], mask_B_S.shape[1])
        if not self.keys:
            self.cache = cache
        else:
            for mine, theirs in zip(self.cache.layers, cache.layers, strict=True):
                mine.keys = torch.cat([_pad_columns(mine.keys, L), _pad_columns(theirs.keys, L)])
                mine.values = torch.cat([_pad_columns(mine.values, L), _pad_columns(theirs.values, L)])
        self.ids_B_L = torch.cat([_pad_left(self.ids_B_L, L), _pad_left(ids_B_S, L)])
        self.mask_B_L = torch.cat([_pad_left(self.mask_B_L, L), _pad_left(mask_B_S, L)])
        self.keys += [row.key for row in rows]
        self.known += [row.ids[:-1] for row in rows]

    def _select(self, indices: list[int]) -> None:
        if not indices:
            self.forget()
            return
        self.cache.batch_select_indices(torch.tensor(indices, device=self.network.device))
        self.ids_B_L, self.mask_B_L = self.ids_B_L[indices], self.mask_B_L[indices]
        self.keys = [self.keys[index] for index in indices]
        self.known = [self.known[index] for index in indices]
        self._pack()

    def _pack(self) -> None:
        """Close the holes when they have become most of the columns."""
        L = self.mask_B_L.shape[1]
        longest = int(self.mask_B_L.sum(-1).max())
        if longest * WASTE >= L:
            return
        # A stable sort moves what is seen to the end and keeps its order.
        columns_B_L = self.mask_B_L.int().argsort(dim=-1, stable=True)[:, L - longest :]
        self.ids_B_L = self.ids_B_L.gather(1, columns_B_L)
        self.mask_B_L = self.mask_B_L.gather(1, columns_B_L)
        index = self._there(columns_B_L)[:, None, :, None]
        for layer in self.cache.layers:
            layer.keys = layer.keys.take_along_dim(index, dim=2)
            layer.values = layer.values.take_along_dim(index, dim=2)

    def _shared(self, rows: Sequence[Row]) -> list[int]:
        """How much of each prompt is known; what was known beyond that is taken back.

        The last token of a prompt is always computed, since the logits after it are wanted.
        """
        self._pack()
        lengths = []
        for index, row in enumerate(rows):
            known, most = self.known[index], min(len(self.known[index]), len(row.ids) - 1)
            same = most
            if known[:most] != row.ids[:most]:
                same = next(i for i in range(most) if known[i] != row.ids[i])
            if same < len(known):
                columns = self.mask_B_L[index].nonzero().squeeze(-1)
                self.mask_B_L[index, columns[same:]] = False
                self.known[index] = known[:same]
            lengths.append(same)
        return lengths

    def _append(self, ids_B_S: Tensor, mask_B_S: Tensor) -> None:
        self.ids_B_L = torch.cat([self.ids_B_L, ids_B_S], 1)
        self.mask_B_L = torch.cat([self.mask_B_L, mask_B_S], 1)
        for known, ids, mask in zip(self.known, ids_B_S.tolist(), mask_B_S.tolist(), strict=True):
            known += [token for token, seen in zip(ids, mask, strict=True) if seen]

    def _attention(self, mask_B_S: Tensor, mask_B_N: Tensor, seen_B_N_N: Tensor) -> Tensor:
        """Additive mask (B, 1, S + N, L + S + N): new tokens see what came before, branches see their own path."""
        B, L = self.mask_B_L.shape
        S, N = mask_B_S.shape[1], mask_B_N.shape[1]
        seen = torch.zeros((B, S + N, L + S + N), dtype=torch.bool)
        seen[:, :, :L] = self.mask_B_L[:, None]
        seen[:, :S, L : L + S] = mask_B_S[:, None] & torch.ones((S, S), dtype=torch.bool).tril()
        seen[:, S:, L : L + S] = mask_B_S[:, None]
        seen[:, S:, L + S :] = seen_B_N_N
        dtype = self.network.dtype
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """(ids, mask), here and not on the device: what is known of rows is kept as they are compared."""
        ids, mask = left_pad(rows, self.pad_id, torch.device("cpu"))
        return ids, mask.bool()

    def _there(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.network.device)


def _tree(branches: Sequence[tuple[TokenPath, ...]], N: int, pad_id: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids, mask, who sees whom, depth) of branches read side by side behind their prompt."""
    B = len(branches)
    ids, depth = torch.full((B, N), pad_id, dtype=torch.long), torch.zeros((B, N), dtype=torch.long)
    mask, seen = torch.zeros((B, N), dtype=torch.bool), torch.zeros((B, N, N), dtype=torch.bool)
    for b, paths in enumerate(branches):
        place = {path: n for n, path in enumerate(paths)}
        for path, n in place.items():
            ids[b, n], depth[b, n], mask[b, n] = path[-1], len(path) - 1, True
            for end in range(1, len(path) + 1):
                seen[b, n, place[path[:end]]] = True
    return ids, mask, seen, depth


def _pad_left(tensor_B_L: Tensor, L: int) -> Tensor:
    return F.pad(tensor_B_L, (L - tensor_B_L.shape[1], 0))


def _pad_columns(tensor_B_H_L_D: Tensor, L: int) -> Tensor:
    return F.pad(tensor_B_H_L_D, (0, 0, L - tensor_B_H_L_D.shape[2], 0))
