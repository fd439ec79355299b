"""The paper's tables, one command each. In: a config and an experiment's name. Out: results on disk, `results.md`.

    r1ranker reproduce main --scale mini

Beside them stands `quickstart`, the main table in minutes. Read `study` (what an experiment works with), then any
experiment, then `report`. An experiment is a function of a `Study`; to add one, write it in a module of its own and
name it in `EXPERIMENTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from r1ranker.errors import ConfigError

if TYPE_CHECKING:
    from r1ranker.experiments.study import Study

Experiment = Callable[["Study"], None]


def _named(module: str, function: str) -> Experiment:
    """`function` of a module here, imported when it is called: what one experiment needs, others may lack."""

    def experiment(study: Study) -> None:
        try:
            run = getattr(import_module(f"r1ranker.experiments.{module}"), function)
        except ImportError as error:
            raise ConfigError(f"{study.name} cannot be run here: {error}; install what it needs first") from error
        run(study)

    return experiment


EXPERIMENTS: dict[str, Experiment] = {
    "main": _named("main", "main"),
    "zero-shot": _named("zero_shot", "zero_shot"),
    "ablations": _named("ablations", "ablations"),
    "specialists": _named("specialists", "specialists"),
    "thoughts": _named("thoughts", "thoughts"),
    "routing": _named("routing", "compare_routers"),
    "general": _named("general", "general"),
    "ir": _named("ir", "ir"),
    "recommendation": _named("recommendation", "recommendation"),
    "unseen": _named("unseen", "unseen"),
}
