"""The rerank family. One object for Cohere's, Jina's and vLLM's clients; beside it TEI, Voyage, /score.

In: a query and documents. Out: places and scores. Nothing extra stands inside a result: some clients refuse what they
do not know. How an order came about goes to one key at the top, `explain`, and only when asked.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from r1ranker.errors import DataError
from r1ranker.io.runs import RANKING
from r1ranker.problem import Candidate, Problem, Usage
from r1ranker.ranking.rankers import Ranker
from r1ranker.serving.bodies import (
    RerankBody,
    ScoreBody,
    VoyageBody,
    check,
    check_number,
    check_query,
    check_texts,
    read,
    texts_of,
)
from r1ranker.serving.errors import HttpError, json_response
from r1ranker.serving.service import Served, Service, while_there
from r1ranker.serving.settings import Limits

router = APIRouter(tags=["rerank"])
DECIMALS = 9
"""Of scores: enough to fall strictly over a thousand documents."""


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """The body's schema, for OpenAPI; FastAPI's own reading of bodies is stricter than clients are."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


@router.post("/rerank", openapi_extra=takes(RerankBody))
@router.post("/v1/rerank", openapi_extra=takes(RerankBody))
@router.post("/v2/rerank", openapi_extra=takes(RerankBody))
async def rerank(request: Request) -> Response:
    """Order documents for a query: Cohere's, Jina's and vLLM's shape; with `texts` for `documents`, TEI's."""
    body = await read(request, RerankBody)
    service: Service = request.app.state.service
    limits = service.settings.limits
    tei = body.texts is not None
    check_number(body.documents or (), limits, "documents")
    texts = body.texts if body.texts is not None else texts_of(body.documents or [], body.rank_fields)
    query = _checked(limits, body, texts, "texts" if tei else "documents")
    problem = _problem(query, texts, body)
    wants_all = bool(body.explain)
    work = service.rank(
        problem,
        ranker=body.model,
        top_n=None if tei else body.top_n,
        deadline_s=body.deadline_s,
        key=request.state.key,
        explain=wants_all,
    )
    served = await while_there(request, work)
    tell(request, served, len(texts))
    if tei:
        return json_response(
            [_tei_result(i, score, texts, body) for i, score in _places(served)], headers=warned(served)
        )
    places = _places(served)[: body.top_n or None]
    usage = served.ranking.usage
    answer: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "object": "list",
        "model": served.ranker,
        "results": [
            {"index": i, "relevance_score": score} | ({"document": {"text": texts[i]}} if body.return_documents else {})
            for i, score in places
        ],
        "usage": usage_of([usage]),
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": usage.prompt_tokens, "output_tokens": usage.generated_tokens},
        },
    }
    if served.warnings:
        answer["meta"]["warnings"] = list(served.warnings)
    if body.explain:
        answer["explain"] = explained(problem, served, service.rankers[served.ranker].ranker)
    return json_response(answer, headers=warned(served))


@router.post("/voyage/v1/rerank", openapi_extra=takes(VoyageBody))
async def voyage(request: Request) -> Response:
    """Order documents for a query: Voyage's shape."""
    body = await read(request, VoyageBody)
    service: Service = request.app.state.service
    texts = body.documents or []
    query = check(body.query, texts, service.settings.limits)
    problem = _problem(query, texts)
    work = service.rank(problem, ranker=body.model, top_n=body.top_k, key=request.state.key)
    served = await while_there(request, work)
    tell(request, served, len(texts))
    data = [
        {"index": i, "relevance_score": score} | ({"document": texts[i]} if body.return_documents else {})
        for i, score in _places(served)[: body.top_k or None]
    ]
    total = usage_of([served.ranking.usage])["total_tokens"]
    answer = {"object": "list", "data": data, "model": served.ranker, "usage": {"total_tokens": total}}
    return json_response(answer, headers=warned(served))


@router.post("/score", openapi_extra=takes(ScoreBody))
@router.post("/v1/score", openapi_extra=takes(ScoreBody))
async def score(request: Request) -> Response:
    """A score for each pair, in the order given: vLLM's shape. Documents of one query are ranked together."""
    body = await read(request, ScoreBody)
    service: Service = request.app.state.service
    queries = body.queries if body.queries is not None else body.text_1 or []
    texts = body.documents if body.documents is not None else body.text_2 or []
    limits = service.settings.limits
    pairs = _pairs(queries, texts)
    for query in dict.fromkeys(queries):
        check_query(query, limits, "queries")
    check_texts(texts, limits, beside=max(map(len, queries)))
    of_query: dict[str, list[int]] = {}
    for place, (query, _) in enumerate(pairs):
        of_query.setdefault(query, []).append(place)
    if len(of_query) > limits.queue:
        raise HttpError(413, f"queries: {len(of_query)} different ones; at most {limits.queue}", "queries", "too_large")
    problems = [_problem(q, [pairs[i][1] for i in places]) for q, places in of_query.items()]
    served = await while_there(request, _all_ranked(service, problems, body.model, request.state.key))
    scores = {
        places[i]: value for one, places in zip(served, of_query.values(), strict=True) for i, value in _places(one)
    }
    tell(request, served[0], len(pairs))
    return json_response(
        {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": served[0].ranker,
            "data": [{"index": i, "object": "score", "score": scores[i]} for i in range(len(pairs))],
            "usage": usage_of([one.ranking.usage for one in served]),
        },
        headers=warned(*served),
    )


