"""The words of the embedded tasks, read once from `mini_words.json` beside this file."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def words() -> Any:
    """Vocabularies and sentence patterns by scenario."""
    return json.loads(resources.files(__package__).joinpath("mini_words.json").read_text(encoding="utf-8"))
