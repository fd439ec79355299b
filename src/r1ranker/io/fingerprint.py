"""What work was begun with, as short texts that can be compared. In: a model, problems, a file. Out: digests.

    fingerprint_model("runs/x/model")     # {"weights": "9f2c...", "tokenizer": ..., "chat template": ..., ...}
    fingerprint_problems({"train": [...]})
    differing(was, now)                   # ["chat template"]

Journals, caches and checkpoints keep these and compare them before they go on. Digests are of content, so a model
that was copied or moved is the same model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from r1ranker.io.problems import PROBLEM
from r1ranker.problem import Problem

PARTS = {
    "weights": ("*.safetensors", "*.bin", "*.gguf", "adapter_config.json"),
    "tokenizer": ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model"),
    "chat template": ("chat_template*", "additional_chat_templates/*", "tokenizer_config.json"),
    "network": ("config.json", "generation_config.json", "r1ranker.json"),
}
"""The files of a model directory that decide its answers. `tokenizer_config.json` may hold the template too."""
TEMPLATE = "chat_template"
SHORT = 16


def fingerprint_model(model: str) -> dict[str, str]:
    """Digests of a model's parts by name, in a directory; of a hub name the revision in the local cache.

    Empty where nothing of it is here: the model of an endpoint, or one that the hub has not given yet.
    """
    if Path(model).is_dir():
        parts = {name: _part(Path(model), name, patterns) for name, patterns in PARTS.items()}
        return {name: digest for name, digest in parts.items() if digest}
    revision = _revision(model)
    return {"revision": revision} if revision else {}


def fingerprint_problems(splits: Mapping[str, Iterable[Problem]]) -> str:
    """A digest of all problems, split by split, in their order."""
    digest = hashlib.sha256()
    for split, problems in splits.items():
        digest.update(f"{split}\n".encode())
        for problem in problems:  # without what is not given: a new field of the package changes no data
            digest.update(PROBLEM.dump_json(problem, exclude_defaults=True) + b"\n")
    return digest.hexdigest()[:SHORT]


def fingerprint_file(path: Path) -> str:
    """A digest of a file's bytes."""
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)[:SHORT]


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names under which two fingerprints differ."""
    return sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))


def _part(directory: Path, part: str, patterns: Iterable[str]) -> str:
    files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
    with ThreadPoolExecutor() as pool:  # shards side by side: hashing is done outside Python's lock
        digests = list(pool.map(lambda file: _of(file, part), files))
    known = [(file.name, digest) for file, digest in zip(files, digests, strict=True) if digest]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:SHORT] if known else ""


def _of(file: Path, part: str) -> str:
    """A file's digest; of the tokenizer's settings only what belongs to the part, and "" where that is nothing."""
    if file.name != "tokenizer_config.json":
        return fingerprint_file(file)
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        template = settings.pop(TEMPLATE, None)
    except (ValueError, AttributeError):  # loading it will say what is wrong
        return fingerprint_file(file)
    kept = template if part == "chat template" else settings
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest() if kept else ""


@lru_cache(maxsize=1024)
def _digest(path: Path, size: int, changed: int, inode: int) -> str:
    """SHA-256 of the content; size, time and inode tell an unchanged file, which is not read again."""
    if re.fullmatch("[0-9a-f]{64}", path.name):  # the hub's cache names large files by just this digest
        return path.name
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _revision(model: str) -> str:
    """The commit of a hub name that loading it takes from the local cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return ""
    return Path(found).parent.name if isinstance(found, str) else ""
