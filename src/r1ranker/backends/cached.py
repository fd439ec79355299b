"""Replies kept on disk, so that no question is paid for twice. In: a backend. Out: the same, remembering.

    backend = cached(backend, Path("cache"))

A reply is found by what decides it: the model (the fingerprint of its weights, tokenizer and chat template where it
is on this machine, its name where it is not), the prompt, and the pool or the token limit. Sampled completions,
those at a temperature, are not kept. The folder holds one SQLite file of JSON values; several processes on one
machine may share it. It belongs on a local disk: SQLite's locks do not hold on network file systems.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from r1ranker.backends.base import Ask, AsyncBackend, Backend, Choice, Completion, Session
from r1ranker.backends.models import resolve
from r1ranker.errors import ConfigError
from r1ranker.io.fingerprint import fingerprint_model
from r1ranker.prompts import Prompt

FILE = "replies.sqlite"
PATIENCE_SECONDS = 60.0
"""How long a process waits for another one that is writing."""
AT_ONCE = 500
"""Keys looked up in one query; SQLite bounds their number."""


def cached(backend: Backend | AsyncBackend, folder: Path) -> Backend | AsyncBackend:
    """The backend, asked only what `folder` does not hold. A reply from there costs no tokens and no money."""
    if isinstance(backend, AsyncBackend):
        return CachedEndpoint(backend, Replies(folder, backend.name))
    here: dict[str, str] = dict(fingerprint_model(resolve(backend.name))) or {"name": backend.name}
    if (network := getattr(backend, "network", None)) is not None:
        here["dtype"] = str(network.dtype)
    return CachedModel(backend, Replies(folder, json.dumps(here, sort_keys=True)))


class Replies:
    """The file. `model` is part of every key."""

    def __init__(self, folder: Path, model: str) -> None:
        self._model = model
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._turn = threading.Lock()  # asked from any thread, one at a time
            self._db = sqlite3.connect(folder / FILE, timeout=PATIENCE_SECONDS, check_same_thread=False)
            weakref.finalize(self, self._db.close)
            self._db.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer
            self._db.execute("PRAGMA synchronous=NORMAL")
            with self._db:
                self._db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except (OSError, sqlite3.DatabaseError) as error:
            raise ConfigError(f"cannot keep replies in {folder}: {error}; give cache another folder") from error

    def key(self, ask: Ask) -> str:
        """What decides the reply, as a hash."""
        how = ask.max_new_tokens if ask.pool is None else list(ask.pool)
        *prompt, owner = dataclasses.astuple(ask.prompt)
        parts = [self._model, prompt, how, *([owner] if owner else [])]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def read(self, keys: Sequence[str]) -> dict[str, Completion | Choice]:
        """The replies that are there, by key."""
        found: dict[str, Completion | Choice] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            with self._turn:
                rows = self._db.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", some).fetchall()
            found |= {key: _said(reply) for key, reply in rows}
        return found

    def write(self, said: Iterable[tuple[str, Completion | Choice]]) -> None:
        """Keep replies. One that another process wrote meanwhile stays, as the answer others have seen."""
        rows = [(key, _text(reply)) for key, reply in said]
        try:
            with self._turn, self._db:
                self._db.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", rows)
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"cannot keep replies in {self._folder}: {error}; make room, or leave cache out"
            ) from error


class CachedModel(Backend):
    """A `Backend` that asks the one it holds only what is not on disk, in one call."""

    def __init__(self, inner: Backend, replies: Replies) -> None:
        self.name = inner.name
        self.masks_blocks = inner.masks_blocks
        self.trained_in = inner.trained_in
        self.kept = getattr(inner, "kept", None)  # of candidates, see `ranking.store`
        self._inner = inner
        self._replies = replies

    @property
    def context(self) -> int | None:
        """Of the model it holds."""
        return self._inner.context

    def length(self, prompt: Prompt) -> int:
        """Of the model it holds."""
        return self._inner.length(prompt)

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 1024, temperature: float = 0.0
    ) -> list[Completion]:
        """See `Backend`."""

        def ask(places: Sequence[int]) -> Sequence[Completion]:
            missing = [prompts[i] for i in places]
            return self._inner.generate(missing, max_new_tokens=max_new_tokens, temperature=temperature)

        if temperature:
            return list(ask(range(len(prompts))))
        said = self._completed([Ask(prompt, None, max_new_tokens) for prompt in prompts], ask)
        return [reply for reply in said if isinstance(reply, Completion)]

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        """See `Backend`."""

        def ask(places: Sequence[int]) -> Sequence[Choice]:
            return self._inner.choose([prompts[i] for i in places], [pools[i] for i in places])

        asks = [Ask(prompt, tuple(pool), 0) for prompt, pool in zip(prompts, pools, strict=True)]
        return [reply for reply in self._completed(asks, ask) if isinstance(reply, Choice)]

    def _completed(
        self, asks: Sequence[Ask], ask: Callable[[Sequence[int]], Sequence[Completion | Choice]]
    ) -> list[Completion | Choice]:
        """The replies in order. `ask` answers the places whose reply is missing; equal asks are asked once."""
        keys = [self._replies.key(one) for one in asks]
        found = self._replies.read(keys)
        missing = {key: i for i, key in reversed(list(enumerate(keys))) if key not in found}
        places = sorted(missing.values())
        new = dict(zip(places, ask(places), strict=True)) if places else {}
        self._replies.write((keys[i], reply) for i, reply in new.items())
        found |= {keys[i]: _free(reply) for i, reply in new.items()}
        return [new.get(i, found[key]) for i, key in enumerate(keys)]


class CachedEndpoint(AsyncBackend):
    """An `AsyncBackend` that calls the one it holds only for what is not on disk."""

    def __init__(self, inner: AsyncBackend, replies: Replies) -> None:
        self.name = inner.name
        self.concurrency = inner.concurrency
        self._inner = inner
        self._replies = replies

    def session(self) -> AbstractAsyncContextManager[Session]:
        """See `AsyncBackend`."""
        return self._session()

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        async with self._inner.session() as session:
            yield _CachedSession(session, self._replies)


class _CachedSession:
    def __init__(self, inner: Session, replies: Replies) -> None:
        self._inner = inner
        self._replies = replies

    async def answer(self, ask: Ask) -> Completion | Choice:
        """See `Session`. A failed call raises, and nothing is kept."""
        key = self._replies.key(ask)
        found = self._replies.read([key])
        if key in found:
            return found[key]
        said = await self._inner.answer(ask)
        self._replies.write([(key, said)])
        return said


def _text(said: Completion | Choice) -> str:
    if isinstance(said, Completion):
        return json.dumps({"text": said.text, "truncated": said.truncated})
    return json.dumps({"probabilities": list(said.probabilities.items())})


def _said(text: str) -> Completion | Choice:
    reply = json.loads(text)
    if "text" in reply:
        return Completion(reply["text"], reply["truncated"], 0, 0)
    return Choice(dict(reply["probabilities"]), 0, 0)


def _free(said: Completion | Choice) -> Completion | Choice:
    return _said(_text(said))
