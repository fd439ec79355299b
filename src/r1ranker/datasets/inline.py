"""Candidates from what a program has in memory. In: texts, dicts, a mapping or a table. Out: `Candidate`s.

    candidates_of(["About four years.", "It eats mice."])                       # docids 0 and 1, as in the list
    candidates_of([{"docid": "d7", "title": "Barn owl", "text": "..."}])        # other keys are left alone
    candidates_of({"d7": "About four years."})
    candidates_of(frame)                    # a DataFrame: a row each; columns as the keys above, else its index

Tables are known by what they can do (`to_dicts` of polars, `to_dict` of pandas), so that neither is needed here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from r1ranker.datasets.collection import ID_KEYS, OTHER_IDS, Document
from r1ranker.datasets.llm_outcomes import LLM
from r1ranker.datasets.llmrouter import OBJECTIVES, describe, objective_for
from r1ranker.datasets.rankllm import TEXT_KEYS, spaced
from r1ranker.errors import DataError
from r1ranker.io.documents import identifier_of, text_of
from r1ranker.io.text import finite
from r1ranker.problem import Candidate

Texts = Any
"""A sequence of texts or of dicts, a mapping of docid to either, or a table."""
NAME_KEYS = ("name", "model", *ID_KEYS)
ITEM_IDS = re.compile(f"{OTHER_IDS.pattern}|item([-_]?id)?", re.IGNORECASE)
"""Of what is ranked, as files name it and as tables do."""
FEATURE_KEYS = ("description", "feature", *TEXT_KEYS)


def candidates_of(texts: Texts) -> tuple[Candidate, ...]:
    """One candidate for each text, in order. DataError names the entry that has none, or that is no text."""
    return pool_of(texts)[0]


def pool_of(texts: Texts) -> tuple[tuple[Candidate, ...], dict[str, float]]:
    """`candidates_of`, and their prior: the first stage's scores where each entry has a `score`, else nothing."""
    found = entries(texts)
    return tuple(_candidate(docid, value) for docid, value in found), _prior(found)


def _prior(found: Sequence[tuple[str, Any]]) -> dict[str, float]:
    scored = {docid: one["score"] for docid, one in found if isinstance(one, Mapping) and "score" in one}
    if scored and len(scored) < len(found):
        without = next(docid for docid, _ in found if docid not in scored)
        raise DataError(f"entry {without!r} has no score, and others have: give each one, or leave them all out")
    return {docid: finite(str(score), f"entry {docid!r}: score") for docid, score in scored.items()}


def llms_of(llms: Texts) -> tuple[Candidate, ...]:
    """One candidate for each LLM: a name, or a dict with `name` and any of `description`, `size`, `input_price` and
    `output_price` (dollars per million tokens); a mapping of names to either; or a table."""
    return tuple(_llm(name, value) for name, value in entries(llms, NAME_KEYS, named=True))


def titles_of(history: Texts) -> tuple[str, ...]:
    """What a user chose, oldest first: the texts of the entries."""
    if isinstance(history, str):
        raise DataError(f"the history is the text {history[:80]!r}: give a list of what the user took, oldest first")
    return tuple(_candidate(docid, value).text for docid, value in entries(history))


def objective_of(objective: str | float) -> str:
    """What the model reads of quality and price: one of `OBJECTIVES` by name, a sentence of the caller's, or a number,
    the weight of quality from 0 (only price matters) to 1 (only quality), which is said as it is."""
    if isinstance(objective, str):
        near = difflib.get_close_matches(objective, OBJECTIVES, n=1, cutoff=0.75)
        if near and objective not in OBJECTIVES:
            raise DataError(f"objective {objective!r}: did you mean {near[0]!r}? Else say it in a sentence")
        return OBJECTIVES[objective].sentence if objective in OBJECTIVES else objective
    if isinstance(objective, bool) or not isinstance(objective, int | float) or not 0 <= objective <= 1:
        raise DataError(
            f"the weight of quality is {objective!r}: it is a number from 0, only price matters, to 1, only quality"
        )
    return objective_for(objective).sentence


