"""Tables whose columns are known by their names, wherever they stand. In: a file. Out: its lines as fields by name.

    for line, row in records(path, read_csv(path), ("userId", "movieId")):
        row["userId"]       # "1"

What has no header, or lacks a column, is refused with the names that are missing; columns nobody asked for, such as
the index that pandas writes, are passed over. Fields are text, so `007` stays `007`. Next in the data flow are the
loaders.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from r1ranker.errors import DataError
from r1ranker.io.files import at_home
from r1ranker.io.text import COMPRESSED, MissingFileError, bare, list_files, read_lines

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Rows = Iterator[tuple[int, list[str]]]


def files_of(folder: Path, *patterns: str) -> list[Path]:
    """The folder's files of these names, compressed or not, one of each name."""
    files = list_files(folder, *patterns)
    for one, other in pairwise(files):
        if bare(one.name) == bare(other.name):
            raise DataError(f"{folder}: has both {one.name} and {other.name}; keep the one to be read")
    return files


def only_file(folder: Path, name: str) -> Path | None:
    """The folder's file of this name, compressed or not; None where there is none."""
    return next(iter(files_of(folder, name)), None)


def need_file(folder: Path, name: str) -> Path:
    """The folder's file of this name, compressed or not."""
    file = only_file(folder, name)
    if file is None:
        raise MissingFileError(f"{folder}: has no {name}")
    return file


def named_file(folder: Path, option: str, name: str) -> Path:
    """The file that an option names: of the folder, compressed or not, or a path of its own."""
    given = at_home(name)
    for path in (folder / given, *(folder / f"{given}{end}" for end in COMPRESSED), given):
        if path.is_file():
            return path
    raise MissingFileError(f"{folder}: has no {name}; name the file by the option {option}")


def split_rows(path: Path, separator: str, encoding: str = "utf-8") -> Rows:
    """Line number and fields of each line, without quoting."""
    return ((number, line.split(separator)) for number, line in read_lines(path, encoding))


def records(
    path: Path,
    rows: Rows,
    needed: Sequence[str],
    *,
    ragged: bool = False,
    column: Callable[[str], str] = str.strip,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields by column name of each row behind the header.

    needed: columns that the header must have. ragged: a row may lack its last columns, which are then empty.
    column: the name of a column from its field in the header.
    """
    line, header = next(rows)
    names = [column(field) for field in header]
    _check_header(path, line, names, needed)
    for number, row in rows:
        if len(row) > len(names) or (len(row) < len(names) and not ragged):
            raise DataError(f"{path}:{number}: {len(row)} fields where the header names {len(names)}")
        yield number, dict(zip(names, [*row, *[""] * (len(names) - len(row))], strict=True))


def _check_header(path: Path, line: int, names: Sequence[str], needed: Sequence[str]) -> None:
    """DataError for columns that are missing, or that stand twice."""
    missing = [name for name in needed if name not in names]
    if missing:
        shown = ", ".join(names)
        raise DataError(
            f"{path}:{line}: the header lacks {', '.join(missing)}; the first line must name the columns, "
            f"and it reads {shown if len(shown) <= 100 else shown[:100] + '...'}"
        )
    twice = [name for name in needed if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}:{line}: the header names {twice[0]} more than once")


def identifier(row: dict[str, str], column: str, where: str) -> str:
    """A user's or an item's identifier, which will stand in a run file: text as it is, without space around it."""
    name = row[column].strip()
    if not name:
        raise DataError(f"{where}: {column} is empty")
    if name.split() != [name]:
        raise DataError(f"{where}: {column} {name!r} has white space, which a run file cannot hold; write it without")
    return name


def set_once(known: dict[K, V], key: K, value: V, where: str) -> None:
    """Keep `value` for `key`; equal copies pass, another value is a fault."""
    if known.setdefault(key, value) != value:
        raise DataError(f"{where}: {key!r} stands twice: {value!r} here, {known[key]!r} before; keep one of them")
