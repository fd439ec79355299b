"""Libraries of the optional extras, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from r1ranker.errors import BackendError


def library(module: str, extra: str = "specialists", what: str = "this") -> Any:
    """The module by name, imported when first asked for; BackendError names what needs it, and its extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise BackendError(f"{what} needs {name}: pip install 'r1-ranker[{extra}]' ({error})") from error
