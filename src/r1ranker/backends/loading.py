"""Loading a causal language model by hub name or directory, with errors that say what to do."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from r1ranker.errors import BackendError

transformers_logging.disable_progress_bar()  # a bar for each load and save would drown those of the work itself

NANO = "nano"
SMALL_MODEL = 20_000_000
"""Below this many parameters a second CPU thread costs more than it gives; see docs/performance.md."""


def resolve(model: str) -> str:
    """The directory of the embedded model for `nano`, else the name as given."""
    return str(files("r1ranker") / "nano") if model == NANO else model


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is a GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError(f"device {device!r} asked for, but torch sees no GPU; use device=cpu or auto")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["auto", "cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise BackendError(f"there is no device {device!r} here; there are {', '.join(there)}") from error
    return found


def load(model: str, device: str = "auto", dtype: str = "auto", threads: int | None = None) -> tuple[Any, Any]:
    """(model, tokenizer), the model in eval mode on `device`; float32 on CPU, bfloat16 on a GPU by default."""
    where = pick_device(device)
    torch_dtype = pick_dtype(dtype, where)
    path = resolve(model)
    _check_directory(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        network = AutoModelForCausalLM.from_pretrained(path, dtype=torch_dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BackendError(_remedy(path, error)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.to(where).eval()
    set_threads(network, where, threads)
    return network, tokenizer


def set_threads(network: Any, device: torch.device, threads: int | None = None) -> None:
    """`threads` where given; else one CPU thread for a small model: its matrices are too small to share out."""
    if threads:
        torch.set_num_threads(threads)
    elif device.type == "cpu" and sum(p.numel() for p in network.parameters()) < SMALL_MODEL:
        torch.set_num_threads(1)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU, bfloat16 on a GPU."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise BackendError(f"dtype {dtype!r} is not a torch dtype; use auto, float32, bfloat16 or float16")
    return found


def _check_directory(path: str) -> None:
    directory = Path(path)
    if not directory.exists():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise BackendError(f"no model directory at {path}; check the path, or give a hub name such as org/model")
        return
    if not (directory / "config.json").is_file():
        raise BackendError(f"{path} holds no config.json, so it is not a model directory (save_pretrained writes one)")
    if not any(directory.glob("*.safetensors")) and not any(directory.glob("*.bin")):
        raise BackendError(f"{path} holds no weights (*.safetensors); copy them there or train the model first")


def _remedy(path: str, error: Exception) -> str:
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    if Path(path).exists():
        return f"cannot load the model in {path}: {first_line}"
    return (
        f"cannot load {path!r}: it is no directory here and the hub did not give it ({first_line}). "
        "With a network, check the name and your access (huggingface-cli login); without one, download the model "
        "elsewhere and pass its directory, or use the embedded model: --model nano"
    )
