"""Items that can be recommended, and the first stages that draw a pool from them.

    catalogues = read_catalogues({"films": CatalogueSettings(items=Path("films.csv"))})
    drawn = catalogues["films"].draw("space opera", ["Alien (1979)"], exclude=["f7"])
    drawn.problem.candidates      # a pool for the model, which is `items`' part

In: files of items, and perhaps of interactions; then a query, a history, or both. Out: `Problem`s. What is asked by
words is found by BM25, a history by the catalogue's first stage; of both, the best of each in turn; then come the most
popular ones. All items are scored at once, in arrays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from r1ranker.datasets.csv_ import read_events, read_items
from r1ranker.datasets.recommendation import histories_of
from r1ranker.errors import DataError, R1RankerError
from r1ranker.io.bm25 import scorer
from r1ranker.io.strict import Strict
from r1ranker.problem import Candidate, Problem
from r1ranker.scenarios import SCENARIOS

log = logging.getLogger(__name__)

FirstStage = Literal["bm25", "item-knn", "bpr"]
Shown = Literal["prior", "bm25", "item-knn", "bpr"]
Stage = Callable[[str, Sequence[int]], Any]
"""Scores of all items, an array, for a query and the places of a history's items, oldest first."""
NAMED = 10
"""Unknown items that a warning names, at most."""


class CatalogueSettings(Strict):
    """One catalogue. Columns have the names that source `csv` gives them: `data.0.options` of the same words.

    items: CSV, or JSON Lines (`.jsonl`). item_id: None is `item`. details: more columns, read behind the title.
    interactions: who took what; with it the first stage may be item-knn (then the default) or bpr.
    pool: items that the model ranks. history: items of a history that are read, the last ones.
    show: the model reads the candidates' places by these rankers, as in `data.show`; true: by the first stage.
    """

    items: Path
    item_id: str | None = None
    title: str = "title"
    details: tuple[str, ...] = ()
    interactions: Path | None = None
    user: str = "user"
    item: str = "item"
    rating: str | None = None
    time: str | None = None
    min_rating: float | None = None
    first_stage: FirstStage | None = None
    pool: int = Field(100, ge=2)
    history: int = Field(20, ge=1)
    show: bool | tuple[Shown, ...] = False

    @property
    def stage(self) -> FirstStage:
        """What finds candidates for a history."""
        return self.first_stage or ("item-knn" if self.interactions else "bm25")

    @property
    def shown(self) -> tuple[Shown, ...]:
        """Rankers whose places the model reads."""
        if isinstance(self.show, bool):
            return (self.stage,) if self.show else ()
        return self.show

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> CatalogueSettings:
        learnt = [name for name in (self.stage, *self.shown) if name != "bm25"]
        if learnt and self.interactions is None:
            raise ValueError(f"{learnt[0]} learns from interactions: name their file by `interactions`")
        if self.min_rating is not None and self.rating is None:
            raise ValueError(f"min_rating {self.min_rating} needs ratings: name their column by `rating`")
        return self

    @property
    def columns_of_items(self) -> dict[str, str]:
        """Columns by option, as `read_items` wants them."""
        details = {f"details[{i}]": name for i, name in enumerate(self.details)}
        return {"item_id": self.item_id or self.item, "title": self.title} | details

    @property
    def columns_of_interactions(self) -> dict[str, str]:
        """Columns by option, as `read_events` wants them."""
        columns = {"user": self.user, "item": self.item, "rating": self.rating, "time": self.time}
        return {option: name for option, name in columns.items() if name}


