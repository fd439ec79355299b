"""RecBole atomic files: a directory with one `.item` file and one or more `.inter` files, tab-separated.

    user_id:token   item_id:token   timestamp:float          one interaction a line; timestamp optional
    user_id:token   item_id_list:token_seq   item_id:token   a history and the item that followed it

The header names the columns and their types. Without timestamps the order of the file is the order of the
interactions. Of several sequence lines of a user (or the train, valid and test files of a benchmark) the
longest one is used, since the others are its beginnings. The task name is the caller's.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from r1ranker.datasets.common import MissingFileError, Source, read_rows
from r1ranker.datasets.recommendation import RecommendationOptions, recommendation_problems
from r1ranker.errors import DataError
from r1ranker.problem import Splits

TITLE_COLUMNS = ("title", "movie_title", "item_name", "name")
GENRE_COLUMNS = ("genres", "genre", "class")


def load(
    path: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    task: str = "rec-game",
    **options: Unpack[RecommendationOptions],
) -> Splits:
    """Problems of the users of `path`; `task` names them, other options as in `recommendation_problems`."""
    items = sorted(path.glob("*.item"))
    interactions = sorted(path.glob("*.inter"))
    if len(items) != 1 or not interactions:
        raise MissingFileError(f"{path}: has {len(items)} .item and {len(interactions)} .inter files")
    titles, texts = _items(items[0])
    return recommendation_problems(
        _histories(interactions), titles, texts=texts, task=task, seed=seed, limit=limit, **options
    )


def _records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and the line by column name; a line may lack its last columns when they are empty."""
    rows = read_rows(path, "\t", 1)
    _, header = next(rows, (0, []))
    names = [field.partition(":")[0] for field in header]
    if not all(":" in field for field in header) or not header:
        raise DataError(f"{path}:1: the header must name typed columns, such as user_id:token")
    for number, row in rows:
        yield number, dict(zip(names, row, strict=False))


def _items(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    titles: dict[str, str] = {}
    texts: dict[str, str] = {}
    for number, record in _records(path):
        column = next((name for name in TITLE_COLUMNS if name in record), None)
        if "item_id" not in record or column is None:
            raise DataError(f"{path}:{number}: needs item_id and a title ({', '.join(TITLE_COLUMNS)})")
        title = " ".join(html.unescape(record[column]).split())
        if not title:
            continue
        item = record["item_id"]
        genres = next((record[name] for name in GENRE_COLUMNS if record.get(name)), "")
        titles[item] = title
        texts[item] = f"{title} | {', '.join(genres.replace(',', ' ').split())}" if genres else title
    return titles, texts


def _histories(paths: list[Path]) -> dict[str, list[str]]:
    sequences: dict[str, list[str]] = {}
    events: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for path in paths:
        for number, record in _records(path):
            user, item = record.get("user_id"), record.get("item_id")
            if user is None or item is None:
                raise DataError(f"{path}:{number}: needs user_id and item_id")
            if "item_id_list" in record:
                sequence = [*record["item_id_list"].split(), item]
                sequences[user] = max(sequences.get(user, []), sequence, key=len)
            else:
                events[user].append((_timestamp(path, number, record), item))
    for user, timed in events.items():
        # A stable sort by time alone keeps the order of the file among ties.
        sequences.setdefault(user, [item for _, item in sorted(timed, key=lambda event: event[0])])
    return sequences


def _timestamp(path: Path, number: int, record: dict[str, str]) -> float:
    try:
        return float(record.get("timestamp") or 0)
    except ValueError:
        raise DataError(f"{path}:{number}: timestamp {record['timestamp']!r} is not a number") from None


SOURCE = Source(
    load=load,
    description="rec-game (or the option task): RecBole atomic files, plain or with sequences",
    layout="one *.item and one or more *.inter files with typed headers",
    licence="that of the data in the files",
    citation="Zhao et al., RecBole, CIKM 2021; Hou et al., LLMRank, ECIR 2024 (Amazon games)",
    download="https://recbole.io/dataset_list.html or https://github.com/RUCAIBox/LLMRank",
)
