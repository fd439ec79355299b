"""The one way to open a text file. In: a path. Out: its lines with their numbers, its rows, or its whole text.

    for number, line in read_lines(Path("qrels.txt.gz")):    # 1, "264014 0 5611210 2"

UTF-8 whatever the locale; a byte order mark is dropped; gzip, bzip2 and Zstandard are known by their content; only LF
and CRLF end a line, so a lone carriage return, or a line separator of Unicode, stays in its text. What cannot be read
whole, or holds nothing, is a `DataError` that names file and line. Next in the data flow are the `datasets`.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from r1ranker.errors import DataError
from r1ranker.io.files import at_home

MARK = "\ufeff"
COMPRESSED = (".gz", ".bz2", ".zst")
BACKUPS = (".*", "*~", "*.bak", "*.orig", "#*#")
"""Names of files that editors and systems leave beside the user's: hidden ones (`._x` of macOS too) and backups."""
_DAMAGES = (OSError, EOFError, zlib.error)


class MissingFileError(DataError):
    """A source's directory lacks a file; `datasets.load` adds the expected layout and where to get it."""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed where their beginning says that they are compressed, whatever the name says."""
    try:
        file = at_home(path).open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        magic = file.peek(4)[:4]
        if magic.startswith(b"\x1f\x8b"):
            yield io.BufferedReader(gzip.GzipFile(fileobj=file))
        elif magic.startswith(b"BZh"):
            yield bz2.BZ2File(file)
        elif magic == b"\x28\xb5\x2f\xfd":
            import pyarrow  # here: nothing else of this module needs it, and it takes a while

            yield io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
        else:
            yield file


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank, without its end. A file without any is a fault."""
    empty = True
    for number, line in _lines(path, encoding):
        if line and not line.isspace():
            empty = False
            yield number, line
    if empty:
        raise DataError(f"{path}: is empty; write it again, or remove it if nothing belongs there")


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The whole text, lines ended by LF."""
    return "".join(f"{line}\n" for _, line in _lines(path, encoding))


def read_csv(path: Path, separator: str = ",", encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line on which each begins; quoted fields may be of any length and hold line ends.

    Blank lines are left out. A quote that is not closed is a fault of the row, not the end of the file.
    """
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((f"{line}\n" for _, line in _lines(path, encoding)), delimiter=separator, strict=True)
    begins, empty = 1, True
    while True:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise DataError(f"{path}:{begins}: not CSV ({error}); is a quote not closed, or not doubled?") from error
        if any(field and not field.isspace() for field in row):
            empty = False
            yield begins, row
        begins = reader.line_num + 1
    if empty:
        raise DataError(f"{path}: is empty; write it again, or remove it if nothing belongs there")


def fields(line: str, counts: tuple[int, ...]) -> list[str]:
    """The fields of a line: split at tabs where these give one of `counts`, since a field may hold spaces."""
    parts = line.split("\t")
    return [part.strip() for part in parts] if len(parts) in counts else line.split()


def list_files(folder: Path, *patterns: str) -> list[Path]:
    """The folder's own files by name, hidden and backup ones left out; `*.csv` stands for `*.csv.gz` too."""
    folder = at_home(folder)
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file())
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    return [
        file
        for file in files
        if not any(fnmatchcase(file.name, backup) for backup in BACKUPS)
        and (not patterns or any(fnmatchcase(bare(file.name), pattern) for pattern in patterns))
    ]


def need(path: Path) -> Path:
    """`path` itself when it is a file, else `MissingFileError`."""
    if not at_home(path).is_file():
        raise MissingFileError(f"{path}: no such file")
    return path


def bare(name: str) -> str:
    """A file's name without what says how it is compressed."""
    return next((name.removesuffix(end) for end in COMPRESSED if name.endswith(end)), name)


def finite(text: object, where: str) -> float:
    """A number. `where` (file, line, field) begins the message of the `DataError` when it is none, or not finite."""
    try:
        number = math.nan if isinstance(text, bool) or "_" in str(text) else float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {text!r} is not a finite number")
    return number


def cut(text: str, max_chars: int) -> str:
    """`text` cut at a word boundary to at most `max_chars` characters (inside a word that is longer)."""
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    if not (text[max_chars].isspace() or head[-1:].isspace()):
        head = (head.rsplit(maxsplit=1)[:-1] or [head])[0]
    return head.rstrip()


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    number = 0
    with open_bytes(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                text = (line[:-2] if line.endswith(b"\r\n") else line.removesuffix(b"\n")).decode(encoding)
                yield number, text.lstrip(MARK)  # of each line: files that were joined have a mark in their middle
        except UnicodeDecodeError as error:
            wrong = f"{error.reason} at byte {error.start + 1} of the line"
            raise DataError(f"{path}:{number}: not {encoding.upper()} ({wrong}); save the file as UTF-8") from error
        except _DAMAGES as error:
            raise DataError(f"{path}: damaged or cut off after line {number} ({error}); fetch it again") from error
