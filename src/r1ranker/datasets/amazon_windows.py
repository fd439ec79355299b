"""Amazon reviews as windows (the R3 and LLM-rec layout): a directory with `*.csv` or `*.csv.gz` files.

    user_id,item_asins,item_asin,history_item_id,item_id,history_item_title,item_title,...,timestamp
    A3KW...,"['B000000BRY']",B00000252H,[5198],3227,['Freaks of Nature'],Kansas,...,1504656000

A row holds up to ten previous items of a user and the next one. The rows of a user overlap; they are
joined into one history by time (ties in the order of the file), over all the files of the directory. Items
whose title is scraped HTML are dropped. Task: `rec-music`.
"""

from __future__ import annotations

import ast
import html
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from r1ranker.datasets.common import Source
from r1ranker.datasets.recommendation import RecommendationOptions, recommendation_problems
from r1ranker.datasets.tables import files_of, identifier, records, set_once
from r1ranker.errors import DataError
from r1ranker.io.documents import identifier_of, text_of
from r1ranker.io.text import MissingFileError, finite, read_csv
from r1ranker.problem import Splits

log = logging.getLogger(__name__)

COLUMNS = ("user_id", "item_id", "item_title", "timestamp")
WINDOW_COLUMNS = ("history_item_id", "history_item_title", "history_timestamp")
_HTML = re.compile(r"</?[a-z]+[\s>]|/>", re.IGNORECASE)

Event = tuple[str, str, float]
"""An item, its title, and when the user reviewed it."""


def load(path: Path, *, seed: int = 0, limit: int | None = None, **options: Unpack[RecommendationOptions]) -> Splits:
    """Problems of the users of `path`; options as in `recommendation_problems`."""
    files = files_of(path, "*.csv")
    if not files:
        raise MissingFileError(f"{path}: has no .csv or .csv.gz file")
    times: dict[str, dict[str, float]] = defaultdict(dict)
    titles: dict[str, str] = {}
    for where, user, (item, title, time) in (event for file in files for event in _events(file)):
        if title.strip() and not _HTML.search(title):
            set_once(titles, item, " ".join(html.unescape(title).split()), where)
        times[user][item] = min(times[user].get(item, time), time)
    scraped = {item for items in times.values() for item in items if item not in titles}
    if scraped:
        log.warning("%d items whose title is scraped HTML or empty are dropped", len(scraped))
    histories = {
        user: [item for item in sorted(items, key=items.__getitem__) if item not in scraped]
        for user, items in times.items()
    }
    return recommendation_problems(histories, titles, task="rec-music", seed=seed, limit=limit, **options)


def _events(file: Path) -> Iterator[tuple[str, str, Event]]:
    """Place, user and event for every item of every row, previous items first."""
    for number, row in records(file, read_csv(file), (*WINDOW_COLUMNS, *COLUMNS)):
        where = f"{file}:{number}"
        user = identifier(row, "user_id", where)
        for event in _previous(row, where):
            yield where, user, event
        time = finite(row["timestamp"], f"{where}: timestamp")
        yield where, user, (identifier(row, "item_id", where), row["item_title"], time)


def _previous(row: dict[str, str], where: str) -> Iterator[Event]:
    """The row's previous items, which stand as three Python lists of one length."""
    try:
        windows = [ast.literal_eval(row[column]) for column in WINDOW_COLUMNS]
        if not all(isinstance(window, list) for window in windows):
            raise ValueError("not three lists")
        previous = list(zip(*windows, strict=True))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise DataError(f"{where}: not a window of items: {error}") from error
    at_item, at_title, at_time = (f"{where}: {column}" for column in WINDOW_COLUMNS)
    for item, title, time in previous:
        yield identifier_of(item, at_item), text_of(title, at_title), finite(time, at_time)


SOURCE = Source(
    load=load,
    description="rec-music: Amazon CDs and Vinyl as windows of up to ten previous items",
    layout="one or more *.csv or *.csv.gz with history_item_id, history_item_title, history_timestamp",
    licence="Amazon review data: research use",
    citation="Ni, Li and McAuley, Justifying Recommendations, EMNLP 2019",
    download="https://github.com/mingyao-huang/R3",
)
