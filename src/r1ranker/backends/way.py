"""How a model was trained to be asked: its layout, its read-out, worst or best; a file beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from r1ranker.errors import BackendError
from r1ranker.io.documents import parse_json
from r1ranker.io.text import read_text

WAY = "r1ranker.json"


def way_of(directory: str) -> dict[str, str]:
    """How the model in a directory was trained to be asked; empty where that is not known."""
    path = Path(directory) / WAY
    if not path.is_file():
        return {}
    try:
        way = parse_json(read_text(path))
        return {key: str(value) for key, value in way.items()}
    except (ValueError, AttributeError) as error:
        raise BackendError(f"{path} is damaged: {error}; delete it and give layout and ask yourself") from error


def save_way(directory: Path, way: Mapping[str, str]) -> None:
    """Say in a directory of a model or an adapter how it is asked, for `way_of`; an empty `way` says nothing."""
    if way:
        (directory / WAY).write_text(json.dumps(way) + "\n", encoding="utf-8")