@dataclass(frozen=True)
class Drawn:
    """A pool as a problem, best first by the first stages; None where nothing tells what is wanted."""

    problem: Problem | None
    warnings: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """Items by place in their file. places: by identifier, and by title (see `_key`), which several items may have.

    popularity: users who took each, an array. stages: by name, those that are needed.
    """

    settings: CatalogueSettings
    ids: Sequence[str]
    titles: Sequence[str]
    texts: Sequence[str]
    of_id: Mapping[str, int]
    of_title: Mapping[str, Sequence[int]]
    popularity: Any
    stages: Mapping[str, Stage]

    def draw(self, query: str = "", history: Sequence[str] = (), exclude: Iterable[str] = ()) -> Drawn:
        """The pool for a query, a history, or both. Nothing of the history, or of `exclude`, is in it.

        history, exclude: identifiers or titles; unknown ones of the history are told in the warnings.
        """
        known = [self._places(name) for name in history]
        warnings = _unknown([name for name, places in zip(history, known, strict=True) if not places])
        # Of items with one title any may be meant: the most popular one is read, and none is recommended.
        read = [max(places, key=self.popularity.__getitem__) for places in known if places][-self.settings.history :]
        if not (query or read):
            return Drawn(None, warnings)
        barred = set(chain(*known, *(self._places(name) for name in exclude)))
        if len(barred) == len(self.ids):
            nothing = "every item of the catalogue is in the history, or excluded"
            return Drawn(self._problem(query, read, ()), (*warnings, nothing))
        asked: list[tuple[str, str, Sequence[int], str]] = []
        if query:
            asked.append(("bm25", query, (), "query"))
        if read:
            asked.append((self.settings.stage, "", read, "history"))
        orders = []
        for name, words, items, what in asked:
            scores = self.stages[name](words, items)
            orders.append(self._best(scores, barred, scores.min()))
            if not orders[-1]:
                stand_in = "the most popular ones" if self.popularity.any() else "the first of the file"
                warnings = (*warnings, f"{name} finds no item for the {what}; {stand_in} stand in for them")
        in_turn = (place for places in zip_longest(*orders) for place in places if place is not None)
        filled = dict.fromkeys(chain(in_turn, self._best(self.popularity, barred)))
        pool = list(islice(filled, self.settings.pool))
        return Drawn(self._problem(query, read, pool), warnings, tuple(dict.fromkeys(name for name, *_ in asked)))

    def _places(self, name: str) -> Sequence[int]:
        """Items of this identifier; or else of this title."""
        place = self.of_id.get(name.strip())
        same = self.of_title.get(_key(name if place is None else self.titles[place]), ())
        return same if place is None else (place, *(other for other in same if other != place))

    def _best(self, scores: Any, barred: set[int], least: float = -np.inf) -> list[int]:
        """Places of the best items above `least`, enough for a pool; ties by popularity, then by place."""
        most, scores = self.settings.pool, np.array(scores, dtype=float)
        scores[list(barred)] = -np.inf
        found = np.flatnonzero(scores > least)
        if len(found) > most:  # only those that may be in it are sorted
            found = found[scores[found] >= np.partition(scores[found], -most)[-most]]
        order = np.lexsort((-self.popularity[found], -scores[found]))
        return [int(place) for place in found[order][:most]]

    def _problem(self, query: str, read: Sequence[int], pool: Sequence[int]) -> Problem:
        notes = self._notes(query, read, pool)
        return Problem(
            qid="query",
            task="serve",
            scenario="recommendation",
            query=query,
            history=tuple(self.titles[place] for place in read),
            candidates=tuple(
                Candidate(self.ids[place], self.texts[place], note) for place, note in zip(pool, notes, strict=True)
            ),
            nothing_found=not pool,
        )

    def _notes(self, query: str, read: Sequence[int], pool: Sequence[int]) -> list[str]:
        """The candidates' places in the pool by each ranker that is shown, as `baselines.notes` writes them."""
        notes: list[list[str]] = [[] for _ in pool]
        for name in self.settings.shown:
            scores = np.asarray(self.stages[name](query, read))
            if scores.min() == scores.max():
                continue  # it says nothing, such as item-kNN of a query
            label = SCENARIOS["recommendation"].prior if name == "prior" else name
            for place, i in enumerate(np.argsort(-scores[list(pool)], kind="stable"), start=1):
                notes[i].append(f"{label} {place}")
        return [" | ".join(note) for note in notes]


