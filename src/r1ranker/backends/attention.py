"""Attention of rows whose parts see little of each other, as in layout `blocks`.

A mask over the whole row costs L * L, of which blocks use some percent. Here every part's queries meet only the keys
that they see, padded to the longest of their kind. In: `Part`s of a row. Out: an attention function under the name
`SPARSE`, which transformers calls in every layer. Used by `blocks`.

Names carry their dimensions: L tokens of a row, S parts of one kind, M tokens of the longest of them, K keys that it
sees, H heads (G times as many for queries), D their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SPARSE = "r1ranker_sparse"


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens `begin` to `end` of a row, each of which sees the tokens `before` and its own up to itself."""

    begin: int
    end: int
    before: Sequence[int] = ()

    @property
    def own(self) -> range:
        """Its tokens."""
        return range(self.begin, self.end)


@dataclass(frozen=True, slots=True)
class Kind:
    """Parts of one kind. own_SM and keys_SK: tokens of the row, 0 where padded. real_L: those of S * M that are any."""

    own_SM: Tensor
    keys_SK: Tensor
    seen_S_M_K: Tensor
    real_L: Tensor


@dataclass(frozen=True, slots=True)
class Sight:
    """Who sees whom in a row. order_L: where each token of it stands when the kinds are put one after the other."""

    kinds: tuple[Kind, ...]
    order_L: Tensor

    def to(self, device: torch.device) -> Sight:
        """The same on `device`."""
        kinds = (Kind(*(getattr(kind, name).to(device) for name in Kind.__slots__)) for kind in self.kinds)
        return replace(self, kinds=tuple(kinds), order_L=self.order_L.to(device))


def sight(kinds: Sequence[Sequence[Part]], first: int = 0) -> Sight:
    """Of parts by kind, which together hold each token of the row from `first` on once."""
    kinds = [parts for of_kind in kinds for parts in _alike(of_kind)]
    tokens = torch.tensor([token for parts in kinds for part in parts for token in part.own])
    return Sight(tuple(_kind(parts, first) for parts in kinds), tokens.argsort())


def _alike(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts of about one size together, since all are padded to the longest: whose logarithms to 2 round alike."""
    sizes: dict[tuple[int, int], list[Part]] = {}
    for part in parts:
        size = round(math.log2(len(part.own))), round(math.log2(len(part.before) + 1))
        sizes.setdefault(size, []).append(part)
    return list(sizes.values())


def _kind(parts: Sequence[Part], first: int) -> Kind:
    S, M, P = len(parts), max(len(part.own) for part in parts), max(len(part.before) for part in parts)
    own_S_M, before_S_P = torch.zeros((S, M), dtype=torch.long), torch.zeros((S, P), dtype=torch.long)
    seen_S_M_K = torch.zeros((S, M, P + M), dtype=torch.bool)
    seen_S_M_K[:, :, P:] = torch.ones((M, M), dtype=torch.bool).tril()
    for s, part in enumerate(parts):
        own_S_M[s, : len(part.own)] = torch.arange(part.begin, part.end)
        before_S_P[s, : len(part.before)] = torch.tensor(part.before, dtype=torch.long)
        seen_S_M_K[s, :, : len(part.before)] = True
    real = [s * M + m for s, part in enumerate(parts) for m in range(len(part.own))]
    keys_SK = torch.cat([before_S_P, own_S_M], 1).flatten()
    return Kind((own_S_M - first).clamp(min=0).flatten(), keys_SK, seen_S_M_K, torch.tensor(real))


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    r1ranker_sight: Sight | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers asks of an attention function; torch's own where no `Sight` is given.

    query (1, GH, L, D), key and value (1, H, L, D). Returns (1, L, GH, D).
    """
    if r1ranker_sight is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return out, None
    q_L_GH_D, k_L_H_D, v_L_H_D = (each[0].transpose(0, 1) for each in (query, key, value))
    # Written out it is quicker to go back through on a CPU; torch's own kernel is quicker forward, and on a GPU.
    inner = _written_out if query.requires_grad and query.device.type == "cpu" else _fused
    parts = []
    for kind in r1ranker_sight.kinds:
        S, M, K = kind.seen_S_M_K.shape
        q_S_M_GH_D = q_L_GH_D.index_select(0, kind.own_SM).unflatten(0, (S, M))
        k_S_K_H_D, v_S_K_H_D = (x.index_select(0, kind.keys_SK).unflatten(0, (S, K)) for x in (k_L_H_D, v_L_H_D))
        out_S_M_GH_D = inner(q_S_M_GH_D, k_S_K_H_D, v_S_K_H_D, kind.seen_S_M_K[:, None], scaling)
        parts.append(out_S_M_GH_D.flatten(0, 1).index_select(0, kind.real_L))
    return torch.cat(parts).index_select(0, r1ranker_sight.order_L)[None], None


def _fused(q: Tensor, k: Tensor, v: Tensor, seen_S_1_M_K: Tensor, scaling: float) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_S_1_M_K, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2)


def _written_out(q: Tensor, k: Tensor, v: Tensor, seen_S_1_M_K: Tensor, scaling: float) -> Tensor:
    S, M, GH, D = q.shape
    K, H = k.shape[1:3]
    G = GH // H
    q_SH_GM_D = (q * scaling).view(S, M, H, G, D).permute(0, 2, 3, 1, 4).reshape(S * H, G * M, D)
    k_SH_D_K = k.permute(0, 2, 3, 1).reshape(S * H, D, K)
    v_SH_K_D = v.permute(0, 2, 1, 3).reshape(S * H, K, D)
    scores_S_GH_M_K = torch.bmm(q_SH_GM_D, k_SH_D_K).view(S, GH, M, K)
    unseen = torch.zeros(seen_S_1_M_K.shape, dtype=q.dtype, device=q.device)
    unseen.masked_fill_(~seen_S_1_M_K, torch.finfo(q.dtype).min)
    weights = torch.softmax(scores_S_GH_M_K + unseen, -1, dtype=torch.float32).to(q.dtype)
    out_SH_GM_D = torch.bmm(weights.view(S * H, G * M, K), v_SH_K_D)
    return out_SH_GM_D.view(S, H, G, M, D).permute(0, 3, 1, 2, 4).reshape(S, M, GH, D)


def without_mask(device: torch.device) -> Tensor:
    """What stands in a mask's place where a `Sight` says who sees whom. An architecture that hands on the mask and not
    the sight cannot add it to any scores, and fails instead of letting all see all."""
    return torch.zeros((1, 1, 0, 0), device=device)


ALL_ATTENTION_FUNCTIONS.register(SPARSE, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(SPARSE, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
