"""Where a result comes from: settings, versions, revision and machine, saved beside it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from r1ranker.io.files import write_whole

PACKAGES = ("r1-ranker", "torch", "transformers", "ir-measures", "bm25s", "numpy")


def provenance() -> dict[str, Any]:
    """Versions, git revision (when run from a checkout) and machine."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "revision": _revision(),
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def write_provenance(out: Path, config: dict[str, Any]) -> None:
    """`config.yaml` (resolved) and `provenance.json` in a run directory."""
    write_whole(out / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_whole(out / "provenance.json", json.dumps(provenance(), indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    checkout = Path(__file__).parents[3]
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():  # an installed package is no checkout, whatever lies around it
        return None
    answer = subprocess.run(
        [git, "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or None
