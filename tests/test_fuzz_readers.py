"""Damaged files of every source are refused in words or read whole: no traceback, nothing lost in silence."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fuzz_readers.py"


@pytest.fixture(scope="module")
def fuzzing() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz_readers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["fuzz_readers"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(fuzzing: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """A folder of valid files for each reader, and how much is read from it."""
    made = {}
    for name, reader in fuzzing.readers().items():
        folder = tmp_path_factory.mktemp(name)
        fuzzing.lay_out(folder, reader.files)
        made[name] = folder, reader.read(folder)
    return made


def test_every_source_that_reads_files_is_tried(fuzzing: Any, folders: dict[str, tuple[Path, int]]) -> None:
    from r1ranker.datasets import SOURCES

    assert {name for name, source in SOURCES.items() if source.needs_path} | {"trec"} <= folders.keys()
    assert all(count > 0 for _, count in folders.values())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_damaged_files_are_refused_in_words_or_read_whole(
    fuzzing: Any, folders: dict[str, tuple[Path, int]], seed: int
) -> None:
    rng = random.Random(seed)
    name = rng.choice(sorted(folders))
    reader, (folder, valid) = fuzzing.readers()[name], folders[name]
    file = rng.choice(sorted(reader.files))
    content = fuzzing.mutated(reader.files[file], rng)
    kind, detail = fuzzing.tried(reader, valid, file, content, folder)
    assert kind in ("refused", "read", "told"), f"{name}, {file}: {detail}\n{content[:2000]!r}"
