"""What was spent, decided and scored, on disk. In: calls of LLMs. Out: sums by key, day and model; lines of feedback.

    store = Store(Path("serve.sqlite"))
    store.begin(call, budget=5.0)           # BudgetError once the key's day is spent; else its estimate is set aside
    store.finish(call.id, "gpt-small", cost=0.0004, ...)
    store.score("chatcmpl-8d2...", 1.0, key="team-a")     # appends a line to feedback.jsonl beside the file

One SQLite file in WAL mode; any number of processes of one machine may share it (WAL needs shared memory, so a network
drive will not do). Each write is one transaction. Two tables: `spend`, the sums a budget is held against, and `calls`,
what feedback needs; calls that nobody scored are forgotten after `KEEP_DAYS`, as their prompts stand in them.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from r1ranker.errors import ConfigError, DataError, R1RankerError
from r1ranker.io.documents import read_json
from r1ranker.io.files import at_home, write_whole

KEEP_DAYS = 30
WAIT_SECONDS = 10.0
"""For another process's transaction."""
TABLES = """
CREATE TABLE IF NOT EXISTS spend (
    key TEXT, day TEXT, model TEXT,
    calls INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0,
    cost REAL NOT NULL DEFAULT 0, router_seconds REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (key, day, model)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
    id TEXT PRIMARY KEY, answer TEXT, key TEXT NOT NULL, time REAL NOT NULL, day TEXT NOT NULL, prompt TEXT NOT NULL,
    model TEXT NOT NULL, cost REAL NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, score REAL
);
CREATE INDEX IF NOT EXISTS calls_by_answer ON calls (answer);
CREATE INDEX IF NOT EXISTS calls_by_time ON calls (time);
"""


class BudgetError(R1RankerError):
    """A key has spent what it may in a day."""


class ScoredError(R1RankerError):
    """A call that has another score already."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is about to be answered. `estimate`: dollars set aside until its cost is known.

    prompt: what a ranker reads of it. router: who chose the model, "" where the client did; its own dollars and
    seconds are a row of their own.
    """

    id: str
    key: str
    model: str
    estimate: float
    prompt: str
    router: str = ""
    router_cost: float = 0.0
    router_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Spent:
    """Sums of a key, a day and a model, or a router."""

    key: str
    day: str
    model: str
    calls: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    router_seconds: float


