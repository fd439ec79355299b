"""Is it there, and can it answer."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from r1ranker.serving.errors import json_response
from r1ranker.serving.service import Service

router = APIRouter()


@router.get("/health")
@router.get("/ready")
async def health(request: Request) -> Response:
    """200 where all rankers answer."""
    service: Service = request.app.state.service
    state = {name: live.healthy for name, live in service.rankers.items()}
    return json_response({"rankers": state}, 200 if state and all(state.values()) else 503)
