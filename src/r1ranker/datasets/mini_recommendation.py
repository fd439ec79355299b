"""rec-movie, rec-music, rec-game of the embedded tasks: which of 20 titles does a user choose next?

Each domain has a catalogue of 192 titles in eight genres. A title's words hint at its genre; some words
belong to two. Few titles are popular, most are not. A user has two tastes and follows one of them for a
session of several items, then the other, with now and then anything at all. The pool holds the next item
of the session (gain 2), one or two that the user really chooses in the session after (gain 1), and items
drawn uniformly from those the user never chooses. `prior` counts choices of training users only.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1ranker.datasets.common import SPLIT_NAMES
from r1ranker.datasets.mini_words import words
from r1ranker.problem import Candidate, Problem, Splits, rng_for

DOMAINS = ("movie", "music", "game")
TASKS = tuple(f"rec-{domain}" for domain in DOMAINS)
POOL_SIZE = 20
PER_GENRE = 24
SKEW = 1.4
"""Popularity of the item of rank r is (r + 2) ** -SKEW."""
FASHION = 1.5
"""A taste is the genre of rank r in proportion to (r + 1) ** -FASHION."""
STRAY = 0.06
"""Chance that a choice follows popularity alone, whatever the taste."""
WINDOWS = 2
"""Problems per training user; a user of dev or test has one."""
PATTERNS = ("{a} {b}", "{a} of {b}", "the {a} {n}", "{n} {a}", "{n} {a} {b}", "{a} and {b}", "the {a} {b}")


@dataclass(frozen=True, slots=True)
class Item:
    """A title of the catalogue; `genre` and `popularity` are hidden from the model."""

    docid: str
    title: str
    text: str
    genre: str
    popularity: float


@dataclass(frozen=True, slots=True)
class User:
    """What a user chooses, in order, as sessions of one taste each."""

    name: str
    sessions: tuple[tuple[Item, ...], ...]

    @property
    def chosen(self) -> list[Item]:
        return [item for session in self.sessions for item in session]


def build(seed: int, sizes: Mapping[str, int]) -> Splits:
    """Problems of the three domains; a user stands in one split."""
    splits: Splits = {split: [] for split in SPLIT_NAMES}
    for domain in DOMAINS:
        items = catalogue(domain, seed)
        users = _users(domain, items, seed, sizes)
        counts = Counter(item.docid for user in users["train"] for item in user.chosen)
        for split, members in users.items():
            windows = WINDOWS if split == "train" else 1
            built = [
                _problem(domain, user, window, items, counts, seed) for user in members for window in range(windows)
            ]
            splits[split] += built[: sizes[split]]
    return splits


def choices(domain: str, seed: int, sizes: Mapping[str, int]) -> tuple[list[Item], list[User]]:
    """The catalogue of a domain and all its users, for who makes other problems of them."""
    items = catalogue(domain, seed)
    return items, [user for users in _users(domain, items, seed, sizes).values() for user in users]


def catalogue(domain: str, seed: int) -> list[Item]:
    """All items of a domain, each with a title of its own."""
    rng = rng_for(seed, "catalogue", domain)
    source = words()["recommendation"][domain]
    titles: dict[str, str] = {}
    for genre, vocabulary in source["genres"].items():
        wanted = len(titles) + PER_GENRE
        while len(titles) < wanted:
            titles.setdefault(_title(vocabulary.split(), source["neutral"].split(), rng), genre)
    ranks = rng.sample(range(len(titles)), len(titles))
    return [
        Item(f"{domain}{number}", title, _text(title, domain, genre, source, rng), genre, (rank + 2) ** -SKEW)
        for number, ((title, genre), rank) in enumerate(zip(titles.items(), ranks, strict=True))
    ]


def _title(vocabulary: Sequence[str], neutral: Sequence[str], rng: random.Random) -> str:
    a, b = rng.sample(vocabulary, 2)
    title = rng.choice(PATTERNS).format(a=a, b=b, n=rng.choice(neutral))
    return " ".join(word if word in ("of", "and") else word.capitalize() for word in title.split())


def _text(title: str, domain: str, genre: str, source: Mapping[str, Any], rng: random.Random) -> str:
    """What a candidate shows: a movie its year, a record often its style, a game nothing more."""
    if domain == "movie":
        return f"{title} ({rng.randrange(1960, 2020, 5)})"
    if domain == "music" and rng.random() < 0.6:
        return f"{title} | {source['tags'][genre]}"
    return title


def _users(domain: str, items: Sequence[Item], seed: int, sizes: Mapping[str, int]) -> dict[str, list[User]]:
    """Users by split. A user is the same whatever the sizes of the other splits."""
    shelves: dict[str, list[Item]] = {}
    for item in items:
        shelves.setdefault(item.genre, []).append(item)
    genres = list(shelves)
    rng_for(seed, "fashion", domain).shuffle(genres)
    users: dict[str, list[User]] = {}
    for split in SPLIT_NAMES:
        count = -(-sizes[split] // (WINDOWS if split == "train" else 1))
        users[split] = [_user(f"{domain}-{split}-{n}", items, shelves, genres, seed) for n in range(count)]
    return users


def _user(
    name: str, items: Sequence[Item], shelves: Mapping[str, Sequence[Item]], genres: Sequence[str], seed: int
) -> User:
    rng = rng_for(seed, "user", name)
    fashion = [(rank + 1) ** -FASHION for rank in range(len(genres))]
    tastes = rng.choices(genres, fashion)
    while len(tastes) < 2:
        (other,) = rng.choices(genres, fashion)
        tastes += [other] * (other != tastes[0])
    taken: set[str] = set()
    sessions: list[tuple[Item, ...]] = []
    for number in range(4):
        length = 3 if number == 0 else rng.randint(5, 6)
        shelf = shelves[tastes[number % 2]]
        session = [_choose(items if rng.random() < STRAY else shelf, taken, rng) for _ in range(length)]
        sessions.append(tuple(session))
    return User(name, tuple(sessions))


def _choose(items: Sequence[Item], taken: set[str], rng: random.Random) -> Item:
    free = [item for item in items if item.docid not in taken]
    (item,) = rng.choices(free, [item.popularity for item in free])
    taken.add(item.docid)
    return item


def _problem(
    domain: str, user: User, window: int, items: Sequence[Item], counts: Mapping[str, int], seed: int
) -> Problem:
    """The problem whose positive ends the session number `window + 1` of the user."""
    qid = f"rec-{user.name}-{window}"
    rng = rng_for(seed, qid)
    before = [item for session in user.sessions[: window + 2] for item in session]
    positive = before.pop()
    later = rng.sample(user.sessions[window + 2], rng.randint(1, 2))
    chosen = {item.docid for item in user.chosen}
    never = [item for item in items if item.docid not in chosen]
    pool = [positive, *later, *rng.sample(never, POOL_SIZE - 1 - len(later))]
    rng.shuffle(pool)
    return Problem(
        qid=qid,
        task=f"rec-{domain}",
        scenario="recommendation",
        history=tuple(item.title for item in before[-rng.randint(6, 8) :]),
        candidates=tuple(Candidate(item.docid, item.text) for item in pool),
        gains={positive.docid: 2} | {item.docid: 1 for item in later},
        relevant_at=2,
        prior={item.docid: float(counts.get(item.docid, 0)) for item in pool},
        group=user.name,
    )
