"""Files that are there whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is then renamed to `path`; after an error `path` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    yield fresh
    fresh.rename(path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def named_by_content(folder: Path, write: Callable[[Path], object], name: str = "{}.jsonl") -> Path:
    """A file named by the hash of what `write` puts into it; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"new-{os.getpid()}"
    write(fresh)
    return fresh.rename(folder / name.format(hashlib.sha256(fresh.read_bytes()).hexdigest()[:12]))
