"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from r1ranker.io.files import recover, replacing, write_whole

FULL = Path("/dev/full")


def test_after_an_error_all_is_as_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "before")
    with pytest.raises(OSError, match=r"no space \(\d+ MB were free\)") as raised, replacing(tmp_path / "a") as fresh:
        fresh.write_text("half")
        raise RuntimeError("no space\nleft")  # as torch says it
    assert raised.value.filename == str(tmp_path / "a")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "before")]


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "before")
    with pytest.raises(OSError, match="No space left") as raised, replacing(tmp_path / "a") as fresh:
        fresh.symlink_to(FULL)
        fresh.write_text("after")
    assert raised.value.filename == str(tmp_path / "a")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "before")]


def folder(path: Path, content: str) -> None:
    path.mkdir()
    (path / "weights").write_text(content)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with replacing(tmp_path / "model") as fresh:
            folder(fresh, content)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "two"


@pytest.mark.parametrize(
    ("there", "kept"),
    [
        ({"model": "old", "model.new": "half"}, "old"),
        ({"model.old": "old", "model.new": "new"}, "new"),
        ({"model": "new", "model.old": "old"}, "new"),
        ({"model.old": "old"}, "old"),
    ],
)
def test_a_replacement_interrupted_anywhere_is_ended(there: dict[str, str], kept: str, tmp_path: Path) -> None:
    for name, content in there.items():
        folder(tmp_path / name, content)
    recover(tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_text() == kept
    with replacing(tmp_path / "model") as fresh:
        folder(fresh, "next")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_weights_can_be_read_by_whom_the_umask_lets(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "model") as fresh:
            fresh.mkdir()
            save_file({"a": torch.zeros(2)}, fresh / "model.safetensors")
    finally:
        os.umask(before)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]
    assert stat.S_IMODE((tmp_path / "model" / "model.safetensors").stat().st_mode) == mode
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "target.json", tmp_path / "link.json"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "said")
        assert os.read(reader, 100) == b"said"
        assert stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a disk in memory")
def test_a_disk_in_memory_is_a_disk() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder) / "new" / "file.json"
        for text in ("one", "two"):
            write_whole(file, text)
        assert file.read_text() == "two"
        with pytest.raises(ZeroDivisionError), replacing(file) as fresh:
            fresh.write_text(str(1 / 0))
        assert file.read_text() == "two"
