"""`r1ranker serve`: rankers over HTTP."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from r1ranker.cli.common import errors
from r1ranker.io.extras import library


def serve(
    model: Annotated[str | None, typer.Option(help="Directory, hub name, nano or smol; default nano.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of rankers, keys and limits (docs/serving.md).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; another than this machine's needs keys.")] = (
        None
    ),
    port: Annotated[int | None, typer.Option(help="Port to listen on; default 8100.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line in the log for each request.")] = False,
) -> None:
    """Serve rankers over HTTP, in the shapes of Cohere, Jina, vLLM, TEI and Voyage.

    Example: `r1ranker serve --model smol`

    Several rankers, keys, limits: `r1ranker serve --config serve.yaml`
    """
    with errors():
        uvicorn = library("uvicorn", "serve")
        library("fastapi", "serve")
        from r1ranker.serving.app import GRACE_SECONDS, create_app, log_to_stderr
        from r1ranker.serving.settings import load_settings

        changes: dict[str, Any] = {"rankers": {Path(model).name: {"model": model}}} if model else {}
        changes |= {key: value for key, value in (("host", host), ("port", port)) if value is not None}
        settings = load_settings(config, changes)
        for spec in settings.rankers.values():
            spec.check()
        for upstream in settings.upstreams.values():
            upstream.check()
        # uvicorn finishes what runs, and then raises the signal again: told to stop, it has done as it was told.
        signal.signal(signal.SIGTERM, lambda *_: None)
        log_to_stderr(logging.WARNING if quiet else logging.INFO)
        uvicorn.run(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            http="h11",  # whose limit on headers can be set
            h11_max_incomplete_event_size=settings.limits.header_bytes,
            limit_concurrency=settings.limits.connections,
            timeout_graceful_shutdown=int(GRACE_SECONDS),
            server_header=False,
            log_config=None,
            access_log=False,
        )
