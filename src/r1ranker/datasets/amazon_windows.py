"""Amazon reviews as windows (the R3 and LLM-rec layout): a directory with `*.csv` or `*.csv.gz` files.

    user_id,item_asins,item_asin,history_item_id,item_id,history_item_title,item_title,...,timestamp
    A3KW...,"['B000000BRY']",B00000252H,[5198],3227,['Freaks of Nature'],Kansas,...,1504656000

A row holds up to ten previous items of a user and the next one. The rows of a user overlap; they are
joined into one history by time (ties in the order of the file), over all the files of the directory. Items
whose title is scraped HTML are dropped. Task: `rec-music`.
"""

from __future__ import annotations

import ast
import csv
import gzip
import html
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from r1ranker.datasets.common import MissingFileError, Source
from r1ranker.datasets.recommendation import RecommendationOptions, recommendation_problems
from r1ranker.errors import DataError
from r1ranker.problem import Splits

log = logging.getLogger(__name__)

COLUMNS = ("user_id", "item_id", "item_title", "timestamp")
WINDOW_COLUMNS = ("history_item_id", "history_item_title", "history_timestamp")
_HTML = re.compile(r"</?[a-z]+[\s>]|/>", re.IGNORECASE)

Event = tuple[str, str, int]
"""An item, its title, and when the user reviewed it."""


def load(path: Path, *, seed: int = 0, limit: int | None = None, **options: Unpack[RecommendationOptions]) -> Splits:
    """Problems of the users of `path`; options as in `recommendation_problems`."""
    files = sorted([*path.glob("*.csv"), *path.glob("*.csv.gz")])
    if not files:
        raise MissingFileError(f"{path}: has no .csv or .csv.gz file")
    times: dict[str, dict[str, int]] = defaultdict(dict)
    titles: dict[str, str] = {}
    scraped: set[str] = set()
    for user, (item, title, timestamp) in (pair for file in files for pair in _events(file)):
        if _HTML.search(title) or not title.strip():
            scraped.add(item)
            continue
        titles.setdefault(item, " ".join(html.unescape(title).split()))
        known = times[user].get(item, timestamp)
        times[user][item] = min(known, timestamp)
    if scraped:
        log.warning("%d items whose title is scraped HTML or empty are dropped", len(scraped))
    histories = {user: sorted(items, key=items.__getitem__) for user, items in times.items()}
    return recommendation_problems(histories, titles, task="rec-music", seed=seed, limit=limit, **options)


def _events(file: Path) -> Iterator[tuple[str, Event]]:
    """User and event for every item of every row, previous items first."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        missing = sorted({*COLUMNS, *WINDOW_COLUMNS} - set(rows.fieldnames or ()))
        if missing:
            raise DataError(f"{file}:1: the header lacks {', '.join(missing)}")
        for row in rows:
            try:
                windows = [ast.literal_eval(row[column]) for column in WINDOW_COLUMNS]
                previous = list(zip(*windows, strict=True))
                events = [*previous, tuple(row[column] for column in COLUMNS[1:])]
                parsed = [(str(item), str(title), int(timestamp)) for item, title, timestamp in events]
            except (ValueError, SyntaxError, TypeError) as error:
                raise DataError(f"{file}:{rows.line_num}: not a window of items: {error}") from error
            for event in parsed:
                yield row["user_id"], event


SOURCE = Source(
    load=load,
    description="rec-music: Amazon CDs and Vinyl as windows of up to ten previous items",
    layout="one or more *.csv or *.csv.gz with history_item_id, history_item_title, history_timestamp",
    licence="Amazon review data: research use",
    citation="Ni, Li and McAuley, Justifying Recommendations, EMNLP 2019",
    download="https://github.com/mingyao-huang/R3",
)
