"""Model directories made of others: a GGUF file, the first layers, a base and an adapter. Used by `models`.

Weights are kept in float16. Of SmolLM2's 4-bit weights it keeps three quarters as they are and the rest to 11 bits:
the network's predictions differ by 1e-6 nats from those of float32, with bfloat16 by 5e-5 at the same size.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from r1ranker.backends.way import save_way, way_of
from r1ranker.errors import BackendError
from r1ranker.io.documents import read_json
from r1ranker.io.files import replacing

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
PLAIN_LORA = {
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""What an adapter's settings may say beside rank and scale: what `add_adapter` does is W + (alpha / r) B A, no more."""
SCALE = 2
"""LoRA's alpha over its rank, as training has it."""
LAYERS = "layers"
"""What an adapter of the first layers of its base says beside how it is asked: how many these are."""


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


def write_first_layers(path: str, layers: int, out: Path, **reading: bool) -> None:
    """Write the first `layers` layers of a model as a whole model: its last norm and output stay behind them.

    path, reading: what transformers reads it from, and how. Raises BackendError where it has no more layers than that,
    and what transformers raises where it cannot be read.
    """
    told = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would list the layers that are left out
    transformers_logging.disable_progress_bar()
    try:
        shape = AutoConfig.from_pretrained(path, **reading)
        whole, shape.num_hidden_layers = shape.num_hidden_layers, layers
        if not 0 < layers < whole:
            raise BackendError(f"{path} has {whole} layers: give a number from 1 to one fewer")
        if getattr(shape, "layer_types", None):
            shape.layer_types = shape.layer_types[:layers]
        network = AutoModelForCausalLM.from_pretrained(path, config=shape, dtype="auto", **reading)
        tokenizer = AutoTokenizer.from_pretrained(path, **reading)
    finally:
        transformers_logging.set_verbosity(told)
    with replacing(out) as fresh:
        network.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        save_way(fresh, way_of(path))


def add_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Write `base` with a LoRA adapter of peft's layout added into its weights: W + (alpha / r) B A.

    An adapter that says so is one of the first layers of its base, and the others are left out.
    """
    way = way_of(str(adapter))
    if layers := way.pop(LAYERS, None):
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            write_first_layers(str(base), int(layers), Path(scratch) / "cut")
            _add(Path(scratch) / "cut", adapter, out)
    else:
        _add(base, adapter, out)
    save_way(out, way)


def _add(base: Path, adapter: Path, out: Path) -> None:
    scale, added = _plain(adapter)
    weights = _read(base / WEIGHTS)
    for name, up in _pairs(added, adapter):
        weight = f"{name.removeprefix('base_model.model.')}.weight"
        if weight not in weights:
            raise BackendError(f"the adapter {adapter} changes {weight}, which {base} does not have")
        delta = scale * up.float() @ added[f"{name}.lora_A.weight"].float()
        weights[weight] = weights[weight].float() + delta
    shutil.copytree(base, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS))
    narrow = all(_fits(value) for value in weights.values())
    kept = {name: value.half() if narrow else value.float() for name, value in weights.items()}
    save_file(kept, out / WEIGHTS, metadata={"format": "pt"})


def join_adapters(adapters: Sequence[Path], rank: int, out: Path, layers: int | None = None) -> float:
    """Write adapters that were trained one on top of the other as one: of each layer, the nearest sum of rank `rank`.

    layers: the model is only the first `layers` of its base (`write_first_layers`), which the adapter then says; what
        the adapters have for higher ones is left out. Where one of them says so already, that holds.

    Returns the share of the sum's squares that it keeps, 0 to 1. How a model is asked is what the last one says.
    Raises BackendError where an adapter is no plain LoRA.
    """
    ways = [way_of(str(adapter)) for adapter in adapters]
    if layers is None:
        layers = min((int(way[LAYERS]) for way in ways if LAYERS in way), default=None)
    factors: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for adapter in adapters:
        scale, added = _plain(adapter)
        for name, up in _pairs(added, adapter):
            if layers is not None and _layer(name) >= layers:
                continue
            factors.setdefault(name, []).append((scale * up.float(), added[f"{name}.lora_A.weight"].float()))
    state, kept, whole = dict[str, Tensor](), 0.0, 0.0
    for name, pairs in factors.items():
        if len({(up.shape[0], down.shape[1]) for up, down in pairs}) > 1:
            raise BackendError(
                f"{name} has another shape in each of {', '.join(map(str, adapters))}: of one model each?"
            )
        (q, r), (p, t) = (torch.linalg.qr(torch.cat(side, 1)) for side in _sides(pairs))
        left, values, right = torch.linalg.svd(r @ t.T)
        root = (values[:rank] / SCALE) ** 0.5
        missing = rank - len(root)  # of a sum that has a lower rank
        down, up = root[:, None] * (right[:rank] @ p.T), q @ left[:, :rank] * root
        state[f"{name}.lora_A.weight"] = pad(down, (0, 0, 0, missing)).bfloat16().contiguous()
        state[f"{name}.lora_B.weight"] = pad(up, (0, missing)).bfloat16().contiguous()
        kept, whole = kept + float((values[:rank] ** 2).sum()), whole + float((values**2).sum())
    settings = read_json(adapters[-1] / "adapter_config.json") | {"r": rank, "lora_alpha": SCALE * rank}
    with replacing(out) as fresh:
        fresh.mkdir()
        save_file(state, fresh / ADAPTER, metadata={"format": "pt"})
        (fresh / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_way(fresh, ways[-1] | ({LAYERS: str(layers)} if layers is not None else {}))
    return kept / whole if whole else 1.0


def _layer(name: str) -> int:
    """The number in the name of a layer's part, -1 where there is none."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _sides(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """The columns of all B, and those of all A transposed: their product is the sum of B A."""
    return [up for up, _ in pairs], [down.T for _, down in pairs]


def _plain(adapter: Path) -> tuple[float, dict[str, Tensor]]:
    """The scale of an adapter and its weights. Raises BackendError where it is more than W + (alpha / r) B A."""
    settings = read_json(adapter / "adapter_config.json")
    for key, plain in PLAIN_LORA.items():
        if settings.get(key, plain) not in (plain, None):
            raise BackendError(f"the adapter {adapter} has {key}={settings[key]!r}, which adds no plain B A")
    return settings["lora_alpha"] / settings["r"], _read(adapter / ADAPTER)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise BackendError(f"cannot read the weights {path}: {error}") from error


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
