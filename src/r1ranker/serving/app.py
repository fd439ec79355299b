"""The application: middleware, routes and errors put together. In: settings. Out: an ASGI app for uvicorn."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from r1ranker.serving import health, items, page, rerank, route
from r1ranker.serving.catalogue import read_catalogues
from r1ranker.serving.errors import HttpError, causes, error_response
from r1ranker.serving.guard import Guard
from r1ranker.serving.service import Service
from r1ranker.serving.settings import ServeSettings

GRACE_SECONDS = 10.0
"""How long what runs may take to finish once the server is told to stop."""


def create_app(settings: ServeSettings) -> FastAPI:
    """The app. Catalogues are read here, models are loaded when it starts, unless its service was started before.

    Raises R1RankerError for a catalogue.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.close, GRACE_SECONDS)

    # No documentation pages: they load scripts of others into this origin. The schema is at /openapi.json.
    app = FastAPI(title="r1-ranker", lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None)
    app.state.service = Service(settings)
    app.state.catalogues = read_catalogues(settings.catalogues)
    app.add_middleware(Guard, settings=settings)
    app.add_exception_handler(HttpError, _refused)
    app.add_exception_handler(HTTPException, _not_here)
    app.include_router(health.router)
    app.include_router(rerank.router)
    app.include_router(items.router)
    app.include_router(page.router)
    app.include_router(route.router)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    request.state.failure = error
    return error_response(error, getattr(request.state, "family", ""))


async def _not_here(request: Request, error: Exception) -> Response:
    """A path or a method that no route has, in the shape of all errors."""
    assert isinstance(error, HTTPException)
    return error_response(HttpError(error.status_code, str(error.detail), headers=error.headers))


class JsonLines(logging.Formatter):
    """A line of the log as a JSON object. What a request was about stands in none."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{when}.{int(record.msecs):03}Z", "level": record.levelname.lower()}
        told = getattr(record, "request", None)
        line |= told if told is not None else {"message": record.getMessage()}
        if record.exc_info and record.exc_info[1]:
            line["causes"] = causes(record.exc_info[1])
        return json.dumps(line)


def log_to_stderr(level: int = logging.INFO) -> None:
    """The server's log as JSON Lines on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("r1ranker", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level if name == "r1ranker" else logging.WARNING)
