"""RecBole atomic files: a directory with one `.item` file and one or more `.inter` files, tab-separated.

    user_id:token   item_id:token   rating:float   timestamp:float     one interaction a line; the last two optional
    user_id:token   item_id_list:token_seq   item_id:token             a history and the item that followed it

The header names the columns and their types. Without timestamps the order of the file is the order of the
interactions, and of the train, valid and test files of a benchmark in this order. Of several sequence lines of a user
(or the files of a benchmark) the longest one is used, and the others must be its beginnings. The task name is the
caller's.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Unpack

from r1ranker.datasets.common import Source
from r1ranker.datasets.recommendation import Event, RecommendationOptions, histories_of, recommendation_problems
from r1ranker.datasets.tables import files_of, identifier, records, set_once, split_rows
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.text import MissingFileError, bare, finite
from r1ranker.problem import Splits

PARTS = ("train", "valid", "test")
"""Of a benchmark, by time: what stands in the names of its files."""
TITLE_COLUMNS = ("title", "movie_title", "item_name", "name")
GENRE_COLUMNS = ("genres", "genre", "class")
_TYPED = re.compile(r"[^\s,:]+:(token|token_seq|float|float_seq)")


Line = tuple[str, dict[str, str]]
"""Where a line stands, and its fields by column."""


def load(
    path: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    task: str = "rec-game",
    min_rating: float | None = None,
    **options: Unpack[RecommendationOptions],
) -> Splits:
    """Problems of the users of `path`; `task` names them, other options as in `recommendation_problems`.

    min_rating: the lowest rating that counts as an interaction; lower ones are left out of the histories. Not for
    sequences, whose items have no rating of their own.
    """
    items, interactions = _files(path)
    titles, texts = _items(items)
    histories = _histories(interactions, min_rating)
    return recommendation_problems(histories, titles, texts=texts, task=task, seed=seed, limit=limit, **options)


def _files(path: Path) -> tuple[Path, list[Path]]:
    """The file of items, and those of interactions, which are named after it."""
    items, interactions = files_of(path, "*.item"), files_of(path, "*.inter")
    if len(items) != 1 or not interactions:
        raise MissingFileError(f"{path}: has {len(items)} .item and {len(interactions)} .inter files")
    name = bare(items[0].name).removesuffix(".item")
    for file in interactions:
        if not file.name.startswith(f"{name}."):
            raise DataError(f"{file}: is not named after {items[0].name}; keep one data set in a folder")
    return items[0], interactions


def _lines(path: Path) -> Iterator[Line]:
    """Where each line stands, and its fields; a line may lack its last columns when they are empty."""
    needed = ("user_id", "item_id") if bare(path.name).endswith(".inter") else ("item_id",)
    rows = records(path, split_rows(path, "\t"), needed, ragged=True, column=partial(_column, path))
    return ((f"{path}:{number}", row) for number, row in rows)


def _column(path: Path, field: str) -> str:
    if not _TYPED.fullmatch(field.strip()):
        raise DataError(
            f"{path}:1: the header must name typed columns, such as user_id:token, with tabs between them; "
            f"{field[:80]!r} is none"
        )
    return field.strip().partition(":")[0]


def _items(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    titles: dict[str, str] = {}
    texts: dict[str, str] = {}
    for where, row in _lines(path):
        column = next((name for name in TITLE_COLUMNS if name in row), None)
        if column is None:
            raise DataError(f"{path}:1: the header names no title ({', '.join(TITLE_COLUMNS)})")
        item, title = identifier(row, "item_id", where), " ".join(html.unescape(row[column]).split())
        genres = next((row[name] for name in GENRE_COLUMNS if row.get(name)), "")
        text = f"{title} | {', '.join(genres.replace(',', ' ').split())}" if genres else title
        set_once(texts, item, text, where)
        titles[item] = title
    return titles, texts


def _histories(paths: list[Path], min_rating: float | None) -> dict[str, list[str]]:
    first = {path: next(_lines(path), None) for path in paths}
    columns = {path: line[1].keys() for path, line in first.items() if line}
    if any("item_id_list" in names for names in columns.values()):
        if min_rating is not None:
            raise ConfigError(
                f"min_rating={min_rating} is for single interactions, and {paths[0].parent} holds histories, whose "
                "items have no rating of their own; leave it out"
            )
        return _longest(line for path in paths for line in _lines(path))
    untimed = [path for path, names in columns.items() if "timestamp" not in names]
    if untimed and len(untimed) < len(columns):
        raise DataError(f"{untimed[0]}: has no timestamp, which other files of the folder have; keep one kind")
    ordered = sorted(untimed, key=_part) if len(untimed) > 1 else list(columns)
    return histories_of(_events(_rated(line, min_rating) for path in ordered for line in _lines(path)), min_rating)


def _part(path: Path) -> int:
    """The place of a file of a benchmark in time, by its name."""
    part = bare(path.name).split(".")[-2]
    if part not in PARTS:
        raise DataError(
            f"{path}: which of several files is older? They have no timestamp; name them NAME.train.inter, "
            "NAME.valid.inter and NAME.test.inter, or put all lines, oldest first, into one"
        )
    return PARTS.index(part)


def _rated(line: Line, min_rating: float | None) -> Line:
    where, row = line
    if min_rating is not None and "rating" not in row:
        raise DataError(f"{where}: min_rating needs a column rating:float, which the header does not name")
    return line


def _longest(lines: Iterator[Line]) -> dict[str, list[str]]:
    """The longest history of each user, which begins with all the others."""
    longest: dict[str, list[str]] = {}
    for where, row in lines:
        user, item = identifier(row, "user_id", where), identifier(row, "item_id", where)
        if "item_id_list" not in row:
            raise DataError(f"{where}: a single interaction beside histories; keep one of the two in the folder")
        shorter, longer = sorted((longest.get(user, []), [*row["item_id_list"].split(), item]), key=len)
        if longer[: len(shorter)] != shorter:
            raise DataError(f"{where}: two histories of user {user!r} differ, and neither begins the other")
        longest[user] = longer
    return longest


def _events(lines: Iterator[Line]) -> Iterator[Event]:
    for place, (where, row) in enumerate(lines):
        # Without times, an interaction's time is its place in the files.
        time = finite(row["timestamp"], f"{where}: timestamp") if "timestamp" in row else float(place)
        rating = finite(row["rating"], f"{where}: rating") if "rating" in row else None
        yield Event(where, identifier(row, "user_id", where), identifier(row, "item_id", where), time, rating)


SOURCE = Source(
    load=load,
    description="rec-game (or the option task): RecBole atomic files, plain or with sequences",
    layout="one *.item and one or more *.inter files with typed headers",
    licence="that of the data in the files",
    citation="Zhao et al., RecBole, CIKM 2021; Hou et al., LLMRank, ECIR 2024 (Amazon games)",
    download="https://recbole.io/dataset_list.html or https://github.com/RUCAIBox/LLMRank",
)
