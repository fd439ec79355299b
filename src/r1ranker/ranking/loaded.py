"""Models that stay loaded. In: a `RankerSpec`. Out: its `Ranker`, whose model is loaded once in a process.

    with loaded(RankerSpec(model="smol")) as ranker: ...

One query at a time asks a model in this process, whoever calls; endpoints are asked side by side.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from r1ranker.backends.base import AsyncBackend, Backend
from r1ranker.backends.cached import FILE
from r1ranker.backends.openai_ import KEYS
from r1ranker.ranking.rankers import Ranker
from r1ranker.ranking.spec import RankerSpec

OF_BACKEND = ("model", "engine", "device", "dtype", "base_urls", "concurrency", "prices", "cache", "store")
"""Settings that make another backend; all others are of how it is asked."""


@dataclass
class _Model:
    """stamp: of the files it was loaded from, so that a model that was trained anew is loaded anew."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    stamp: tuple[object, ...] = ()
    backend: Backend | AsyncBackend | None = None


_models: dict[RankerSpec, _Model] = {}


@contextmanager
def loaded(spec: RankerSpec) -> Iterator[Ranker]:
    """The ranker. Raises as `RankerSpec.build`."""
    spec.check()
    one = _models.setdefault(RankerSpec(**{name: getattr(spec, name) for name in OF_BACKEND}), _Model())
    with one.lock:
        stamp = _stamp(spec)
        if one.backend is None or one.stamp != stamp:
            one.backend = None  # its memory first
            one.backend = spec.backend()
            one.stamp = (*_stamp(spec)[:1], *stamp[1:])  # a cache may have come into being, and nothing else
        backend = one.backend
        ranker = spec.around(backend)
        if not isinstance(backend, AsyncBackend):
            yield ranker
            return
    yield ranker


def _stamp(spec: RankerSpec) -> tuple[object, ...]:
    """What a backend is made of that may change meanwhile: a model's files; of an endpoint key and prices; a cache."""
    replies = spec.cache / FILE if spec.cache else None
    given: tuple[object, ...] = (replies.stat().st_ino if replies and replies.exists() else None,)
    if spec.base_urls:
        prices = spec.prices.stat().st_mtime_ns if spec.prices and spec.prices.exists() else None
        return (*given, prices, *(os.environ.get(name) for name in KEYS))
    folder = Path(spec.model)
    if not folder.is_dir():
        return given
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return (*given, *((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files))


def _forked() -> None:
    """Another thread, which the child of a fork does not have, may have held a lock."""
    for one in _models.values():
        one.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
