"""Rows of token ids as one tensor. The same for ranking and training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def left_pad(rows: Sequence[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(input_ids, attention_mask), both (B, longest): every row ends at the last column."""
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    return input_ids.to(device), mask.to(device)


def positions(mask: Tensor) -> Tensor:
    """Position ids that start at 0 on the first real token of each row."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