def entries(given: Texts, id_keys: Sequence[str] = ID_KEYS, *, named: bool = False) -> list[tuple[str, Any]]:
    """(docid, text or dict) of each entry; named: a text by itself is its own docid, not its place in the list."""
    if is_table(given):
        return _rows(given, id_keys)
    if isinstance(given, Mapping) or hasattr(given, "items"):  # or one column of a table, whose index may repeat
        pairs = enumerate(given.items())
        return [(identifier_of(_plain(key), f"the name of entry {place}"), one) for place, (key, one) in pairs]
    if isinstance(given, str | Set) or not isinstance(given, Iterable):  # the entries of a set have no order
        raise DataError(f"a {type(given).__name__} holds no candidates: give a list, a mapping of docids, or a table")
    return [_entry(place, one, id_keys, named) for place, one in enumerate(given)]


def is_table(given: object) -> bool:
    """Whether it has rows and columns."""
    return hasattr(given, "columns") and (hasattr(given, "to_dicts") or hasattr(given, "to_dict"))


def _rows(table: Any, id_keys: Sequence[str]) -> list[tuple[str, Any]]:
    rows: list[dict[str, Any]] = table.to_dicts() if hasattr(table, "to_dicts") else table.to_dict("records")
    places = list(getattr(table, "index", range(len(rows))))
    rows = [{str(key): value for key, value in row.items() if not _is_missing(value)} for row in rows]
    without = [place for place, row in zip(places, rows, strict=True) if _id_key(row, id_keys) is None]
    if without and len(without) < len(rows):
        raise DataError(f"row {without[0]} has no identifier, and others have: give each one, or leave the column out")
    return [_entry(place, row, id_keys, named=False) for place, row in zip(places, rows, strict=True)]


def _id_key(one: Mapping[Any, Any], id_keys: Sequence[str]) -> str | None:
    known = next((key for key in id_keys if key in one), None)
    return known or next((key for key in one if isinstance(key, str) and ITEM_IDS.fullmatch(key)), None)


def _entry(place: Any, one: Any, id_keys: Sequence[str], named: bool) -> tuple[str, Any]:
    where = f"entry {place}"
    if isinstance(one, Mapping):
        key = _id_key(one, id_keys)
        return (str(place) if key is None else identifier_of(_plain(one[key]), f"{where}: {key}")), one
    return (identifier_of(one, where) if named else str(place)), one


def _candidate(docid: str, value: Any) -> Candidate:
    if not isinstance(value, Mapping):
        return Candidate(docid, _text(value, f"entry {docid!r}"))
    key = next((key for key in TEXT_KEYS if key in value), None)
    if key is None and "title" not in value:
        raise DataError(f"entry {docid!r} has no text: give it a key 'text', 'title' or both (it has {_keys(value)})")
    title = spaced(text_of(value.get("title"), f"entry {docid!r}: title"))
    body = "" if key is None else spaced(text_of(value[key], f"entry {docid!r}: {key}"))
    return Candidate(docid, _text(Document(title, body).text, f"entry {docid!r}"))


def _llm(name: str, value: Any) -> Candidate:
    if not isinstance(value, Mapping):
        text = _text(value, f"LLM {name!r}")
        return Candidate(name, text if text == name else f"{name} | {text}")
    size = text_of(value.get("size"), f"LLM {name!r}: size")
    feature = text_of(next((value[key] for key in FEATURE_KEYS if key in value), None), f"LLM {name!r}: description")
    prices = [_price(value[key], f"LLM {name!r}: {key}") for key in ("input_price", "output_price") if key in value]
    if len(prices) == 1:
        raise DataError(f"LLM {name!r} has one price: give input_price and output_price, in dollars per million tokens")
    if prices:
        return Candidate(name, describe(name, LLM(size, feature, *prices)))
    return Candidate(name, " | ".join(filter(None, (name, size, feature))))


def _price(value: Any, where: str) -> float:
    price = finite(str(value), where)
    if price < 0:
        raise DataError(f"{where} is {value!r}, and no price is negative")
    return price


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where} is {value!r}, not a text")
    return value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _plain(value: Any) -> Any:
    """A number of numpy's as one of Python's."""
    return value.item() if hasattr(value, "item") else value


def _keys(value: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, value)) or "none"
