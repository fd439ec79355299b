"""Files that are there whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What the system says where a file cannot be written to its end."""

OWNER_ALONE = 0o600
OPENED = re.compile(r"/dev/(std|fd/)|/proc/[^/]+/fd/")


def expanded(name: str) -> str:
    """A name with `~` or `~user` at its beginning made a path; as it is where there is no such home, as in a shell."""
    try:
        return str(Path(name).expanduser()) if name.startswith("~") else name
    except RuntimeError:
        return name


def at_home(path: str | Path) -> Path:
    """`expanded`, of a path."""
    return Path(expanded(str(path)))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write the file or folder that is then renamed to `path`; after an error `path` stays as it was.

    What a link leads to is replaced, not the link; a device or a pipe is written to as it is. Whatever cannot be
    written is an OSError that names the path: a full disk has another name in each library.
    """
    if _is_stream(path):
        with naming(path):
            yield path
        return
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.old")
    recover(path)
    remove(fresh)
    try:
        with naming(path):
            yield fresh
            share(fresh)
    except (RuntimeError, SafetensorError) as error:
        room = f"{shutil.disk_usage(path.parent).free >> 20} MB were free"  # torch names a place in its own code
        remove(fresh)
        raise OSError(errno.EIO, f"{str(error).splitlines()[0]} ({room})", str(path)) from error
    except BaseException:
        remove(fresh)
        raise
    if path.is_dir():  # a folder is not renamed onto another one; `recover` ends what is interrupted here
        path.rename(old)
    fresh.rename(path)
    remove(old)


def _is_stream(path: Path) -> bool:
    """Whether it is no file or folder to rename something onto, or stands for one that a process has open."""
    known = path.exists() and not (path.is_file() or path.is_dir())
    return known or bool(OPENED.match(str(path.absolute())))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has an error of a full disk name the file that was being written: as it comes from the system, it names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in NO_ROOM:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def share(path: Path) -> None:
    """Let others read the files at or in `path` as far as the umask does: safetensors writes for the owner alone."""
    found = path.rglob("*") if path.is_dir() else [path]
    private = [file for file in found if file.is_file() and stat.S_IMODE(file.stat().st_mode) == OWNER_ALONE]
    if private:
        probe = path.with_name(f"{path.name}.mode")  # a process can only ask for its umask by setting it
        probe.touch()
        mode = stat.S_IMODE(probe.stat().st_mode)
        probe.unlink()
        for file in private:
            file.chmod(mode)


def recover(path: Path) -> None:
    """End a replacement of a folder that was interrupted between its two renames, and forget what it left."""
    fresh, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.old")
    if old.exists():
        if not path.exists():
            (fresh if fresh.exists() else old).rename(path)
        remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", newline="\n")


def named_by_content(folder: Path, write: Callable[[Path], object], name: str = "{}.jsonl") -> Path:
    """A file named by the hash of what `write` puts into it; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"new-{os.getpid()}"
    write(fresh)
    return fresh.rename(folder / name.format(hashlib.sha256(fresh.read_bytes()).hexdigest()[:12]))
