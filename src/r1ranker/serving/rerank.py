"""The rerank family: one object on three paths that Cohere's, Jina's and vLLM's clients read."""

from __future__ import annotations

import json
import uuid
from typing import Any

from fastapi import APIRouter, Request, Response

from r1ranker.problem import Candidate, Problem
from r1ranker.serving.errors import HttpError, json_response
from r1ranker.serving.service import Service

router = APIRouter()


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(request: Request) -> Response:
    """Order documents for a query."""
    service: Service = request.app.state.service
    try:
        body: dict[str, Any] = json.loads(await request.body())
        documents = [one if isinstance(one, str) else one["text"] for one in body["documents"]]
        candidates = tuple(Candidate(str(i), text) for i, text in enumerate(documents))
        problem = Problem("query", "serve", "passage", candidates, body["query"])
    except (ValueError, LookupError, TypeError) as error:
        raise HttpError(400, "a body has a query and documents") from error
    served = await service.rank(problem, ranker=body.get("model"), top_n=body.get("top_n"), key=request.state.key)
    results = [
        {"index": int(docid), "relevance_score": score}
        for docid, score in zip(served.ranking.docids, served.scores, strict=True)
    ][: body.get("top_n") or None]
    usage = served.ranking.usage
    total = usage.prompt_tokens + usage.generated_tokens
    return json_response(
        {
            "id": str(uuid.uuid4()),
            "object": "list",
            "model": served.ranker,
            "results": results,
            "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": total},
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        }
    )
