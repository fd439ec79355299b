"""Haystack: a ranker component.

    pipeline.add_component("ranker", R1Ranker("smol", top_k=5))

A pipeline that is loaded must allow this module: `Pipeline.load(file, allowed_modules=["r1ranker.*"])`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from pydantic import TypeAdapter

from r1ranker.adapters.common import order, ranker_of
from r1ranker.errors import ConfigError
from r1ranker.ranking.rankers import Ranker
from r1ranker.ranking.spec import RankerSpec

SPEC = TypeAdapter(RankerSpec)


@component
class R1Ranker:
    """ranker: one of ours, its spec, or a model's name, loaded when first needed. top_k: how many are kept."""

    def __init__(self, ranker: Ranker | RankerSpec | str, top_k: int | None = None) -> None:
        self.ranker, self.top_k = ranker, top_k

    def warm_up(self) -> None:
        """Load the model."""
        self._loaded = ranker_of(self.ranker)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Documents best first, with the score. top_k: instead of the component's own."""
        if not hasattr(self, "_loaded"):
            self.warm_up()
        placed = order(self._loaded, query, [one.content for one in documents], self.top_k if top_k is None else top_k)
        return {"documents": [dataclasses.replace(documents[at], score=score) for at, score in placed]}

    def to_dict(self) -> dict[str, Any]:
        """Plain values. Raises ConfigError for a ranker that was built elsewhere, since it cannot be written down."""
        if isinstance(self.ranker, Ranker):
            raise ConfigError("a ranker that is built cannot be saved: give its RankerSpec or a model's name")
        saved = self.ranker if isinstance(self.ranker, str) else SPEC.dump_python(self.ranker, mode="json")
        saved_as: dict[str, Any] = default_to_dict(self, ranker=saved, top_k=self.top_k)
        return saved_as

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """From `to_dict`."""
        settings = data["init_parameters"]
        ranker = settings["ranker"]
        ranker = ranker if isinstance(ranker, str) else SPEC.validate_python(ranker)
        return default_from_dict(cls, data | {"init_parameters": settings | {"ranker": ranker}})
