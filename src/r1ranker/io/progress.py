"""Progress bars: shown on a terminal, silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def track(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """A bar of `total` units; the value given advances it. An empty label shows nothing."""
    with tqdm(total=total, desc=label, disable=not label or not sys.stderr.isatty(), leave=False) as bar:
        yield bar.update
