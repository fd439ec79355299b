"""Model directories made of other things: a GGUF file, or a base and an adapter. Next in the data flow: `loading`.

Weights are kept in float16. Of SmolLM2's 4-bit weights it keeps three quarters as they are and the rest to 11 bits:
the network's predictions differ by 1e-6 nats from those of float32, with bfloat16 by 5e-5 at the same size.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from r1ranker.backends.models import WAY
from r1ranker.errors import BackendError
from r1ranker.io.documents import read_json

WEIGHTS = "model.safetensors"
PLAIN_LORA = {
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""What an adapter's settings may say beside rank and scale: what `add_adapter` does is W + (alpha / r) B A, no more."""


def check_gguf() -> None:
    """Raises BackendError that names the extra where the package that reads GGUF is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise BackendError("reading GGUF files needs gguf: pip install 'r1-ranker[gguf]'")


def dequantize(path: Path, out: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as an ordinary transformers directory."""
    check_gguf()
    settings: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # without it weights stay packed; older releases always unpack
        settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
    transformers_logging.disable_progress_bar()
    # The bar of unpacking has no switch; it is for a terminal.
    shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            network = AutoModelForCausalLM.from_pretrained(path.parent, **settings)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BackendError(f"cannot read the GGUF file {path}: {reason}") from error
    network.hf_quantizer, network.is_quantized = None, False
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    narrow = all(_fits(value) for value in network.state_dict().values())
    (network.half() if narrow else network).save_pretrained(out)
    tokenizer.save_pretrained(out)


def add_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Write `base` with a LoRA adapter of peft's layout added into its weights: W + (alpha / r) B A."""
    settings = read_json(adapter / "adapter_config.json")
    for key, plain in PLAIN_LORA.items():
        if settings.get(key, plain) not in (plain, None):
            raise BackendError(f"the adapter {adapter} has {key}={settings[key]!r}, which adds no plain B A")
    try:
        weights, added = load_file(base / WEIGHTS), load_file(adapter / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise BackendError(f"cannot read the weights of {base} or {adapter}: {error}") from error
    scale = settings["lora_alpha"] / settings["r"]
    for name, up in _pairs(added, adapter):
        weight = f"{name.removeprefix('base_model.model.')}.weight"
        if weight not in weights:
            raise BackendError(f"the adapter {adapter} changes {weight}, which {base} does not have")
        delta = scale * up.float() @ added[f"{name}.lora_A.weight"].float()
        weights[weight] = weights[weight].float() + delta
    shutil.copytree(base, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS))
    if (adapter / WAY).is_file():
        shutil.copy(adapter / WAY, out)
    narrow = all(_fits(value) for value in weights.values())
    kept = {name: value.half() if narrow else value.float() for name, value in weights.items()}
    save_file(kept, out / WEIGHTS, metadata={"format": "pt"})


def _pairs(added: dict[str, Tensor], adapter: Path) -> list[tuple[str, Tensor]]:
    """(name of the layer, its B) of an adapter's weights, which are nothing but pairs A and B."""
    ends = (".lora_A.weight", ".lora_B.weight")
    odd = [name for name in added if not name.endswith(ends)]
    if odd:
        raise BackendError(f"the adapter {adapter} holds {odd[0]}, which is no LoRA weight of a linear layer")
    ups = [(name.removesuffix(ends[1]), value) for name, value in added.items() if name.endswith(ends[1])]
    if not ups or 2 * len(ups) != len(added):
        raise BackendError(f"the adapter {adapter} does not hold an A for each B")
    return ups


def _fits(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.abs().max() < torch.finfo(torch.float16).max)
