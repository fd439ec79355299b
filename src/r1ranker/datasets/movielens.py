"""MovieLens: a directory with `ratings.csv` and `movies.csv`, or with `ratings.dat` and `movies.dat` (1M).

    userId,movieId,rating,timestamp     movieId,title,genres                          (csv)
    1::1193::5::978300760               1::Toy Story (1995)::Animation|Comedy         (dat, latin-1)

Every rated movie counts as watched, whatever the rating. Movies are ordered by timestamp; ties, which are
common because users rate in bursts, by movie id. Task: `rec-movie`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from r1ranker.datasets.common import MissingFileError, Source, read_rows
from r1ranker.datasets.recommendation import RecommendationOptions, recommendation_problems
from r1ranker.errors import DataError
from r1ranker.problem import Splits


def load(path: Path, *, seed: int = 0, limit: int | None = None, **options: Unpack[RecommendationOptions]) -> Splits:
    """Problems of the users of `path`; options as in `recommendation_problems`."""
    titles, texts = _movies(path)
    return recommendation_problems(
        _histories(path), titles, texts=texts, task="rec-movie", seed=seed, limit=limit, **options
    )


def _rows(path: Path, name: str, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Rows without the header of `name`.csv, or of `name`.dat where there is no csv file."""
    if (path / f"{name}.csv").is_file():
        rows = read_rows(path / f"{name}.csv", ",", columns)
        next(rows, None)
        return rows
    if not (path / f"{name}.dat").is_file():
        raise MissingFileError(f"{path}: has neither {name}.csv nor {name}.dat")
    return read_rows(path / f"{name}.dat", "::", columns, encoding="latin-1")


def _movies(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Title by movie, and what a candidate shows: title and genres where there are any."""
    titles: dict[str, str] = {}
    texts: dict[str, str] = {}
    for _, (movie, title, genres, *_) in _rows(path, "movies", 3):
        titles[movie] = title.strip()
        shown = "" if genres.startswith("(no genres") else genres.strip().replace("|", ", ")
        texts[movie] = f"{title.strip()} | {shown}" if shown else title.strip()
    return titles, texts


def _histories(path: Path) -> dict[str, list[str]]:
    events: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, (user, movie, _, timestamp, *_) in _rows(path, "ratings", 4):
        try:
            events[user].append((int(timestamp), int(movie)))
        except ValueError:
            raise DataError(f"{path}: ratings, line {number}: movie or timestamp is not a whole number") from None
    return {user: [str(movie) for _, movie in sorted(rated)] for user, rated in events.items()}


SOURCE = Source(
    load=load,
    description="rec-movie: the next movie of a user",
    layout="ratings.csv and movies.csv, or ratings.dat and movies.dat (1M)",
    licence="GroupLens terms: research use, no redistribution without permission",
    citation="Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 2015",
    download="https://grouplens.org/datasets/movielens/",
)
