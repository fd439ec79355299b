"""MovieLens: a directory with `ratings.csv` and `movies.csv`, or with `ratings.dat` and `movies.dat`.

    userId,movieId,rating,timestamp     movieId,title,genres                          (csv: columns by name)
    1::1193::5::978300760               1::Toy Story (1995)::Animation|Comedy         (dat: columns by place)

The second is that of MovieLens 1M (Latin-1), 10M and MovieTweetings (UTF-8). Every rated movie counts as watched,
whatever the rating, unless `min_rating` says from which rating on. Movies are ordered by timestamp; ties, which are
common because users rate in bursts, by movie id. Task: `rec-movie`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from r1ranker.datasets.common import Source
from r1ranker.datasets.recommendation import Event, RecommendationOptions, histories_of, recommendation_problems
from r1ranker.datasets.tables import identifier, only_file, records, set_once, split_rows
from r1ranker.errors import DataError
from r1ranker.io.text import MissingFileError, finite, read_csv, read_lines
from r1ranker.problem import Splits

log = logging.getLogger(__name__)

MOVIES = ("movieId", "title", "genres")
RATINGS = ("userId", "movieId", "rating", "timestamp")


def load(
    path: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    min_rating: float | None = None,
    **options: Unpack[RecommendationOptions],
) -> Splits:
    """Problems of the users of `path`; options as in `recommendation_problems`.

    min_rating: the lowest rating that counts as watched; lower ones are left out of the histories.
    """
    titles, texts = _movies(path)
    histories = histories_of(_events(path), min_rating, tie_by_item=True)
    return recommendation_problems(histories, titles, texts=texts, task="rec-movie", seed=seed, limit=limit, **options)


def _rows(path: Path, name: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of `name`.csv stands, and its fields; of `name`.dat where there is no csv file."""
    table, plain = only_file(path, f"{name}.csv"), only_file(path, f"{name}.dat")
    if table is not None:
        for number, row in records(table, read_csv(table), columns):
            yield f"{table}:{number}", row
    elif plain is not None:
        for number, fields in split_rows(plain, "::", _encoding(plain)):
            if len(fields) != len(columns):
                needed = "::".join(columns)
                raise DataError(f"{plain}:{number}: {len(fields)} fields where a line is {needed}")
            yield f"{plain}:{number}", dict(zip(columns, fields, strict=True))
    else:
        raise MissingFileError(f"{path}: has neither {name}.csv nor {name}.dat")


def _encoding(path: Path) -> str:
    """UTF-8, or Latin-1 where a line is not UTF-8."""
    try:
        for _ in read_lines(path):
            pass
    except DataError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        log.info("%s is not UTF-8 and is read as Latin-1, which MovieLens 1M is", path)
        return "latin-1"
    return "utf-8"


def _movies(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Title by movie, and what a candidate shows: title and genres where there are any."""
    titles: dict[str, str] = {}
    texts: dict[str, str] = {}
    for where, row in _rows(path, "movies", MOVIES):
        movie, title = identifier(row, "movieId", where), row["title"].strip()
        shown = "" if row["genres"].startswith("(no genres") else row["genres"].strip().replace("|", ", ")
        set_once(texts, movie, f"{title} | {shown}" if shown else title, where)
        titles[movie] = title
    return titles, texts


def _events(path: Path) -> Iterator[Event]:
    for where, row in _rows(path, "ratings", RATINGS):
        yield Event(
            where,
            identifier(row, "userId", where),
            identifier(row, "movieId", where),
            finite(row["timestamp"], f"{where}: timestamp"),
            finite(row["rating"], f"{where}: rating"),
        )


SOURCE = Source(
    load=load,
    description="rec-movie: the next movie of a user",
    layout="ratings.csv and movies.csv, or ratings.dat and movies.dat (1M)",
    licence="GroupLens terms: research use, no redistribution without permission",
    citation="Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 2015",
    download="https://grouplens.org/datasets/movielens/",
)