def read_catalogues(settings: Mapping[str, CatalogueSettings]) -> dict[str, Catalogue]:
    """Catalogues by name, read and fitted. Raises DataError or BackendError, which name the catalogue."""
    known: dict[str, Catalogue] = {}
    for name, one in settings.items():
        log.info("catalogue %s: reading %s", name, one.items)
        began = time.monotonic()
        try:
            known[name] = read_catalogue(one)
        except R1RankerError as error:
            raise type(error)(f"catalogues.{name}: {error}") from error
        size, seconds = len(known[name].ids), time.monotonic() - began
        log.info("catalogue %s: %d items, first stage %s, after %.1f s", name, size, one.stage, seconds)
    return known


def read_catalogue(settings: CatalogueSettings) -> Catalogue:
    """One catalogue. Raises DataError for a file that is not as the settings say."""
    titles, texts = read_items(settings.items, settings.columns_of_items)
    ids = [item for item, title in titles.items() if title]
    if not ids:
        raise DataError(f"{settings.items}: no item has a title; is {settings.title!r} the column that is meant?")
    if len(ids) < len(titles):
        log.warning("%s: %d items have no title and are left out", settings.items, len(titles) - len(ids))
    of_id = {item: place for place, item in enumerate(ids)}
    of_title: dict[str, list[int]] = {}
    for item, place in of_id.items():
        of_title.setdefault(_key(titles[item]), []).append(place)
    chosen = _chosen(settings, of_id)
    popularity = np.zeros(len(ids))
    for items in chosen.values():
        popularity[[of_id[item] for item in items]] += 1
    shown = [texts[item] for item in ids]
    names = [titles[item] for item in ids]
    stages: dict[str, Stage] = {"bm25": _by_words(shown, names), "prior": lambda _query, _history: popularity}
    for name in {settings.stage, *settings.shown} - stages.keys():
        stages[name] = _learnt(name, chosen, of_id)
    return Catalogue(settings, ids, names, shown, of_id, of_title, popularity, stages)


def _chosen(settings: CatalogueSettings, of_id: Mapping[str, int]) -> dict[str, dict[str, None]]:
    """Each user's items that the catalogue has, oldest first."""
    if settings.interactions is None:
        return {}
    histories = histories_of(read_events(settings.interactions, settings.columns_of_interactions), settings.min_rating)
    chosen = {user: dict.fromkeys(item for item in items if item in of_id) for user, items in histories.items()}
    left_out = len({item for items in histories.values() for item in items} - of_id.keys())
    if not any(chosen.values()):
        raise DataError(f"{settings.interactions}: none of its items is in {settings.items}; do they belong together?")
    if left_out:
        log.warning("%s: %d items are not in %s and are left out", settings.interactions, left_out, settings.items)
    return {user: items for user, items in chosen.items() if items}


def _by_words(texts: Sequence[str], titles: Sequence[str]) -> Stage:
    """BM25 of all texts for the query and the titles of the history, as baseline `bm25`."""
    score = scorer(texts)
    return lambda query, history: next(score([" ".join([query, *(titles[place] for place in history)])]))


def _learnt(name: str, chosen: Mapping[str, Iterable[str]], of_id: Mapping[str, int]) -> Stage:
    """A recommender by name; items that no user took stand behind all others."""
    from r1ranker.baselines.recommenders import RECOMMENDERS, Log  # here: they need torch

    known = Log.of(chosen)
    scores = RECOMMENDERS[name](known)
    places = np.array([of_id[item] for item in known.numbers])
    number_of = {int(place): number for number, place in enumerate(places)}

    def stage(_query: str, history: Sequence[int]) -> Any:
        found = scores([number_of[place] for place in history if place in number_of])
        values = np.full(len(of_id), min(0.0, found.min()))
        values[places] = found
        return values

    return stage


def _key(title: str) -> str:
    """Titles that differ in case or white space alone are one."""
    return " ".join(title.split()).casefold()


def _unknown(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    shown = ", ".join(repr(name[:100]) for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return (f"history: {len(names)} not in the catalogue and left aside: {shown}",)
