"""From users' histories to recommendation problems: split by user, choose targets, draw negatives.

In: item ids per user, oldest first (`histories_of` makes them of rated events), and titles by item. Out: `Splits`;
next in the data flow is `prompts`.

    recommendation_problems({"12": ["50", "181", ...]}, {"50": "Star Wars (1977)", ...}, task="rec-movie")
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Literal, NamedTuple, TypedDict

from r1ranker.datasets.common import SPLIT_NAMES, split_groups, take
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Candidate, Problem, Splits, rng_for

log = logging.getLogger(__name__)

Negatives = Literal["uniform", "popularity"]


class RecommendationOptions(TypedDict, total=False):
    """Options of every recommendation source; the defaults are those of `recommendation_problems`."""

    history: int
    pool_size: int
    negatives: Negatives
    windows_per_user: int
    min_items: int


class Event(NamedTuple):
    """A user met an item. where: file and line. rating: None where the source has none."""

    where: str
    user: str
    item: str
    time: float
    rating: float | None = None


def histories_of(
    events: Iterable[Event], min_rating: float | None = None, *, tie_by_item: bool = False
) -> dict[str, list[str]]:
    """Each user's items by time; at one time in the order of the events, or by item, numbers by their value.

    An item may come again at another time. At the same time it may stand twice only with the same rating.
    min_rating: events rated lower are left out.
    """
    if min_rating is not None and not math.isfinite(min_rating):
        raise ConfigError(f"min_rating {min_rating} is not a finite number")
    rated: dict[str, dict[tuple[float, str], float | None]] = defaultdict(dict)
    for where, user, item, time, rating in events:
        known = rated[user].setdefault((time, item), rating)
        if known != rating:
            raise DataError(
                f"{where}: user {user!r} rates item {item!r} {rating} here and {known} before, at the same time; "
                "keep one of them"
            )
    histories: dict[str, list[str]] = {}
    for user, pairs in rated.items():
        kept = [pair for pair, rating in pairs.items() if rating is None or min_rating is None or rating >= min_rating]
        histories[user] = [item for _, item in sorted(kept, key=_by_item if tie_by_item else itemgetter(0))]
    return histories


def _by_item(event: tuple[float, str]) -> tuple[float, int, str, str]:
    """Time, then item: among numbers, padded with zeros or not, the shorter is the smaller."""
    time, item = event
    number = item.lstrip("0")
    return time, len(number), number, item


class NegativeSampler:
    """Draws items without replacement: uniformly, or in proportion to `weights` where they are given.

    Two items with one text would make a pool ambiguous, so items are kept apart by their text.
    """

    def __init__(self, texts: Mapping[str, str], weights: Mapping[str, int] | None = None) -> None:
        weighed = dict.fromkeys(texts, 1) if weights is None else weights
        self.texts = texts
        self.items = sorted(item for item in texts if weighed.get(item, 0) > 0)
        self.cumulative = list(accumulate(weighed[item] for item in self.items))
        self.distinct = {texts[item] for item in self.items}

    def draw(self, rng: random.Random, taken: set[str], count: int) -> list[str]:
        """`count` items whose texts are not in `taken`; a taken one is drawn again."""
        free = len(self.distinct) - len(self.distinct & taken)
        if free < count:
            raise DataError(
                f"only {free} items are left to draw {count} negatives from; lower pool_size, or use "
                "negatives=uniform with a larger catalogue"
            )
        taken, drawn = set(taken), list[str]()
        while len(drawn) < count:
            item = rng.choices(self.items, cum_weights=self.cumulative)[0]
            if self.texts[item] not in taken:
                taken.add(self.texts[item])
                drawn.append(item)
        return drawn


@dataclass(frozen=True)
class Windows:
    """What the users of a task chose, to make problems of it.

    popularity: how often each item was chosen in training. history, pool_size: of each problem.
    """

    task: str
    titles: Mapping[str, str]
    candidates: Mapping[str, Candidate]
    popularity: Mapping[str, int]
    sampler: NegativeSampler
    history: int = 20
    pool_size: int = 20

    def problem(
        self, items: Sequence[str], target: int, *, name: str, group: str, counted: bool, rng: random.Random
    ) -> Problem:
        """The problem of a user, who chose `items`, with the one at place `target` as the positive.

        counted: popularity counts this very choice. A new user's target has no such count, and in a long tail one more
        is much, so it is taken off.
        """
        # All the user ever consumed is barred, later items too: a negative must not be a future positive.
        consumed = {self.candidates[item].text for item in items}
        pool = [items[target], *self.sampler.draw(rng, consumed, self.pool_size - 1)]
        rng.shuffle(pool)
        own = {items[target]: 1} if counted else {}
        return Problem(
            qid=f"{self.task}:{name}",  # one user may stand in two sources of a run
            task=self.task,
            scenario="recommendation",
            history=tuple(self.titles[item] for item in items[max(0, target - self.history) : target]),
            candidates=tuple(self.candidates[item] for item in pool),
            gains={items[target]: 1},
            prior={item: float(self.popularity.get(item, 0) - own.get(item, 0)) for item in pool},
            group=group,
        )


def _clean(histories: Mapping[str, Sequence[str]], titles: Mapping[str, str], min_items: int) -> dict[str, list[str]]:
    """Each user's distinct titled items, first occurrence kept; users with fewer than `min_items` dropped."""
    met = {item for items in histories.values() for item in items}
    untitled = met - titles.keys()
    if untitled and len(untitled) == len(met):
        raise DataError(
            f"none of the {len(met)} items, such as {min(met)!r}, has a title; do the files belong together?"
        )
    if untitled:
        log.warning("%d items have no title and are dropped, of %d", len(untitled), len(met))
    titled = {user: [i for i in dict.fromkeys(items) if i in titles] for user, items in histories.items()}
    kept = {user: items for user, items in titled.items() if len(items) >= min_items}
    if titled and not kept:
        most = max(map(len, titled.values()))
        told = "no user of %d has min_items=%d different items with a title (the most: %d): set options.min_items lower"
        log.warning(told, len(titled), min_items, most)
    return kept


