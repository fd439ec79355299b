"""What a network can be trusted with, found out by asking it. In: a network. Out: yes or no.

Padding and keys that are kept change nothing for most networks. They do where a recurrent state runs over the padding,
where positions are counted by columns (ALiBi), or where a layer has a window of its own making: the answers would then
depend on who else is in the batch. A few passes over a dozen tokens tell. Next in the data flow: `transformers_`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from r1ranker.backends.padding import left_pad, positions
from r1ranker.backends.prefix import PrefixCache, Row, can_reuse

LONG, SHORT = 14, 5
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far logits of the same tokens may lie apart, relative to their spread; in float32 it is some 1e-7."""
COARSE = 0.1
"""The same in 16 bits."""


def takes_padding(network: Any) -> bool:
    """Whether a row says the same beside a longer one as alone."""
    long, short = _rows(network)

    def said() -> list[Tensor]:
        ids, mask = left_pad([long, short], 0, network.device)
        out = network(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), logits_to_keep=1, use_cache=False
        )
        return list(out.logits[:, -1])

    return _same(network, said, [long, short])


def keeps_prefixes(network: Any) -> bool:
    """Whether it says the same with keys and values of earlier calls, behind holes and beside branches."""
    if not can_reuse(network) or "position_ids" not in inspect.signature(network.forward).parameters:
        return False
    long, short = _rows(network)
    branch, other = long[-1:], short[-1:]

    def said() -> list[Tensor]:
        cache = PrefixCache(network, 0, len(long) * 4)
        # What the first call ends with is taken back in the second: a hole.
        cache.next_logits([Row("long", [*long[:-4], *short[:2]]), Row("short", short[:-2])])
        logits, _ = cache.next_logits([Row("long", long, ((branch[0],),)), Row("short", short, ((other[0],),))])
        return [*logits[:, 0], *logits[:, 1]]

    return _same(network, said, [long, short, long + branch, short + other])


def _rows(network: Any) -> tuple[list[int], list[int]]:
    """Two rows of tokens from all over the vocabulary."""
    V = network.get_input_embeddings().weight.shape[0]
    ids = [(i + 1) * V // (LONG + SHORT + 2) for i in range(LONG + SHORT)]
    return ids[:LONG], ids[LONG:]


@torch.inference_mode()
def _same(network: Any, said: Callable[[], list[Tensor]], rows: list[list[int]]) -> bool:
    try:
        alone = [network(input_ids=torch.tensor([row], device=network.device)).logits[0, -1].float() for row in rows]
        pairs = list(zip((logits.float() for logits in said()), alone, strict=True))
    except Exception:  # whatever it cannot do, in whatever way it says so
        return False
    most = CLOSE.get(network.dtype, COARSE)
    return all(float((one - other).norm()) <= most * float((other - other.mean()).norm()) for one, other in pairs)
