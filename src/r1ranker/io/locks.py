"""One writer at a time. In: a file that a job writes. Out: the certainty that no other job does, until this one ends.

    with held(Path("run.trec")): ...

The lock is a file beside it, `run.trec.lock`, which the system frees when the process ends, however it ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from r1ranker.errors import ConfigError

PROBLEMS = ("train.jsonl", "dev.jsonl", "test.jsonl")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other jobs from `path` meanwhile. ConfigError where one has it, or where nothing can be written there."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"another job is writing {path} right now; wait until it has ended, or give this one another place"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give a place that can be written") from error
    try:
        yield
    finally:
        # While it is held: who waits for the file that is removed here finds it gone, and makes a new one.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_outputs(outputs: dict[str, Path | None], inputs: dict[str, Path | None]) -> None:
    """ConfigError where an output is an input or another output, or where it cannot be written. Names are for words.

    Of a folder that is an input its problems are.
    """
    taken = {_place(path): name for name, path in inputs.items() if path}
    folders = {name: path for name, path in inputs.items() if path and path.is_dir()}
    problems = [(name, folder / file) for name, folder in folders.items() for file in PROBLEMS]
    taken |= {_place(file): name for name, file in problems if file.exists()}
    for name, path in outputs.items():
        if path is None:
            continue
        if before := taken.get(_place(path)):
            raise ConfigError(f"{name} and {before} are the same file, {path}: give {name} another one")
        taken[_place(path)] = name
        check_writable(path, name)


def check_writable(path: Path, name: str) -> None:
    """ConfigError where a file cannot be made or written at `path`; nothing is made."""
    there = path if path.exists() else next(parent for parent in path.absolute().parents if parent.exists())
    if there != path and not there.is_dir():
        raise ConfigError(f"{name}: cannot write {path}, since {there} is a file, not a folder")
    if there == path and path.is_dir():
        raise ConfigError(f"{name}: {path} is a folder; name a file in it")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"{name}: cannot write {path}, since {there} is read-only for you; give another place")


def check_folder(path: Path, name: str) -> None:
    """ConfigError where `path` is no folder and cannot become one, or where nothing can be written to it."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{name}: {path} is a file; name a folder")
    check_writable(path / "new", name)


def _place(path: Path) -> str:
    return os.path.realpath(path)
