"""Users and items of your own: a table of interactions and one of items, whose columns you name.

    user,item,rating,time                       item,title
    u7,b12,4,2024-05-01T18:02:11                b12,A Wizard of Earthsea

    load(Path("shop"), interactions="orders.csv", user="customer", item="sku", time="at", item_id="sku", title="name")

Fields are parted by commas, tabs, semicolons or `::`, which the header shows; files named `.jsonl` hold an object a
line. `time` is a number or a date in ISO form
(without a zone: UTC); without that column, rows stand in the order in which things happened. A user's item that comes
again counts once, where it came first. Next in the data flow is `recommendation`.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

from r1ranker.datasets.common import Source
from r1ranker.datasets.recommendation import Event, RecommendationOptions, histories_of, recommendation_problems
from r1ranker.datasets.tables import Rows, identifier, named_file, records, set_once, split_rows
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.documents import read_json_lines, text_of
from r1ranker.io.text import bare, finite, read_csv, read_lines
from r1ranker.problem import Splits

log = logging.getLogger(__name__)

SEPARATORS = (",", "\t", ";", "::")


def load(
    path: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    interactions: str = "interactions.csv",
    items: str = "items.csv",
    user: str = "user",
    item: str = "item",
    rating: str | None = None,
    time: str | None = None,
    item_id: str | None = None,
    title: str = "title",
    details: Sequence[str] = (),
    min_rating: float | None = None,
    task: str = "rec",
    **options: Unpack[RecommendationOptions],
) -> Splits:
    """Problems of the users of two files in the folder `path`; other options as in `recommendation_problems`.

    user, item, rating, time: columns of `interactions`. item_id (default: as `item`), title: columns of `items`.
    details: more columns of `items` that a candidate shows behind its title.
    min_rating: the lowest rating that counts as an interaction; lower ones are left out of the histories.
    task: the problems' task, so that two folders can stand in one run.
    """
    if min_rating is not None and rating is None:
        raise ConfigError(f"min_rating={min_rating} needs ratings: name their column by the option rating")
    columns = {"user": user, "item": item} | {k: v for k, v in (("rating", rating), ("time", time)) if v}
    of_items = {"item_id": item_id or item, "title": title} | {f"details[{i}]": name for i, name in enumerate(details)}
    met, known = named_file(path, "interactions", interactions), named_file(path, "items", items)
    titles, texts = read_items(known, of_items)
    histories = histories_of(read_events(met, columns), min_rating)
    return recommendation_problems(histories, titles, texts=texts, task=task, seed=seed, limit=limit, **options)


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and its fields by option."""
    if bare(path.name).endswith(".jsonl"):
        yield from _json_rows(path, columns)
        return
    separator = _separator(path, columns)
    rows: Rows = split_rows(path, separator) if len(separator) > 1 else read_csv(path, separator)
    for number, row in records(path, rows, tuple(columns.values())):
        yield f"{path}:{number}", {option: row[name] for option, name in columns.items()}


def _json_rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The same of JSON Lines. A line may lack a field; one that all lack is a fault."""
    met: set[str] = set()
    for number, record in read_json_lines(path):
        met |= record.keys()
        where = f"{path}:{number}"
        yield where, {option: _shown(record.get(name), f"{where}: {name}") for option, name in columns.items()}
    for option, name in columns.items():
        if name not in met:
            raise DataError(
                f"{path}: no line has a field {name!r}; there are {', '.join(sorted(met))[:300]}; name the one that is "
                f"meant by the option {option.partition('[')[0]}"
            )


def _shown(value: object, where: str) -> str:
    """A field as text; a list is its texts with commas between."""
    return ", ".join(text_of(one, where) for one in (value if isinstance(value, list) else [value]))


def _separator(path: Path, columns: Mapping[str, str]) -> str:
    """What parts the fields: that under which the header has the columns. DataError names those it has."""
    line, header = next(read_lines(path))
    parted = {mark: [field.strip() for field in _parted(header, mark)] for mark in SEPARATORS}
    fits = {mark: sum(name in names for name in columns.values()) for mark, names in parted.items()}
    separator = max(SEPARATORS, key=lambda mark: (fits[mark], len(parted[mark])))
    for option, name in columns.items():
        if name not in parted[separator]:
            there = ", ".join(parted[separator])
            raise DataError(
                f"{path}:{line}: has no column {name!r}; there are {there[:300]}; name the one that is meant by the "
                f"option {option.partition('[')[0]}, or write the columns' names into the first line"
            )
    return separator


def _parted(header: str, mark: str) -> list[str]:
    """The fields of a header; a quoted one may hold the separator, as in `read_csv`."""
    try:
        return header.split(mark) if len(mark) > 1 else next(csv.reader([header], delimiter=mark))
    except csv.Error:  # what is no CSV is told when it is read
        return header.split(mark)


def read_items(path: Path, columns: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Title by item, and what a candidate shows. columns: by option, `item_id` and `title` first, then details."""
    titles: dict[str, str] = {}
    texts: dict[str, str] = {}
    for where, row in _rows(path, columns):
        item, (_, *shown) = identifier(row, "item_id", where), (" ".join(field.split()) for field in row.values())
        set_once(texts, item, " | ".join(filter(None, shown)), where)
        titles[item] = shown[0]
    return titles, texts


def read_events(path: Path, columns: Mapping[str, str]) -> Iterator[Event]:
    """Rows of interactions. columns: by option, `user` and `item`, perhaps `rating` and `time`."""
    if "time" not in columns:
        log.info("%s: no option time, so its rows count as standing in the order in which things happened", path)
    begun = ""
    for place, (where, row) in enumerate(_rows(path, columns)):
        time, kind = _time(row["time"], where) if "time" in row else (float(place), "place")
        begun = begun or kind
        if kind != begun:
            raise DataError(f"{where}: time {row['time']!r} is a {kind}, and those before are {begun}s; write one kind")
        rating = finite(row["rating"], f"{where}: rating") if "rating" in row else None
        yield Event(where, identifier(row, "user", where), identifier(row, "item", where), time, rating)


def _time(text: str, where: str) -> tuple[float, str]:
    """Seconds, or whatever the number counts; and what the text is."""
    what = f"{where}: time"
    try:
        return finite(text, what), "number"
    except DataError as error:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            raise DataError(f"{error}, nor a date such as 2024-05-01T18:02:11") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp(), "date"


SOURCE = Source(
    load=load,
    description="rec (or the option task): your own interactions and items, columns named by options",
    layout="interactions.csv (user, item, perhaps rating and time) and items.csv (item, title), or as the options say",
    licence="yours",
    citation="yours",
)
