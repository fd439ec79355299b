"""The same app on a Ray cluster, in several replicas behind Ray Serve's HTTP proxies.

    with serving(settings, "local", replicas=2): ...

In: settings. Out: an address that answers as `r1ranker serve` does. Each replica holds the rankers of the settings. A
replica that dies is replaced, and meanwhile the others answer; what it was answering is lost, and clients try
again. Replicas share what is on disk alone: `store`, which has to be on a file system that all of them see.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1ranker.errors import BackendError, ConfigError
from r1ranker.io.extras import library
from r1ranker.ranking.distributed import absolute
from r1ranker.serving.app import GRACE_SECONDS, create_app, log_to_stderr
from r1ranker.serving.catalogue import CatalogueSettings
from r1ranker.serving.settings import ServeSettings

NAME = "r1ranker"
HEALTH_SECONDS = 2.0
"""How often a replica is asked whether its rankers answer."""


@contextlib.contextmanager
def serving(settings: ServeSettings, address: str, *, replicas: int = 1, level: int = logging.INFO) -> Iterator[None]:
    """Serve on a cluster until the end of the block, replicas ready.

    address: of the cluster's head, `auto` on a machine of the cluster, or `local` for one that ends with this block.
    Raises BackendError where Ray Serve is not installed or the replicas do not start.
    """
    ray, serve = (library(name, "ray,serve", "a server on Ray") for name in ("ray", "ray.serve"))
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it tells of each step
    if address == "local" and settings.port == 0:
        raise ConfigError("port: 0 picks any free port, which Ray Serve does not do; name one")
    mine = not ray.is_initialized()
    if mine:
        _connect(ray, address, replicas)
    try:
        http = {"host": settings.host, "port": settings.port}
        try:
            serve.start(http_options=http, logging_config={"log_level": "ERROR", "enable_access_log": False})
            serve.run(_application(ray, serve, elsewhere(settings), replicas, level), name=NAME)
        except (RuntimeError, ray.exceptions.RayError) as error:
            raise BackendError(f"the replicas did not start: {str(error).strip().splitlines()[-1]}") from error
        try:
            yield
        finally:
            serve.delete(NAME)
            if mine and address == "local":
                serve.shutdown()
    finally:
        if mine:
            ray.shutdown()


def _connect(ray: Any, address: str, replicas: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here reports to nobody
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # its 5 s are too few for a busy machine
    # No dashboard: it runs what anyone sends it. A place for each replica, however few processors there are.
    here = {"include_dashboard": False, "num_cpus": max(replicas, os.cpu_count() or 1)} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=True, **here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        message = f"no Ray cluster at {address!r} ({error}); start one by `ray start --head`, or give local"
        raise BackendError(message) from error


def _application(ray: Any, serve: Any, settings: ServeSettings, replicas: int, level: int) -> Any:
    gpus = ray.cluster_resources().get("GPU", 0)
    on_gpu = gpus and any(not spec.base_urls and spec.device != "cpu" for spec in settings.rankers.values())

    def app() -> Any:  # in the replica: models, threads and metrics are its own
        log_to_stderr(level)
        return create_app(settings)

    class Replica:
        """One server. A replica whose ranker no longer answers is replaced."""

        app: Any  # set by Ray Serve

        async def check_health(self) -> None:
            """See Ray Serve."""
            if not all(live.healthy for live in self.app.state.service.rankers.values()):
                raise RuntimeError("a ranker does not answer")

    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=max(1, settings.limits.connections // replicas),
        ray_actor_options={"num_gpus": 1} if on_gpu else {"num_cpus": 1},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=GRACE_SECONDS,
    )
    return deployment(serve.ingress(app)(Replica)).bind()


def elsewhere(settings: ServeSettings) -> ServeSettings:
    """The same in another directory, where replicas run: files are named by their whole paths."""
    rankers = {name: absolute(spec) for name, spec in settings.rankers.items()}
    catalogues = {name: _whole_paths(one) for name, one in settings.catalogues.items()}
    changes = {"rankers": rankers, "catalogues": catalogues, "store": Path(settings.store).absolute()}
    return settings.model_copy(update=changes)


def _whole_paths(catalogue: CatalogueSettings) -> CatalogueSettings:
    return catalogue.model_copy(update={key: value.absolute() for key, value in catalogue if isinstance(value, Path)})