async def _all_ranked(service: Service, problems: Sequence[Problem], ranker: str | None, key: str) -> list[Served]:
    tasks = [asyncio.ensure_future(service.rank(problem, ranker=ranker, key=key)) for problem in problems]
    try:
        return await asyncio.gather(*tasks)
    finally:  # where one is refused, nobody waits for the others
        for task in tasks:
            task.cancel()


def _pairs(queries: Sequence[str], texts: Sequence[str]) -> list[tuple[str, str]]:
    if not queries:
        raise HttpError(400, "queries: give at least one", "queries", "empty")
    if not texts:
        raise HttpError(400, "documents: give at least one", "documents", "empty")
    if len(queries) not in (1, len(texts)):
        message = f"queries: {len(queries)} for {len(texts)} documents; give one, or as many"
        raise HttpError(422, message, "queries", "invalid_value")
    return [(queries[0] if len(queries) == 1 else queries[i], text) for i, text in enumerate(texts)]


def _checked(limits: Limits, body: RerankBody, texts: list[str], param: str) -> str:
    history = body.history or []
    check_number(history, limits, "history")
    beside = [body.instruction or "", body.objective or "", *history]
    if sum(map(len, beside)) > limits.characters:
        raise HttpError(
            413, f"instruction, objective, history: at most {limits.characters} characters", code="too_large"
        )
    if history and not (body.query or "").strip():  # which a scenario that reads no history refuses itself
        check_texts(texts, limits, param)
        return ""
    return check(body.query, texts, limits, param)


def _problem(query: str, texts: Sequence[str], body: RerankBody | None = None) -> Problem:
    """The texts as candidates, named by their places."""
    candidates = tuple(Candidate(str(i), text) for i, text in enumerate(texts))
    body = body or RerankBody()
    try:
        return Problem(
            qid="query",
            task="serve",
            scenario=body.scenario or "passage",
            candidates=candidates,
            query=query,
            history=tuple(body.history or ()),
            objective=body.objective or "",
            instruction=body.instruction or "",
        )
    except DataError as error:
        raise HttpError(400, str(error)) from error


def _places(served: Served) -> list[tuple[int, float]]:
    """(place in the request, score), best first."""
    pairs = zip(served.ranking.docids, served.scores, strict=True)
    return [(int(docid), round(value, DECIMALS)) for docid, value in pairs]


def _tei_result(place: int, value: float, texts: Sequence[str], body: RerankBody) -> dict[str, Any]:
    shown = {"text": texts[place]} if body.return_text else {}
    return {"index": place, "score": value} | shown


def warned(*served: Served) -> dict[str, str]:
    """The header that says what a reader of these orders should know: some shapes have no other place for it."""
    warnings = dict.fromkeys(warning for one in served for warning in one.warnings)
    return {"x-r1ranker-warnings": "; ".join(warnings)} if warnings else {}


def usage_of(usages: Sequence[Usage]) -> dict[str, int]:
    """Tokens as OpenAI's clients read them."""
    read, written = sum(u.prompt_tokens for u in usages), sum(u.generated_tokens for u in usages)
    return {"prompt_tokens": read, "total_tokens": read + written}


def explained(problem: Problem, served: Served, ranker: Ranker) -> dict[str, Any]:
    """A trace's line, with what was asked: query, candidates, and whether steps name the worst or the best."""
    while hasattr(ranker, "inner"):
        ranker = ranker.inner
    asked = {
        "query": problem.query,
        "candidates": [{"docid": one.docid, "text": one.text} for one in problem.candidates],
        "ask": getattr(ranker, "ask", None),
    }
    return RANKING.dump_python(served.ranking, mode="json") | asked  # type: ignore[no-any-return]


def tell(request: Request, served: Served, documents: int) -> None:
    """What the log says of it: sizes, never texts."""
    request.state.told = {
        "model": served.ranker,
        "documents": documents,
        "steps": len(served.ranking.steps),
        "cut_short": bool(served.ranking.usage.cut_short),
    }
