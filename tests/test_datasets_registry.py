"""`load(name, path)`: names, options and missing files are told with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r1ranker.datasets import SOURCES, Source, load
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Candidate, Problem, Splits

RECOMMENDATION = {"history", "pool_size", "negatives", "windows_per_user", "min_items"}


def test_every_source_is_described_and_says_where_its_files_come_from() -> None:
    for name, source in SOURCES.items():
        assert all((source.description, source.layout, source.licence, source.citation)), name
        assert source.download.startswith("https://") or name in ("mini", "jsonl", "csv", "routing-log")


def test_options_are_those_of_the_loader() -> None:
    assert set(SOURCES["movielens"].options) == RECOMMENDATION | {"min_rating"}
    assert set(SOURCES["recbole"].options) == RECOMMENDATION | {"task", "min_rating"}
    assert SOURCES["llmrouter"].options == ("objectives", "max_query_chars", "task")
    assert SOURCES["jsonl"].options == ()


def test_an_unknown_source_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown source 'movielense'; did you mean 'movielens'\?"):
        load("movielense", "x")
    with pytest.raises(ConfigError, match="there are mini, movielens"):
        load("zzz")


def test_an_unknown_option_gets_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no option 'windows'; it has seed, limit, task, min_rating, history"):
        load("recbole", tmp_path, windows=3)
    with pytest.raises(ConfigError, match="limit 0 must be at least 1"):
        load("recbole", tmp_path, limit=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("recbole", {"history": "long"}, "option history='long': Input should be a valid integer"),
        ("recbole", {"history": None}, "option history=None"),
        ("movielens", {"negatives": "hard"}, "option negatives='hard': Input should be 'uniform' or 'popularity'"),
        ("csv", {"details": "genre"}, "option details=.genre.: must be a list: \\[a, b\\]"),
        ("movielens", {"min_rating": "high"}, "option min_rating='high'"),
        ("llmrouter", {"objectives": "cost"}, "option objectives='cost'"),
    ],
)
def test_an_option_of_another_type_is_refused(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"source '{name}', {message}"):
        load(name, tmp_path, **options)


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.needs_path])
def test_missing_files_are_told_with_the_layout_and_where_to_get_them(tmp_path: Path, name: str) -> None:
    for path, found in (
        (None, "needs a path"),
        (tmp_path / "none", "does not exist"),
        (tmp_path, "has|no such"),
    ):
        with pytest.raises(DataError, match=f"source '{name}': .*({found})") as error:
            load(name, path)
        assert SOURCES[name].layout in str(error.value)
        assert SOURCES[name].download in str(error.value)


def test_a_loader_that_leaks_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(path: Path, *, seed: int = 0, limit: int | None = None) -> Splits:
        problem = Problem("q", "t", "passage", (Candidate("a", "x"),), query="q")
        return {"train": [problem], "dev": [], "test": [problem]}

    monkeypatch.setitem(SOURCES, "leak", Source(leak, "d", "l", "l", "c"))
    with pytest.raises(DataError, match=r"group 'q' .* stands in train and in test"):
        load("leak", tmp_path)
