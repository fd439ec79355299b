"""What lets a large model be trained on one device: LoRA, passes in bfloat16, recomputation.

In and out: a network of transformers. Adapters sit inside its linear layers, and what is saved is an ordinary model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from r1ranker.backends.way import save_way
from r1ranker.backends.weights import SCALE
from r1ranker.errors import ConfigError
from r1ranker.io.extras import library
from r1ranker.io.files import replacing
from r1ranker.training.sharding import gathered


def add_lora(network: Any, rank: int, dtype: torch.dtype = torch.float32) -> None:
    """Adapters of `rank` on all linear layers but the output; only they are trained (Hu et al. 2022).

    They are in float32, and what stays as it was in `dtype`: so the states between the layers are, too.
    """
    peft = library("peft", "lora")
    settings = peft.LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    peft.inject_adapter_in_model(settings, network)
    for parameter in network.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    for name, layer in network.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        if not isinstance(layer.base_layer, nn.Linear | Conv1D):
            raise ConfigError(
                f"ppo.lora adapts linear layers alone, and {name} is a {type(layer.base_layer).__name__}, as in a "
                "mixture of experts: train all weights (ppo.lora=null)"
            )
        layer.forward = partial(_adapted_linear, layer)


def _adapted_linear(layer: Any, x: Tensor) -> Tensor:
    """W x + (alpha / r) B A x in the dtype of the pass: what peft's own layer says, in fewer and narrower steps.

    That one takes the input to float32 and back, and scales and adds in passes of their own: a fifth of the time of
    training on a CPU.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    y = layer.base_layer(x)
    if layer.disable_adapters:
        return torch.as_tensor(y)
    for name in layer.active_adapters:
        low = layer.lora_A[name](x).flatten(0, -2)
        y = torch.addmm(y.flatten(0, -2), low, layer.lora_B[name].weight.T, alpha=layer.scaling[name]).view_as(y)
    return torch.as_tensor(y)


@contextmanager
def without_lora(network: Any) -> Iterator[None]:
    """The network as it was before `add_lora`, which is what a reference is."""
    layers = _adapted(network)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def plain_state(network: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of an ordinary model in `dtype`, adapters added into them; the network stays as it is.

    All processes of a crew call this, and each has the whole.
    """
    state: dict[str, Tensor] = {
        name.replace(".base_layer", ""): value.to(dtype)
        for name, value in gathered(network.state_dict()).items()
        if ".lora_" not in name
    }
    names = {id(module): name for name, module in network.named_modules()}
    for layer in _adapted(network):
        name = f"{names[id(layer)]}.weight"
        whole = layer.base_layer.weight + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        state[name] = whole.detach().to(dtype)
    return state


def save_adapter(network: Any, directory: Path, way: Mapping[str, str]) -> None:
    """The adapters alone, in bfloat16 and in the layout of peft, and how the model is asked."""
    names = {id(module): name for name, module in network.named_modules()}
    state = {
        f"base_model.model.{names[id(layer)]}.{kind}.weight": getattr(layer, kind)[adapter].weight.detach().bfloat16()
        for layer in _adapted(network)
        for kind in ("lora_A", "lora_B")
        for adapter in layer.active_adapters
    }
    with replacing(directory) as fresh:
        fresh.mkdir()
        save_file(
            {name: value.cpu().contiguous() for name, value in state.items()}, fresh / "adapter_model.safetensors"
        )
        network.peft_config["default"].save_pretrained(fresh)
        save_way(fresh, way)


@contextmanager
def passes_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """In here a float32 network computes its forward passes in `dtype`."""
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


@contextmanager
def recomputing(network: Any) -> Iterator[None]:
    """Activations are computed again in the backward pass instead of kept: less memory, about a third more time.

    transformers has a switch for it that works in training mode only, which would switch dropout on too.
    """
    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def give_back_freed() -> None:
    """What was freed goes back to the system, where glibc allocates.

    Batches differ in length, so hardly a tensor of a step fits where one of the last step lay, and what the process
    holds would grow from step to step.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _adapted(network: Any) -> list[Any]:
    return [module for module in network.modules() if hasattr(module, "lora_A")]