class Store:
    """The file, opened. Raises ConfigError where it cannot be."""

    def __init__(self, path: Path) -> None:
        self.path = at_home(path)
        self.feedback = self.path.with_name("feedback.jsonl")
        self.llms = self.path.with_suffix(".llms.json")
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            with suppress(OSError):
                self.path.chmod(0o600)  # prompts stand in it
            self._db.executescript(TABLES)
            with self._writing() as db:
                db.execute("DELETE FROM calls WHERE score IS NULL AND time < ?", (time.time() - KEEP_DAYS * 86400,))
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"store {path}: {error}; name a file on a local disk that can be written") from error

    def close(self) -> None:
        """Ends it."""
        with self._lock:
            self._db.close()

    def spent_today(self, key: str) -> float:
        """Dollars of a key since midnight UTC, with what is set aside and what routing cost."""
        with self._lock:
            return _spent(self._db, key, today())

    def begin(self, call: Call, budget: float | None = None) -> None:
        """Set the call's estimate aside. BudgetError where the key has a budget and it does not hold that too."""
        day = today()
        with self._writing() as db:
            if budget is not None and (spent := _spent(db, call.key, day)) + call.estimate > budget:
                left = f"the budget of {budget:g} dollars a day has {max(0.0, budget - spent):.4f} left"
                raise BudgetError(f"{left}, and this may cost {call.estimate:.4f}")
            _add(db, call.key, day, call.model, 1, 0, 0, 0, call.estimate)
            if call.router:
                _add(db, call.key, day, call.router, 1, 0, 0, 0, call.router_cost, call.router_seconds)
            db.execute(
                "INSERT INTO calls (id, key, time, day, prompt, model, cost) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (call.id, call.key, time.time(), day, call.prompt, call.model, call.estimate),
            )

    def finish(
        self,
        call: str,
        model: str,
        *,
        cost: float,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        answer: str = "",
        failed: bool = False,
    ) -> None:
        """What the call cost in the end, and of which LLM; what was set aside is free again."""
        with self._writing() as db:
            row = db.execute("SELECT key, day, model, cost FROM calls WHERE id = ?", (call,)).fetchone()
            if row is None:
                return
            key, day, before, aside = row
            _add(db, key, day, before, -1, 0, 0, 0, -aside)
            _add(db, key, day, model, 1, int(failed), prompt_tokens, completion_tokens, cost)
            if failed:
                db.execute("DELETE FROM calls WHERE id = ?", (call,))
                return
            db.execute(
                "UPDATE calls SET model=?, cost=?, prompt_tokens=?, completion_tokens=?, answer=? WHERE id=?",
                (model, cost, prompt_tokens, completion_tokens, answer or None, call),
            )

    def score(self, call: str, score: float, key: str) -> None:
        """Score an answer, by our id or its own, and append it to the feedback file; the same score twice is one line.

        DataError: the key made no such call. ScoredError: it has another score.
        """
        with self._writing() as db:
            row = db.execute(
                "SELECT id, prompt, model, cost, prompt_tokens, completion_tokens, time, score FROM calls "
                "WHERE key = ? AND (id = ? OR answer = ?) ORDER BY id = ? DESC LIMIT 1",
                (key, call, call, call),
            ).fetchone()
            if row is None:
                raise DataError(f"no call {call!r} of this key is known; scores are taken for {KEEP_DAYS} days")
            own, prompt, model, cost, prompt_tokens, completion_tokens, when, before = row
            if before is not None:
                if before != score:
                    raise ScoredError(f"call {call!r} has the score {before:g} already")
                return
            db.execute("UPDATE calls SET score = ? WHERE id = ?", (score, own))
            line = {
                "prompt": prompt,
                "model": model,
                "score": score,
                "cost": cost,
                "prompt_tokens": prompt_tokens or 0,
                "completion_tokens": completion_tokens or 0,
                "time": datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds"),
            }
            _append(self.feedback, json.dumps(line, ensure_ascii=False) + "\n")

    def describe(self, llms: Mapping[str, object]) -> None:
        """Keep beside the file what each LLM is, by name; also of those that are served no more: feedback names them.

        Raises DataError where what stands there is no JSON.
        """
        with self._writing():
            known = read_json(self.llms) if self.llms.exists() else {}
            write_whole(self.llms, json.dumps({**known, **llms}, indent=1) + "\n")

    def spend(self, day: str | None = None) -> list[Spent]:
        """Sums of one day (YYYY-MM-DD, UTC), or of all."""
        with self._lock:
            rows = self._db.execute(
                "SELECT key, day, model, calls, failed, prompt_tokens, completion_tokens, cost, router_seconds "
                "FROM spend WHERE (?1 IS NULL OR day = ?1) AND calls > 0 ORDER BY day, key, model",
                (day,),
            ).fetchall()
        return [Spent(*row) for row in rows]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone among threads and processes."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def today() -> str:
    """The day that is counted now, in UTC."""
    return datetime.now(UTC).date().isoformat()


def seconds_left() -> int:
    """Until the day ends, in UTC."""
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    return int((midnight - now).total_seconds()) + 1


def _spent(db: sqlite3.Connection, key: str, day: str) -> float:
    query = "SELECT coalesce(sum(cost), 0) FROM spend WHERE key = ? AND day = ?"
    return float(db.execute(query, (key, day)).fetchone()[0])


def _add(
    db: sqlite3.Connection,
    key: str,
    day: str,
    model: str,
    calls: int,
    failed: int,
    prompt_tokens: int,
    completion_tokens: int,
    cost: float,
    router_seconds: float = 0.0,
) -> None:
    db.execute(
        "INSERT INTO spend (key, day, model, calls, failed, prompt_tokens, completion_tokens, cost, router_seconds) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, "
        "failed = failed + excluded.failed, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
        "completion_tokens = completion_tokens + excluded.completion_tokens, cost = cost + excluded.cost, "
        "router_seconds = router_seconds + excluded.router_seconds",
        (key, day, model, calls, failed, prompt_tokens, completion_tokens, cost, router_seconds),
    )


def _append(path: Path, line: str) -> None:
    """A whole line at the file's end, or nothing: OSError. Only one process at a time comes here."""
    number = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(number).st_size
        broken = size and os.pread(number, 1, size - 1) != b"\n"  # a process that ended while it wrote
        data = (b"\n" if broken else b"") + line.encode()
        if os.write(number, data) < len(data):
            os.ftruncate(number, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(number)
