"""What the servers of tests share: each runs in a thread of its own, for as long as a `with` block."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from typing import Self


class ThreadedServer(ABC):
    """Enters when it listens; asks its loop to stop when left."""

    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @abstractmethod
    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Listen, set `port` and `ready`, go on until `stop`, and clear up."""

    def __enter__(self) -> Self:
        ready = threading.Event()

        def run() -> None:
            asyncio.run(self._run(ready))

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _run(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self.serve(ready, self._stop)
