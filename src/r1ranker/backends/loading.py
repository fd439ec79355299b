"""Loading a causal language model by hub name or directory, with errors that say what to do."""

from __future__ import annotations

import difflib
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from r1ranker.backends import models
from r1ranker.backends.models import HUB_SECONDS, no_answer, resolve
from r1ranker.backends.weights import write_first_layers
from r1ranker.errors import BackendError, NotFiniteError
from r1ranker.io.config import Dtype

transformers_logging.disable_progress_bar()  # a bar for each load and save would drown those of the work itself

SMALL_MODEL = 20_000_000
"""Below this many parameters a second CPU thread costs more than it gives; see docs/performance.md."""
WORTH_IT = 1.3
"""How many times as fast as float32 a processor multiplies in bfloat16 where `auto` takes it."""
PROBE_SECONDS = 0.15

BESIDE = re.compile(r"(inv_freq|attn\.bias|masked_bias|position_ids)$|^v_head\.|^score\.")
"""Tensors that older releases and trainers save with a network and that no pass of it needs."""


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
    """(model, tokenizer), the model in eval mode on `device`, its weights in what `pick_dtype` says."""
    where = pick_device(device)
    measured = dtype == "auto" and where.type == "cpu"  # which needs to know how large the model is
    torch_dtype = "auto" if measured else pick_dtype(dtype, where)
    path, here = _source(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **here)
        network, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch_dtype, output_loading_info=True, **here
        )
    except Exception as error:  # a damaged file is a plain Exception in tokenizers, a TypeError in a configuration
        raise BackendError(_remedy(path, error)) from error
    check_cover(path, report)
    _check_vocabulary(path, network, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.to(where).eval()
    set_threads(network, where, threads)
    if measured:
        cast(network, pick_dtype(dtype, where, network))
    check_finite(network.state_dict(), f"the weights of {path} in {str(network.dtype).removeprefix('torch.')}")
    return network, tokenizer


def first_layers(model: str, layers: int, out: Path) -> None:
    """`weights.write_first_layers` of a model by hub name or directory. Raises BackendError where it cannot be read."""
    path, here = _source(model)
    try:
        write_first_layers(path, layers, out, **here)
    except BackendError:
        raise
    except Exception as error:  # as in `load`
        raise BackendError(_remedy(path, error)) from error


def _source(model: str) -> tuple[str, dict[str, bool]]:
    """(where a model is read from, what keeps transformers from asking a hub that does not answer)."""
    path = resolve(model)
    _check_directory(path)
    return path, {"local_files_only": True} if _hub_is_silent(path) else {}


def _hub_is_silent(path: str) -> bool:
    """Whether only what was downloaded before can be had. One try: the library would make six of each file, aloud."""
    if Path(path).exists():
        return False
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi().model_info(path, timeout=HUB_SECONDS)
    except (HfHubHTTPError, OfflineModeIsEnabled, ValueError):  # an answer, or one that the library gives at once
        return False
    except (OSError, no_answer()):
        return True
    return False


def check_cover(path: str, report: Mapping[str, Any]) -> None:
    """Raises BackendError where weights leave parts of the network out, or hold parts that it does not have.

    report: of transformers' `output_loading_info`, which knows weights that are tied or may be absent.
    """
    missing = sorted(report["missing_keys"])
    unexpected = sorted(key for key in report["unexpected_keys"] if not BESIDE.search(key))
    if not missing and not unexpected:
        return
    found = [
        f"{len(keys)} {what}, such as {keys[0]}"
        for keys, what in ((missing, "are missing"), (unexpected, "belong to no part of the network"))
        if keys
    ]
    raise BackendError(
        f"the weights in {path} do not cover the network that its config.json describes: {'; '.join(found)}. "
        "What is missing would be drawn at random. Save the model anew by save_pretrained, not wrapped by a trainer "
        "(names such as module.*), or copy the directory again with the config.json that belongs to the weights"
    )


def check_finite(state: Mapping[str, Any], what: str) -> None:
    """Raises NotFiniteError where a tensor holds NaN or infinity. One reading of each, and one answer from a device."""
    floats = {
        k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.is_floating_point() and v.itemsize > 1
    }
    with torch.no_grad():
        sums = [value.sum(dtype=torch.float32) for value in floats.values()]
        if not sums or bool(torch.stack([each.cpu() for each in sums]).isfinite().all()):
            return
        bad = [name for name, value in floats.items() if not bool(value.isfinite().all())]
    if bad:
        raise NotFiniteError(
            f"{what} are not finite: {len(bad)} of {len(floats)} tensors hold NaN or infinity, such as {bad[0]}. "
            "Such a model says nothing: take an earlier checkpoint, copy the files again, or load it in a wider dtype"
        )


def end_ids(tokenizer: Any, config: Any = None, generation: Any = None) -> list[int]:
    """The tokens that end a completion: the tokenizer's, and those of a model's own generation_config.json.

    Only where neither names one, that of config.json: what is not written there has a default of its class.
    """
    written = None if getattr(generation, "_from_model_config", False) else generation
    ends = _ids(tokenizer.eos_token_id) | _ids(getattr(written, "eos_token_id", None))
    return sorted(ends or _ids(getattr(config, "eos_token_id", None)))


def _ids(ends: int | Sequence[int] | None) -> set[int]:
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def set_threads(network: Any, device: torch.device, threads: int | None = None) -> None:
    """`threads` where given; else one CPU thread for a small model: its matrices are too small to share out."""
    _alone_after_fork()
    if threads:
        torch.set_num_threads(threads)
    elif device.type == "cpu" and is_small(network):
        if torch.get_num_threads() > 1:
            _lowered[:] = [torch.get_num_threads()]
        torch.set_num_threads(1)
    elif _lowered:
        torch.set_num_threads(_lowered[0])
        _lowered.clear()


_lowered: list[int] = []
"""Threads as they were before a small model was loaded, for a larger one that is loaded after it."""


@cache
def _alone_after_fork() -> None:
    """The child of a fork has none of the threads that OpenMP made, and would wait for them for ever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)
    _lowered.clear()


def is_small(network: Any) -> bool:
    """Whether its matrices are too small for what pays with large ones."""
    return bool(sum(p.numel() for p in network.parameters()) < SMALL_MODEL)


def cast(network: Any, dtype: torch.dtype) -> Any:
    """What is saved of it in `dtype`. Other buffers stay: positions turned by angles of 8 bits would be others."""
    for value in network.state_dict(keep_vars=True).values():
        if value.is_floating_point():
            value.data = value.data.to(dtype)
    return network


def pick_dtype(dtype: str, device: torch.device, network: Any = None) -> torch.dtype:
    """`auto` is bfloat16 on a GPU; on a CPU float32, but for a network that is not small what is faster there."""
    if dtype == "auto" and device.type != "cpu":
        return torch.bfloat16
    if dtype == "auto":
        return torch.float32 if network is None or is_small(network) else _faster_here()
    if dtype not in get_args(Dtype):
        raise BackendError(f"dtype {dtype!r} is not one of {', '.join(get_args(Dtype))}")
    found: torch.dtype = getattr(torch, dtype)
    return found


@cache
def _faster_here() -> torch.dtype:
    gain = bfloat16_gain()
    chosen = torch.bfloat16 if gain >= WORTH_IT else torch.float32
    print(
        f"{str(chosen).removeprefix('torch.')} passes: bfloat16 is {gain:.1f}x float32 on this processor",
        file=sys.stderr,
    )
    return chosen


def bfloat16_gain() -> float:
    """How many times as fast as in float32 this processor multiplies in bfloat16; the best of a few tries of each."""
    tokens, weights = torch.full((128, 512), 0.5), torch.full((1024, 512), 0.5)
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    inputs = {dtype: (tokens.to(dtype), weights.to(dtype)) for dtype in best}
    ends = time.perf_counter() + PROBE_SECONDS
    for trial in range(8):
        for dtype, (x, w) in inputs.items():
            began = time.thread_time()  # of this thread alone: others on a busy machine would decide
            F.linear(x, w)
            if trial:  # the first one prepares
                best[dtype] = min(best[dtype], time.thread_time() - began)
        if trial and time.perf_counter() > ends:
            break
    return best[torch.float32] / best[torch.bfloat16]


def _check_vocabulary(path: str, network: Any, tokenizer: Any) -> None:
    """Added tokens may lie beyond the embeddings, as a padding token often does: `transformers_` minds those."""
    rows = network.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise BackendError(
            f"the tokenizer in {path} knows {tokenizer.vocab_size} tokens and the network {rows}: they do not belong "
            "together. Copy the tokenizer that the model was trained with, or resize the model's embeddings and train"
        )


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
    near = [f"did you mean {name!r}? " for name in difflib.get_close_matches(path, models.NAMES, n=1, cutoff=0.7)]
    ours = [f"; `r1ranker model get {name}` can also fetch it" for name, s in models.SOURCES.items() if s.repo == path]
    return (
        f"cannot load {path!r}: it is no directory here and the hub did not give it ({first_line}). {''.join(near)}"
        "With a network, check the name and your access (hf auth login); without one, download the model "
        "elsewhere and pass its directory, or use the embedded model: --model nano" + "".join(ours)
    )