def _targets(length: int, split: str, windows: int, least: int, rng: random.Random) -> list[int]:
    """Places of the targets in a history: the last; for training users also earlier ones with a past."""
    last = length - 1
    if split != "train":
        return [last]
    return [*sorted(rng.sample(range(least, last), min(windows - 1, last - least))), last]


def recommendation_problems(
    histories: Mapping[str, Sequence[str]],
    titles: Mapping[str, str],
    *,
    task: str,
    seed: int = 0,
    limit: int | None = None,
    texts: Mapping[str, str] | None = None,
    history: int = 20,
    pool_size: int = 20,
    negatives: Negatives = "uniform",
    windows_per_user: int = 4,
    min_items: int = 6,
) -> Splits:
    """Problems from users' histories (oldest item first), split by user before anything else is made.

    A dev or test user gives one problem: the last item is the positive. A training user gives up to
    `windows_per_user`, whose targets are the last item and earlier ones. `texts` are what candidates show
    where it is more than the title. `prior` counts interactions of training users only, and never a user's own.
    Negatives by popularity are drawn by this count and one more, among all items that a user chose: an item that no
    training user chose may be a positive, so it must be a negative at times, or its popularity, 0, would give it away.
    """
    if min(history, windows_per_user, pool_size - 1, min_items - 1) < 1:
        raise ConfigError("history and windows_per_user must be >= 1, pool_size and min_items >= 2")
    if negatives not in ("uniform", "popularity"):
        raise ConfigError(f"negatives {negatives!r} is not one of uniform, popularity")
    titles = {item: title for item, title in titles.items() if title.strip()}
    kept = _clean(histories, titles, min_items)
    side = split_groups(kept, seed)
    popularity = Counter(item for user, items in kept.items() if side[user] == "train" for item in items)
    shown = {item: (texts or titles)[item] for item in titles}
    weights = {item: popularity[item] + 1 for items in kept.values() for item in items}
    sampler = NegativeSampler(shown, weights if negatives == "popularity" else None)
    candidates = {item: Candidate(item, text) for item, text in shown.items()}
    windows = Windows(task, titles, candidates, popularity, sampler, history, pool_size)

    def problem(user: str, target: int) -> Problem:
        items, of_user = kept[user], f"u{user}"
        name = f"{of_user}:{'last' if target == len(items) - 1 else target}"
        counted, rng = side[user] == "train", rng_for(seed, task, name)
        return windows.problem(items, target, name=name, group=of_user, counted=counted, rng=rng)

    chosen: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLIT_NAMES}
    for user, items in kept.items():
        rng = rng_for(seed, "windows", user)
        targets = _targets(len(items), side[user], windows_per_user, min_items - 1, rng)
        chosen[side[user]] += [(user, target) for target in targets]
    return {
        # Limiting before building: a large source has millions of candidates that nobody asked for.
        split: [problem(*pair) for pair in take(pairs, limit, rng_for(seed, "limit", task, split))]
        for split, pairs in chosen.items()
    }
