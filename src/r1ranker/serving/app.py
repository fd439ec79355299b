"""The application: middleware, routes and errors put together. In: settings. Out: an ASGI app for uvicorn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from r1ranker.serving import health, rerank
from r1ranker.serving.errors import HttpError, error_response
from r1ranker.serving.guard import Guard
from r1ranker.serving.service import Service
from r1ranker.serving.settings import ServeSettings

log = logging.getLogger(__name__)
GRACE_SECONDS = 10.0
"""How long what runs may take to finish once the server is told to stop."""


def create_app(settings: ServeSettings) -> FastAPI:
    """The app; models are loaded when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.close, GRACE_SECONDS)

    app = FastAPI(title="r1-ranker", lifespan=lifespan, redirect_slashes=False)
    app.state.service = Service(settings)
    app.add_middleware(Guard, settings=settings)
    app.add_exception_handler(HttpError, _refused)
    app.add_exception_handler(Exception, _broken)
    app.include_router(health.router)
    app.include_router(rerank.router)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error_response(error, getattr(request.state, "family", ""))


async def _broken(request: Request, error: Exception) -> Response:
    name = getattr(request.state, "request_id", "")
    log.error("request %s failed", name, exc_info=error)
    message = f"something went wrong here; the log has more under request id {name}"
    return error_response(HttpError(500, message, code="internal"), getattr(request.state, "family", ""))
