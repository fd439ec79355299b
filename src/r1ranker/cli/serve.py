"""`r1ranker serve`: rankers over HTTP."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1ranker.cli.common import errors
from r1ranker.errors import ConfigError
from r1ranker.io.extras import library

if TYPE_CHECKING:
    from r1ranker.serving.settings import ServeSettings

HEADER_ROOM = 65_536
"""Bytes of headers above the limit that are still read, so that the refusal is one of ours."""


def serve(
    model: Annotated[str | None, typer.Option(help="Directory, hub name, nano or smol; default nano.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of rankers, keys and limits (docs/serving.md).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; another than this machine's needs keys.")] = (
        None
    ),
    port: Annotated[int | None, typer.Option(help="Port to listen on; default 8100.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Serve on a Ray cluster: the head's address, auto, or local for one that ends with this."),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: servers that share the load.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line in the log for each request.")] = False,
) -> None:
    """Serve rankers over HTTP, in the shapes of Cohere, Jina, vLLM, TEI and Voyage.

    Example: `r1ranker serve --model smol`

    Several rankers, keys, limits: `r1ranker serve --config serve.yaml`

    Several servers at one address: `r1ranker serve --model smol --ray local --replicas 2`
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
        level = logging.WARNING if quiet else logging.INFO
        if ray:
            _on_ray(settings, ray, replicas, level)
            return
        if replicas > 1:
            raise ConfigError("replicas are of Ray Serve: give --ray local too, or start as many servers yourself")
        log_to_stderr(level)
        app = create_app(settings)  # told to stop while it reads catalogues or loads models, the process ends
        app.state.service.start()  # here, not when uvicorn starts the app: what goes wrong is said as all commands do
        # uvicorn finishes what runs, and then raises the signal again: told to stop, it has done as it was told.
        signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            uvicorn.run(
                app,
                host=settings.host,
                port=settings.port,
                http="h11",  # whose limit on headers can be set: above ours, which refuses in words
                h11_max_incomplete_event_size=settings.limits.header_bytes + HEADER_ROOM,
                limit_concurrency=settings.limits.connections + 1,  # at which uvicorn refuses
                timeout_graceful_shutdown=int(GRACE_SECONDS),
                server_header=False,
                log_config=None,
                access_log=False,
            )
        finally:
            if not app.state.service.ended:  # a pass of the model outlasted the grace; torch would abort at the exit
                logging.shutdown()
                os._exit(0)


def _on_ray(settings: ServeSettings, address: str, replicas: int, level: int) -> None:
    """Until a signal says that it is enough."""
    from r1ranker.serving.ray_serve import serving

    enough = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: enough.set())
    with serving(settings, address, replicas=replicas, level=level):
        while not enough.wait(1.0):  # in turns, so that signals are seen
            pass
