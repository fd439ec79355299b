"""The critic: how much reward is still to come, judged before each written token."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from r1ranker.backends.padding import positions
from r1ranker.training.batch import Batch, PoolBatch


class Critic(nn.Module):
    """`separate`: a network of its own, begun as a copy of the policy's trunk, with a linear head (the paper's).

    `head`: a small head on the policy's last hidden states, through which no gradient flows back: it
    costs next to nothing. Both start at value 0.
    """

    def __init__(self, network: Any, kind: Literal["separate", "head"]) -> None:
        super().__init__()
        hidden = network.config.get_text_config().hidden_size
        self.trunk = copy.deepcopy(network.base_model) if kind == "separate" else None
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        inner = [] if kind == "separate" else [nn.Linear(hidden, hidden), nn.Tanh()]
        self.head = nn.Sequential(*inner, last).to(network.device)

    def forward(self, batch: Batch | PoolBatch, policy_hidden_B_T_H: Tensor) -> Tensor:
        """Values (B, T): what is expected before each written token."""
        if self.trunk is None or isinstance(batch, PoolBatch):  # which `RunConfig` lets have no trunk
            return self._values(policy_hidden_B_T_H.detach())
        T = batch.tokens_B_T.shape[1]
        out = self.trunk(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=positions(batch.attention_mask),
            use_cache=False,
        )
        return self._values(out.last_hidden_state[:, -T - 1 : -1])

    def _values(self, hidden_B_T_H: Tensor) -> Tensor:
        return torch.as_tensor(self.head(hidden_B_T_H.float()).squeeze(-1))


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that knows only the mean."""
    spread = float(returns.var(unbiased=False))
    return 1.0 - float((returns - values).var(unbiased=False)) / spread if spread > 1e-12 else 0.0
