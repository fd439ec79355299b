"""Sources of problems: `load(name, path)` gives `Splits`. Next in the data flow is `prompts`.

    splits = load("movielens", "ml-1m", seed=0, limit=500, negatives="popularity")
    splits["train"][0]      # a Problem

To add a source: one file with `load(path, *, seed=0, limit=None, ...) -> Splits` and its `SOURCE`, and one
line in `SOURCES`. The keyword parameters of `load` are the options a user may set; `limit` is per task
and split. Licences are the sources' own: no data is part of this package, except `mini`, which is generated.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from r1ranker.datasets import (
    amazon_windows,
    bright,
    csv_,
    jsonl,
    lastfm,
    llmrouter,
    movielens,
    msmarco_qa,
    rankllm,
    recbole,
    routing_log,
    trec,
)
from r1ranker.datasets.common import SPLIT_NAMES, Source, check_disjoint
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.files import at_home
from r1ranker.io.strict import in_words
from r1ranker.io.text import MissingFileError
from r1ranker.problem import Splits
from r1ranker.scenarios import Scenario

__all__ = ["SOURCES", "SPLIT_NAMES", "Source", "load"]


def _load_mini(path: Path | None = None, *, seed: int = 0, limit: int | None = None) -> Splits:
    from r1ranker.datasets import mini  # here: its word lists are of no use to the other sources

    return mini.load(path, seed=seed, limit=limit)


SOURCES: dict[str, Source] = {
    "mini": Source(
        load=_load_mini,
        description="the nine tasks, small, generated from a seed; needs no files",
        layout="none",
        licence="Apache-2.0 (part of this package)",
        citation="this package",
        needs_path=False,
    ),
    "movielens": movielens.SOURCE,
    "recbole": recbole.SOURCE,
    "amazon-windows": amazon_windows.SOURCE,
    "lastfm": lastfm.SOURCE,
    "llmrouter": llmrouter.SOURCE,
    "rankllm": rankllm.SOURCE,
    "trec": trec.SOURCE,
    "bright": bright.SOURCE,
    "msmarco-qa": msmarco_qa.SOURCE,
    "routing-log": routing_log.SOURCE,
    "csv": csv_.SOURCE,
    "jsonl": jsonl.SOURCE,
}


def load(
    name: str,
    path: str | Path | None = None,
    *,
    seed: int = 0,
    limit: int | None = None,
    scenarios: Mapping[str, Scenario] | None = None,
    **options: Any,
) -> Splits:
    """Train, dev and test problems of source `name`, read from `path`; no group stands in two splits.

    scenarios: records of the user's own, for a source of the user's problems.
    """
    source = _find(name)
    unknown = sorted(options.keys() - set(source.options))
    if unknown:
        allowed = ", ".join(("seed", "limit", *source.options))
        raise ConfigError(f"source {name!r} has no option {unknown[0]!r}; it has {allowed}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit} must be at least 1; leave it out to keep all problems")
    if told := lacking(name, path):
        raise DataError(told)
    where = None if path is None else at_home(path)
    checked = {option: _checked(name, option, value) for option, value in options.items()}
    try:
        records = {"scenarios": scenarios or {}} if source.takes_scenarios else {}
        splits = source.load(where, seed=seed, limit=limit, **records, **checked)
    except MissingFileError as error:
        raise DataError(f"source {name!r}: {error}; {_remedy(source)}") from error
    check_disjoint(splits)
    return splits


def lacking(name: str, path: str | Path | None) -> str | None:
    """What to say of a source whose folder or file is not there: what is expected, and from where. None where it is."""
    source = _find(name)
    where = None if path is None else at_home(path)
    if where.exists() if where else not source.needs_path:
        return None
    found = "needs a path" if where is None else f"{where} does not exist"
    return f"source {name!r}: {found}; {_remedy(source)}"


def _checked(name: str, option: str, value: Any) -> Any:
    """The option's value in the type that the loader declares."""
    try:
        return TypeAdapter(_find(name).kinds[option]).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"source {name!r}, option {option}={value!r}: {in_words(error.errors()[0])}") from error


def _find(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown source {name!r}; {hint}there are {', '.join(SOURCES)}")


def _remedy(source: Source) -> str:
    where = f", from {source.download}" if source.download else ""
    return f"expected: {source.layout}{where}"
