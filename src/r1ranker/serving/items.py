"""/v1/recommend: items of a catalogue for a user. In: a history, a query, or both. Out: items and scores, best first.

The catalogue's first stage draws a pool, and the model ranks it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from r1ranker.problem import Problem
from r1ranker.ranking.luce import asked_about
from r1ranker.serving.bodies import RecommendBody, check_number, read
from r1ranker.serving.catalogue import Catalogue, Drawn
from r1ranker.serving.errors import HttpError, json_response
from r1ranker.serving.rerank import DECIMALS, explained, takes, tell, usage_of, warned
from r1ranker.serving.service import Served, Service, while_there
from r1ranker.serving.settings import Limits

router = APIRouter(tags=["recommend"])


@router.post("/v1/recommend", openapi_extra=takes(RecommendBody))
@router.post("/recommend", openapi_extra=takes(RecommendBody))
async def recommend(request: Request) -> Response:
    """Items of a catalogue for a history, a query, or both."""
    body = await read(request, RecommendBody)
    service: Service = request.app.state.service
    name, catalogue = named(request.app.state.catalogues, body.catalogue)
    service.named(body.model, request.state.key)  # before any work
    query, history = check(body, service.settings.limits)
    drawn = await asyncio.to_thread(catalogue.draw, query, history, body.exclude or ())
    problem = drawn.problem
    if problem is None:
        message = "history: none of it is in the catalogue; give a query, or other items"
        raise HttpError(400, message, "history", "unknown_items")
    work = service.rank(
        problem,
        ranker=body.model,
        top_n=body.top_n,
        deadline_s=body.deadline_s,
        key=request.state.key,
        explain=bool(body.explain),
        reach=True,
    )
    served = await while_there(request, work)
    tell(request, served, len(problem.candidates))
    answer = _answer(name, drawn, problem, served, body.top_n)
    if warnings := (*drawn.warnings, *_unread(problem, served), *served.warnings):
        answer["meta"]["warnings"] = list(warnings)
    if body.explain:
        answer["explain"] = explained(problem, served, service.rankers[served.ranker].ranker)
    return json_response(answer, headers=warned(served))


def named(catalogues: Mapping[str, Catalogue], name: str | None) -> tuple[str, Catalogue]:
    """The catalogue that is asked for; without a name, the only one. HttpError 404 with the names there are."""
    if name is None and len(catalogues) == 1:
        name = next(iter(catalogues))
    if name is None or name not in catalogues:
        there = f"there are {', '.join(catalogues)}" if catalogues else "the settings name none"
        wrong = "say which catalogue is meant" if name is None else f"there is no catalogue {name[:100]!r} here"
        raise HttpError(404, f"{wrong}; {there}", "catalogue", "catalogue_not_found")
    return name, catalogues[name]


def check(body: RecommendBody, limits: Limits) -> tuple[str, list[str]]:
    """Query and history. HttpError where neither says anything, and for more than the limits allow."""
    check_number(body.history or (), limits, "history")
    check_number(body.exclude or (), limits, "exclude")
    query, history = (body.query or "").strip(), [name for name in body.history or () if name.strip()]
    if not (query or history):
        raise HttpError(400, "history: give items that the user took, or a query", "history", "empty")
    for param, texts in (("query", [query]), ("history", history), ("exclude", body.exclude or [])):
        most = limits.all_characters if param == "exclude" else limits.characters
        if sum(map(len, texts)) > most:
            raise HttpError(413, f"{param}: at most {most} characters", param, "too_large")
    return query, history


def _answer(name: str, drawn: Drawn, problem: Problem, served: Served, top_n: int | None) -> dict[str, Any]:
    texts = {candidate.docid: candidate.text for candidate in problem.candidates}
    usage = served.ranking.usage
    ranked = list(zip(served.ranking.docids, served.scores, strict=True))[: top_n or None]
    return {
        "id": str(uuid.uuid4()),
        "object": "list",
        "model": served.ranker,
        "catalogue": name,
        "results": [
            {"id": item, "text": texts[item], "relevance_score": round(score, DECIMALS)} for item, score in ranked
        ],
        "usage": usage_of([usage]),
        "meta": {
            "first_stage": " and ".join(drawn.stages),
            "pool": len(problem.candidates),
            "tokens": {"input_tokens": usage.prompt_tokens, "output_tokens": usage.generated_tokens},
        },
    }


def _unread(problem: Problem, served: Served) -> list[str]:
    """What is told of a pool that the model did not read whole."""
    read, pool = len(asked_about(served.ranking.steps)), len(problem.candidates)
    if read in (0, pool):
        return []
    return [f"the model read {read} of {pool} candidates; the others stand as the first stage has them"]
