"""What a proxy keeps on disk: sums, budgets and feedback, by several processes at once."""

from __future__ import annotations

import json
import multiprocessing
import resource
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from r1ranker.errors import ConfigError, DataError
from r1ranker.serving import store as store_module
from r1ranker.serving.store import BudgetError, Call, ScoredError, Store


def opened(folder: Path) -> Store:
    return Store(folder / "serve.sqlite")


def call(name: str, **more: object) -> Call:
    values: dict[str, object] = {"key": "team", "model": "small", "estimate": 0.25, "prompt": "why"} | more
    return Call(name, **values)  # type: ignore[arg-type]


def test_an_estimate_is_set_aside_until_the_cost_is_known(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin(call("a"))
    assert store.spent_today("team") == 0.25
    store.finish("a", "large", cost=0.5, prompt_tokens=7, completion_tokens=3)
    assert store.spent_today("team") == 0.5
    (row,) = store.spend()
    assert (row.model, row.calls, row.failed, row.prompt_tokens, row.completion_tokens) == ("large", 1, 0, 7, 3)


def test_a_score_that_finds_no_room_is_not_taken_and_leaves_no_half_line(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin(call("a"))
    store.feedback.write_text("x" * (1 << 20) + "\n")  # longer than the store itself, so that it alone is short of room
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.feedback.stat().st_size + 20, before[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            store.score("a", 1.0, "team")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    store.score("a", 1.0, "team")
    _, line = store.feedback.read_text().splitlines()
    assert json.loads(line)["score"] == 1.0


def test_a_line_that_a_killed_process_left_half_is_not_the_begin_of_the_next(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin(call("a"))
    store.feedback.write_text('{"prompt": "wh')
    store.score("a", 1.0, "team")
    half, line = store.feedback.read_text().splitlines()
    assert half == '{"prompt": "wh'
    assert json.loads(line)["score"] == 1.0


def test_what_is_known_of_an_llm_outlives_its_service_and_no_file_of_another_name_is_touched(tmp_path: Path) -> None:
    own = tmp_path / "llm_candidates.json"
    own.write_text('{"mine": {"feature": "by hand"}}')
    store = opened(tmp_path)
    store.describe({"small": {"size": "7B"}, "large": {"size": "70B"}})
    store.describe({"small": {"size": "8B"}})
    assert json.loads(store.llms.read_text()) == {"small": {"size": "8B"}, "large": {"size": "70B"}}
    assert "by hand" in own.read_text()


def test_what_routing_cost_counts_too(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin(call("a", router="auto", router_cost=0.125, router_seconds=2.0))
    store.finish("a", "large", cost=0.0)
    assert store.spent_today("team") == 0.125
    assert [(row.model, row.cost, row.router_seconds) for row in store.spend()] == [
        ("auto", 0.125, 2.0),
        ("large", 0.0, 0.0),
    ]


def test_a_failed_call_costs_nothing_and_cannot_be_scored(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin(call("a"))
    store.finish("a", "small", cost=0.0, failed=True)
    assert store.spent_today("team") == 0.0
    assert store.spend()[0].failed == 1
    with pytest.raises(DataError, match="no call"):
        store.score("a", 1.0, "team")


def test_a_budget_holds_what_is_set_aside(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin(call("a"), budget=0.5)
    store.begin(call("b"), budget=0.5)
    with pytest.raises(BudgetError, match=r"0\.5 dollars"):
        store.begin(call("c"), budget=0.5)
    store.begin(call("d", key="other"), budget=0.5)


def test_a_new_day_is_a_new_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    monkeypatch.setattr(store_module, "today", lambda: "2026-01-01")
    store.begin(call("a"), budget=0.25)
    monkeypatch.setattr(store_module, "today", lambda: "2026-01-02")
    store.begin(call("b"), budget=0.25)
    store.finish("a", "small", cost=0.125)
    assert {row.day: row.cost for row in store.spend()} == {"2026-01-01": 0.125, "2026-01-02": 0.25}
    assert [row.day for row in store.spend("2026-01-02")] == ["2026-01-02"]


def test_the_answers_own_id_can_be_scored(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin(call("ours"))
    store.finish("ours", "small", cost=0.5, answer="chatcmpl-7")
    store.score("chatcmpl-7", 0.5, "team")
    store.score("ours", 0.5, "team")
    with pytest.raises(ScoredError, match=r"0\.5 already"):
        store.score("ours", 1.0, "team")
    (line,) = store.feedback.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["model"] == "small"


def test_calls_that_nobody_scored_are_forgotten_and_sums_are_kept(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for name in ("old", "scored", "new"):
        store.begin(call(name))
        store.finish(name, "small", cost=1.0)
    store.score("scored", 1.0, "team")
    store.close()
    with closing(sqlite3.connect(tmp_path / "serve.sqlite")) as db, db:
        db.execute("UPDATE calls SET time = ? WHERE id != 'new'", (time.time() - 31 * 86400,))
    store = opened(tmp_path)
    store.score("new", 1.0, "team")
    store.score("scored", 1.0, "team")
    with pytest.raises(DataError):
        store.score("old", 1.0, "team")
    assert store.spent_today("team") == 3.0


def test_text_that_looks_like_sql_is_text(tmp_path: Path) -> None:
    store = opened(tmp_path)
    nasty = "'; DROP TABLE spend; --"
    store.begin(call(nasty, key=nasty, model=nasty, prompt=nasty))
    store.finish(nasty, nasty, cost=1.0, answer=nasty)
    store.score(nasty, 1.0, nasty)
    assert [(row.key, row.model) for row in store.spend()] == [(nasty, nasty)]


def test_a_place_that_cannot_hold_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"file/serve\.sqlite"):
        Store(tmp_path / "file" / "serve.sqlite")
    (tmp_path / "serve.sqlite").write_text("this is no database, " * 100)
    with pytest.raises(ConfigError, match="not a database"):
        opened(tmp_path)


def spender(folder: Path, name: str, results: multiprocessing.Queue[int]) -> None:
    store, done = opened(folder), 0
    for n in range(60):
        try:
            store.begin(call(f"{name}-{n}", estimate=0.25), budget=10.0)
        except BudgetError:
            continue
        store.finish(f"{name}-{n}", "small", cost=0.25, prompt_tokens=1)
        store.score(f"{name}-{n}", 1.0, "team")
        done += 1
    results.put(done)


def test_several_processes_share_one_budget_and_lose_nothing(tmp_path: Path) -> None:
    opened(tmp_path).close()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=spender, args=(tmp_path, str(k), results)) for k in range(3)]
    for process in processes:
        process.start()
    done = sum(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(20)
    store = opened(tmp_path)
    (row,) = store.spend()
    assert done == row.calls == row.prompt_tokens == 40
    assert store.spent_today("team") == pytest.approx(10.0)
    lines = store.feedback.read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["time"] for line in lines}) >= 1 and len(lines) == 40
