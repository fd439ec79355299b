"""A model in parts over the processes, for one that no device can train whole. By torch's FSDP2 (Zhao 2023).

    shard(network, torch.bfloat16)     # from here on all processes have to make each pass together
    with whole(network): ...           # except in here, where each has all weights, and passes at its own pace

Weights, gradients and moments are in parts; passes gather one layer at a time. In and out: a network of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer


def shard(network: Any, dtype: torch.dtype) -> None:
    """Leave this process with its part of each weight. Passes are in `dtype`, gradients are summed in float32."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(network.device.type, (distributed.get_world_size(),))
    passes = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in (*layers, network):
        fully_shard(module, mesh=mesh, mp_policy=passes)
        module.set_gradient_divide_factor(1.0)  # the sum over processes: `update` divides by tokens
        module.set_force_sum_reduction_for_comms(True)


@contextmanager
def whole(*networks: Any) -> Iterator[None]:
    """In here each process holds all weights, in the dtype of the passes, and no pass waits for another process."""
    sharded = [network for network in networks if hasattr(network, "unshard")]
    parts = [module for network in sharded for module in network.modules() if hasattr(module, "unshard")]
    for network in sharded:
        network.set_reshard_after_forward(False)
    for module in parts:
        module.unshard()
    try:
        yield
    finally:
        for module in parts:
            module.reshard()
        for network in sharded:
            network.set_reshard_after_forward(True)
            network.set_reshard_after_forward(False, recurse=False)  # as FSDP2 does: the backward pass begins with it


def gathered(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose tensors are whole, on every process; all have to call this, in sharded state."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def parted(state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """This process's part of a whole state, in parts where `like` is."""
    return {name: part_of_tensor(value, like[name]) for name, value in state.items()}


def part_of_tensor(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor of the shape of `like`, if that is in parts."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Scale all gradients down to the norm `most`, of those in parts and those that each process holds whole.

    The norm that they had.
    """
    learning = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in learning if isinstance(p, DTensor) is in_parts] for in_parts in (True, False)]
    norms = [nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds if kind]
    total = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, most, total)
    return float(total)
