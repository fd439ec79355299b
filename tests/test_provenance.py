"""What a run writes down about its origin."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from r1ranker.io import provenance as module
from r1ranker.io.config import RunConfig, load_config
from r1ranker.io.provenance import provenance, write_provenance


def test_versions_machine_and_time_are_recorded() -> None:
    found = provenance()
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["versions"]) == {"python", *module.PACKAGES}
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["time"].endswith("+00:00")


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert module._version("no-such-package-here") is None


def test_a_run_directory_holds_the_resolved_config_and_the_origin(tmp_path: Path) -> None:
    config = RunConfig(seed=7)
    write_provenance(tmp_path / "deep" / "run", config.model_dump(mode="json"))
    assert load_config(tmp_path / "deep" / "run" / "config.yaml") == config
    assert json.loads((tmp_path / "deep" / "run" / "provenance.json").read_text())["versions"]["python"]


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "src" / "r1ranker" / "io").mkdir(parents=True)
    (tmp_path / "src" / "r1ranker" / "io" / "provenance.py").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_the_revision_of_a_checkout_tells_whether_it_was_changed(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = repository / "src" / "r1ranker" / "io" / "provenance.py"
    monkeypatch.setattr(module, "__file__", str(source))
    clean = provenance()["revision"]
    assert clean
    assert not clean.endswith("-dirty")
    source.write_text("changed")
    assert provenance()["revision"] == f"{clean}-dirty"


def test_an_installed_package_does_not_take_the_revision_of_the_repository_around_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = repository / "venv" / "lib" / "site-packages" / "r1ranker" / "io" / "provenance.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(installed))
    assert provenance()["revision"] is None


def test_without_git_there_is_no_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["revision"] is None
