"""Pretrained text encoders of sentence-transformers, loaded by name or directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r1ranker.backends import models
from r1ranker.errors import BackendError
from r1ranker.io.extras import library

DENSE = "sentence-transformers/all-MiniLM-L6-v2"


def load(kind: str, model: str) -> Any:
    """The sentence-transformers class `kind` with a model by name or directory, on a GPU where there is one."""
    make = getattr(library("sentence_transformers", "dense"), kind)
    found = models.here(models.MINILM) if model == DENSE else models.directory(model)
    try:
        return make(str(found or model))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        remedy = (
            "check that it holds a whole model"
            if Path(model).exists()
            else "check the name and the network; without one, download the model elsewhere and give its directory"
            + (f", or run `r1ranker model get {models.MINILM}`" if model == DENSE else "")
        )
        raise BackendError(f"cannot load the encoder {model!r}: {reason}; {remedy}") from error
