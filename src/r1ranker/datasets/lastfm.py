"""HetRec 2011 Last.fm 2K: a directory with `user_artists.dat` and `artists.dat`, tab-separated.

    userID  artistID  weight          id  name          url  pictureURL
    2       51        13883           1   MALICE MIZER  http://...

The source has play counts and no times, so a listener's artists stand in a random order drawn by the seed:
the context is 20 artists the listener plays and the positive is another one. Ordering by play count would
make the positive systematically the most, or the least, played. Task: `rec-artist`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Unpack

from r1ranker.datasets.common import Source
from r1ranker.datasets.recommendation import RecommendationOptions, recommendation_problems
from r1ranker.datasets.tables import identifier, need_file, records, set_once, split_rows
from r1ranker.io.text import finite
from r1ranker.problem import Splits, rng_for


def load(path: Path, *, seed: int = 0, limit: int | None = None, **options: Unpack[RecommendationOptions]) -> Splits:
    """Problems of the listeners of `path`; options as in `recommendation_problems`."""
    names, plays = _names(need_file(path, "artists.dat")), _plays(need_file(path, "user_artists.dat"))
    histories: dict[str, list[str]] = {}
    for user, counts in plays.items():
        histories[user] = sorted(counts)
        rng_for(seed, "order", user).shuffle(histories[user])
    return recommendation_problems(histories, names, task="rec-artist", seed=seed, limit=limit, **options)


def _names(path: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for number, row in records(path, split_rows(path, "\t"), ("id", "name"), ragged=True):
        where = f"{path}:{number}"
        set_once(names, identifier(row, "id", where), row["name"].strip(), where)
    return names


def _plays(path: Path) -> dict[str, dict[str, float]]:
    """Play count by artist of each listener."""
    plays: dict[str, dict[str, float]] = defaultdict(dict)
    for number, row in records(path, split_rows(path, "\t"), ("userID", "artistID", "weight")):
        where = f"{path}:{number}"
        count = finite(row["weight"], f"{where}: weight")
        set_once(plays[identifier(row, "userID", where)], identifier(row, "artistID", where), count, where)
    return plays


SOURCE = Source(
    load=load,
    description="rec-artist: another artist of a listener (no times in the source)",
    layout="user_artists.dat and artists.dat",
    licence="non-commercial research",
    citation="Cantador, Brusilovsky and Kuflik, HetRec 2011",
    download="https://grouplens.org/datasets/hetrec-2011/",
)
