"""The page at `/`. It holds no data: what it shows it asks for under the other paths of its server."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from r1ranker.serving.html import build

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The page in which rankings are watched. It needs no key: what it asks for does."""
    built = build({"mode": "serve"}, asks=True)
    return HTMLResponse(built.html, headers=dict(built.headers))
