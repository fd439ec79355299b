"""Ranking on many machines by Ray Data. In: problems and a ranker's settings. Out: rankings, as they are finished.

    for place, ranking in rank_each_on_ray(problems, RankerSpec(model="org/model"), "auto"): ...

Each actor holds the model, or calls the endpoints, and ranks batches of problems. The package must be installed on
every machine, and files that the settings name must be at the same path there. A machine that is lost takes nothing
with it: Ray gives its batches to others, and the caller gets each batch once.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from r1ranker.backends.models import NAMES
from r1ranker.errors import BackendError, R1RankerError
from r1ranker.io.extras import library
from r1ranker.io.problems import PROBLEM
from r1ranker.problem import Problem
from r1ranker.ranking.drive import Finished
from r1ranker.ranking.rankers import Ranker
from r1ranker.ranking.spec import RankerSpec

IN_FLIGHT = 2
"""Batches given to an actor at a time: it never waits for one, and a lost one holds few."""


def rank_each_on_ray(problems: Iterable[Problem], spec: RankerSpec, address: str) -> Iterator[Finished]:
    """(place of the problem, its ranking) as they are finished on a cluster.

    address: of the cluster's head, `auto` on a machine of the cluster, or `local` for one that ends with this call.
    There is a ranker for each GPU, or for each machine where none is used.
    Problems wait in Ray's object store, which moves what does not fit to disk. Raises BackendError when Ray is not
    installed or the work failed on the cluster; a call to an endpoint that fails loses its query alone.
    """
    ray = _ray()
    mine = not ray.is_initialized()
    try:
        if mine:
            _connect(ray, address)
        yield from _rank_each(ray, problems, spec)
    except ray.exceptions.RayError as error:
        last_line = str(error).strip().splitlines()[-1]  # before it stands a traceback
        raise BackendError(f"the Ray cluster {address!r} could not rank: {last_line}") from error
    finally:
        if mine:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here reports to nobody
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendError(
            f"no Ray cluster at {address!r} ({error}); start one by `ray start --head`, or give local"
        ) from error


def _rank_each(ray: Any, problems: Iterable[Problem], spec: RankerSpec) -> Iterator[Finished]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the caller shows its own
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # else its plan and each bar that is off
    resources = _resources(ray, spec)
    most = _actors(ray, "num_gpus" in resources)
    blocks = [ray.put(block) for block in _blocks(problems, max(spec.batch_size, spec.concurrency))]
    if not blocks:
        return
    # At least one actor, not always all: towards the end Ray takes away those without work, so that one from a lost
    # machine finds room on another even where every place was taken. Lost actors and their batches are started again
    # without limit, which is Ray Data's default.
    pool = ray.data.ActorPoolStrategy(
        min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=IN_FLIGHT
    )
    rankings = ray.data.from_arrow_refs(blocks).map_batches(
        RankBlock,
        fn_constructor_args=(absolute(spec),),
        batch_size=None,
        batch_format="pyarrow",
        compute=pool,
        **resources,
    )
    for row in rankings.iter_rows():
        if row["error"]:
            raise BackendError(row["error"])
        yield row["place"], pickle.loads(row["ranking"])


class RankBlock:
    """What an actor is: a ranker, its model loaded once. In: a table of places and problems. Out: of rankings.

    An error meant for users is a row too: raised here, Ray would bury it under those of its own.
    """

    def __init__(self, spec: RankerSpec) -> None:
        self._ranker: Ranker | None = None
        self._error = ""
        try:
            self._ranker = spec.build()
        except R1RankerError as error:
            self._error = str(error)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rank the problems of one block."""
        places = table["place"].to_pylist()
        problems = [PROBLEM.validate_json(text) for text in table["problem"].to_pylist()]
        try:
            finished = list(self._ranker.rank_each(problems)) if self._ranker else []
        except R1RankerError as error:
            finished, self._error = [], str(error)
        if self._error:
            return _table([places[0]], [b""], self._error)
        # Pickled, as all that Ray carries is: the views of a long list's steps stay views.
        return _table([places[i] for i, _ in finished], [pickle.dumps(ranking) for _, ranking in finished])


def _table(places: list[int], rankings: list[bytes], error: str = "") -> pa.Table:
    return pa.table({"place": places, "ranking": rankings, "error": [error] * len(places)})


def _blocks(problems: Iterable[Problem], size: int) -> Iterator[pa.Table]:
    waiting = enumerate(problems)
    while block := list(islice(waiting, size)):
        yield pa.table(
            {"place": [place for place, _ in block], "problem": [PROBLEM.dump_json(problem) for _, problem in block]}
        )


def _resources(ray: Any, spec: RankerSpec) -> dict[str, float]:
    """What an actor needs: a GPU for a model where there are some, else half a machine; little to call endpoints.

    Half, because the actor of a lost machine must fit on another one beside that one's own.
    """
    if spec.base_urls:
        return {"num_cpus": 1}
    if spec.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1:
        return {"num_gpus": 1}
    return {"num_cpus": max(1, min(_cpus(ray)) // 2)}


def _actors(ray: Any, on_gpus: bool) -> int:
    return int(ray.cluster_resources()["GPU"]) if on_gpus else len(_cpus(ray))


def _cpus(ray: Any) -> list[int]:
    """CPUs of each machine that has some to give."""
    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [cpus for cpus in found if cpus] or [1]


def absolute(spec: RankerSpec) -> RankerSpec:
    """The same ranker in another directory, where actors run: a model is a path where there is such a directory."""
    cache, prices, store = (path.absolute() if path else None for path in (spec.cache, spec.prices, spec.store))
    thoughts = str(Path(spec.thoughts).absolute()) if spec.thoughts else None
    recall = _directory(spec.recall) if spec.recall else None
    return dataclasses.replace(
        spec,
        model=_directory(spec.model),
        recall=recall,
        cache=cache,
        prices=prices,
        store=store,
        thoughts=thoughts,
    )


def _directory(name: str) -> str:
    return str(Path(name).absolute()) if name not in (*NAMES, "random") and Path(name).exists() else name


def _ray() -> Any:
    for part in ("ray.data", "ray.exceptions"):
        library(part, "ray", "ranking on a cluster")
    return library("ray", "ray")
