"""Bodies of the rerank family and of /v1/recommend: what clients send, read as leniently as they need.

In: JSON. Out: requests whose every limit holds. Unknown fields are left aside; but those that name an address or a key
of another server are refused, since nothing is ever sent, or fetched from, where a request says.
"""

from __future__ import annotations

import json
from collections.abc import Sized
from typing import Annotated, Any, TypeVar

import pydantic_core
from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from r1ranker.serving.body import REFUSED
from r1ranker.serving.errors import HttpError
from r1ranker.serving.settings import Limits

Documents = list[str | dict[str, Any]]


def _one(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


Texts = Annotated[list[str], BeforeValidator(_one)]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class RerankBody(_Lenient):
    """Cohere's v1 and v2, Jina's and vLLM's in one. `texts` in place of `documents` is TEI's, and gets TEI's shape.

    top_n: how many results; none or 0: all. rank_fields: of documents that are objects.
    Ours: instruction (what is wanted, in your words), scenario, history, objective, deadline_s, explain.
    """

    query: str | None = None
    documents: Documents | None = Field(None, description="texts, or objects with a text")
    texts: Texts | None = None
    model: str | None = None
    top_n: int | None = Field(None, ge=0)
    return_documents: bool | None = None
    return_text: bool | None = None
    rank_fields: list[str] | None = None
    instruction: str | None = None
    scenario: str | None = Field(None, max_length=100)
    history: list[str] | None = None
    objective: str | None = None
    deadline_s: float | None = Field(None, gt=0)
    explain: bool | None = None


class VoyageBody(_Lenient):
    """Voyage's."""

    query: str | None = None
    documents: Texts | None = None
    model: str | None = None
    top_k: int | None = Field(None, ge=0)
    return_documents: bool | None = None
    truncation: bool | None = None


class ScoreBody(_Lenient):
    """vLLM's: one query with many documents, or as many of both; `text_1` and `text_2` are other names for them."""

    model: str | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None


class RecommendBody(_Lenient):
    """Ours. history: what the user took, oldest first, as identifiers or titles of the catalogue; or a query; or both.

    exclude: more identifiers or titles that are not wanted. top_n: how many results; none or 0: the whole pool.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    catalogue: str | None = None
    history: list[str] | None = None
    query: str | None = None
    exclude: list[str] | None = None
    model: str | None = None
    top_n: int | None = Field(None, ge=0)
    deadline_s: float | None = Field(None, gt=0)
    explain: bool | None = None


Body = TypeVar("Body", bound=BaseModel)


async def read(request: Request, model: type[Body]) -> Body:
    """The body as such a model. HttpError 400 for what is no JSON object, 422 for a field of the wrong kind."""
    try:
        raw = pydantic_core.from_json(await request.body(), allow_inf_nan=False)
    except ValueError as error:
        raise HttpError(400, "the body is not JSON", code="invalid_json") from error
    if not isinstance(raw, dict):
        raise HttpError(400, "the body is no JSON object", code="invalid_json")
    if model is RerankBody and raw.get("texts") is not None:
        request.state.family = "tei"
    for name in REFUSED:
        if name in raw:
            raise HttpError(400, f"{name}: what is asked, and by which key, stands in the server's settings", name)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"][:2])[:100]
        raise HttpError(422, f"{where}: {first['msg']}", where.partition(".")[0], "invalid_value") from error


def texts_of(documents: Documents, fields: list[str] | None) -> list[str]:
    """What is read of each document: itself, the fields named, else its text, else all of it as lines of YAML."""
    place = {name: at for at, name in enumerate(dict.fromkeys(fields or ()))}
    return [document if isinstance(document, str) else _text(document, place) for document in documents]


def _text(document: dict[str, Any], place: dict[str, int]) -> str:
    """place: of the fields that are read, by name; none where none are named."""
    if not place and isinstance(document.get("text"), str):
        return str(document["text"])
    # The fewer of both are gone through: a body may have many fields, and many documents.
    named = sorted(document.keys() & place.keys(), key=place.__getitem__)
    shown = {name: document[name] for name in named} if place else document
    if len(shown) == 1:
        return _plain(next(iter(shown.values())))
    return "\n".join(f"{name}: {_plain(value)}" for name, value in shown.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def check(query: str | None, texts: list[str] | None, limits: Limits, param: str = "documents") -> str:
    """The query. HttpError for one that is blank, for no documents, and for more than the limits allow."""
    found = check_query(query, limits)
    check_texts(texts, limits, param, beside=len(found))
    return found


def check_query(query: str | None, limits: Limits, param: str = "query") -> str:
    """The query. HttpError for one that is blank or too long."""
    if query is None or not query.strip():
        raise HttpError(400, f"{param}: give one; it is empty", param, "empty")
    if len(query) > limits.characters:
        message = f"{param}: it has {len(query)} characters; at most {limits.characters}"
        raise HttpError(413, message, param, "too_large")
    return query


def check_texts(texts: list[str] | None, limits: Limits, param: str = "documents", beside: int = 0) -> None:
    """HttpError for no documents, and for more than the limits allow. beside: characters of the query."""
    if not texts:
        raise HttpError(400, f"{param}: give at least one", param, "empty")
    check_number(texts, limits, param)
    longest = max(map(len, texts))
    if longest > limits.characters:
        message = f"{param}: one text has {longest} characters; at most {limits.characters}"
        raise HttpError(413, message, param, "too_large")
    total = beside + sum(map(len, texts))
    if total > limits.all_characters:
        message = f"{param}: {total} characters in all; at most {limits.all_characters}"
        raise HttpError(413, message, param, "too_large")


def check_number(texts: Sized, limits: Limits, param: str) -> None:
    """HttpError for more texts than a request may have: before any work is done for each of them."""
    if len(texts) > limits.documents:
        raise HttpError(413, f"{param}: {len(texts)} of them; at most {limits.documents}", param, "too_large")
