"""Attention of parts against attention with a mask over the whole row."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from r1ranker.backends.attention import Part, attend, sight, without_mask


def parts(rng: random.Random) -> tuple[list[Part], list[Part]]:
    """Two pools: a head each, blocks that see it, and a question that sees the head and some blocks."""
    alone: list[Part] = []
    behind: list[Part] = []
    at = 0
    for _ in range(2):
        alone.append(Part(at, at := at + rng.randint(1, 4)))
        blocks = []
        for _ in range(rng.randint(1, 4)):
            blocks.append(Part(at, at := at + rng.randint(1, 6), alone[-1].own))
        seen = rng.sample(blocks, rng.randint(1, len(blocks)))
        before = [*alone[-1].own, *(token for block in seen for token in block.own)]
        behind += [*blocks, Part(at, at := at + 2, before)]
    return alone, behind


def dense(q: Tensor, k: Tensor, v: Tensor, kinds: tuple[list[Part], ...]) -> Tensor:
    seen = torch.zeros((q.shape[2], q.shape[2]), dtype=torch.bool)
    for part in (part for kind in kinds for part in kind):
        for token in part.own:
            seen[token, [*part.before, *range(part.begin, token + 1)]] = True
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3, enable_gqa=True)
    return out.transpose(1, 2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("heads", [2, 6])
def test_parts_attend_as_under_a_mask_and_so_do_gradients(seed: int, heads: int) -> None:
    kinds = parts(random.Random(seed))
    L = max(part.end for kind in kinds for part in kind)
    torch.manual_seed(seed)
    q = torch.randn(1, heads, L, 4, dtype=torch.double, requires_grad=True)
    k, v = (torch.randn(1, 2, L, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    expected = dense(q, k, v, kinds)
    out, _ = attend(SimpleNamespace(), q, k, v, None, scaling=0.3, r1ranker_sight=sight(kinds))
    with torch.no_grad():  # another way of computing it
        read, _ = attend(SimpleNamespace(), q, k, v, None, scaling=0.3, r1ranker_sight=sight(kinds))
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(read, expected)
    towards = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((x * towards).sum(), (q, k, v)) for x in (out, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_what_is_in_the_cache_is_seen_and_not_read_again() -> None:
    blocks = [Part(0, 3), Part(3, 5)]
    question = Part(5, 8, [0, 1, 2, 3, 4])
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    whole, _ = attend(SimpleNamespace(), q, k, v, None, scaling=0.5, r1ranker_sight=sight([blocks, [question]]))
    later, _ = attend(SimpleNamespace(), q[:, :, 5:], k, v, None, scaling=0.5, r1ranker_sight=sight([[question]], 5))
    torch.testing.assert_close(later, whole[:, 5:])


def test_a_network_that_does_not_hand_on_who_sees_whom_fails() -> None:
    q = k = v = torch.randn(1, 2, 8, 4)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=1)
    with pytest.raises(RuntimeError):
        attend(module, q, k, v, without_mask(torch.device("cpu")), scaling=0.5)
