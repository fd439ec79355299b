"""HetRec 2011 Last.fm 2K: a directory with `user_artists.dat` and `artists.dat`, tab-separated.

    userID  artistID  weight          id  name          url  pictureURL
    2       51        13883           1   MALICE MIZER  http://...

The source has play counts and no times, so a listener's artists stand in a random order drawn by the seed:
the context is 20 artists the listener plays and the positive is another one. Ordering by play count would
make the positive systematically the most, or the least, played. Task: `rec-artist`.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Unpack

from r1ranker.datasets.common import Source, read_rows, rng_for
from r1ranker.datasets.recommendation import RecommendationOptions, recommendation_problems
from r1ranker.problem import Splits


def load(path: Path, *, seed: int = 0, limit: int | None = None, **options: Unpack[RecommendationOptions]) -> Splits:
    """Problems of the listeners of `path`; options as in `recommendation_problems`."""
    names = {row[0]: row[1].strip() for _, row in islice(read_rows(path / "artists.dat", "\t", 2), 1, None)}
    plays: dict[str, list[str]] = defaultdict(list)
    for _, (user, artist, *_) in islice(read_rows(path / "user_artists.dat", "\t", 3), 1, None):
        plays[user].append(artist)
    for user, artists in plays.items():
        artists.sort()
        rng_for(seed, "order", user).shuffle(artists)
    titles = {artist: name for artist, name in names.items() if name}
    return recommendation_problems(plays, titles, task="rec-artist", seed=seed, limit=limit, **options)


SOURCE = Source(
    load=load,
    description="rec-artist: another artist of a listener (no times in the source)",
    layout="user_artists.dat and artists.dat",
    licence="non-commercial research",
    citation="Cantador, Brusilovsky and Kuflik, HetRec 2011",
    download="https://grouplens.org/datasets/hetrec-2011/",
)
