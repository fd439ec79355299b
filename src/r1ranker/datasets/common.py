"""What every source shares: its description, splits by group, seeded draws, cut texts.

In: groups, texts and paths of a source. Out: the parts that a loader makes `Splits` of. Every random draw
has a generator of its own, seeded by what it is for (`problem.rng_for`), so a problem is the same whatever else is
loaded and in whatever order.
"""

from __future__ import annotations

import inspect
import random
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from r1ranker.errors import ConfigError, DataError
from r1ranker.io.text import cut
from r1ranker.problem import Splits, by_task, rng_for

SPLIT_NAMES = ("train", "dev", "test")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """A place problems come from. Every loader file has one, and `SOURCES` lists them.

    load: `load(path, *, seed=0, limit=None, ...) -> Splits`; its other keywords are the user's options.
    layout: the files expected in the directory. download: where to get them.
    takes_scenarios: its problems may be of the user's scenarios, whose records `load` takes as `scenarios`.
    """

    load: Callable[..., Splits]
    description: str
    layout: str
    licence: str
    citation: str
    download: str = ""
    needs_path: bool = True
    takes_scenarios: bool = False

    @property
    def kinds(self) -> Mapping[str, Any]:
        """Types of the keyword options of `load`, without seed and limit."""
        hints = typing.get_type_hints(self.load)
        kinds: dict[str, Any] = {}
        for parameter in inspect.signature(self.load).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                (shared,) = typing.get_args(hints[parameter.name])
                kinds |= typing.get_type_hints(shared)
            elif parameter.name not in ("path", "seed", "limit", "scenarios"):
                kinds[parameter.name] = hints[parameter.name]
        return kinds

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the keyword options of `load`, without seed and limit."""
        return tuple(self.kinds)


def split_groups(
    groups: Iterable[str], seed: int, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> dict[str, str]:
    """Split name of each group. Depends on the set of groups and the seed, never on their order.

    From three groups on, a split is empty if and only if its fraction is zero.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"fractions {fractions} of train, dev, test must be >= 0 and sum to 1")
    ordered = sorted(set(groups))
    rng_for(seed, "split").shuffle(ordered)
    least = 1 if len(ordered) >= 3 else 0
    dev, test = (max(round(f * len(ordered)), least if f else 0) for f in fractions[1:])
    over = dev + test - len(ordered) + (least if fractions[0] else 0)
    if over > 0 or not fractions[0]:
        dev, test = (dev - over, test) if dev > test else (dev, test - over)
    names = ["dev"] * dev + ["test"] * test
    return dict(zip(ordered, names + ["train"] * (len(ordered) - len(names)), strict=False))


def plain(query: str) -> str:
    """The query without what makes no other one of it: case and spaces."""
    return " ".join(query.lower().split())


def check_disjoint(splits: Splits) -> None:
    """Raise `DataError` when a group stands in two splits."""
    seen: dict[str, str] = {}
    for split, problems in splits.items():
        for problem in problems:
            if seen.setdefault(problem.group, split) != split:
                raise DataError(
                    f"group {problem.group!r} (problem {problem.qid!r}) stands in {seen[problem.group]} "
                    f"and in {split}; keep all problems of a user or query in one split"
                )


def take(items: Sequence[T], limit: int | None, rng: random.Random) -> list[T]:
    """At most `limit` items drawn by `rng`, in their own order; all of them when there are no more."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[index] for index in sorted(rng.sample(range(len(items)), limit))]


def limit_per_task(splits: Splits, limit: int | None, seed: int) -> Splits:
    """At most `limit` problems per task and split, by a seeded choice."""
    if limit is None:
        return splits
    return {
        split: [
            problem
            for task, members in by_task(problems).items()
            for problem in take(members, limit, rng_for(seed, "limit", task, split))
        ]
        for split, problems in splits.items()
    }


def check_sizes(**sizes: int | None) -> None:
    """ConfigError for an option by which nothing would be left; None is an option that is not given."""
    if small := [name for name, size in sizes.items() if size is not None and size < 1]:
        raise ConfigError(f"{' and '.join(small)} must be at least 1")


def cut_pool(texts: Sequence[str], max_chars: int) -> list[str]:
    """Texts of one pool cut to `max_chars` in all: what short texts leave over, the long ones share."""
    shares: dict[int, str] = {}
    left = max_chars
    for done, index in enumerate(sorted(range(len(texts)), key=lambda i: len(texts[i]))):
        shares[index] = cut(texts[index], left // (len(texts) - done))
        left -= len(shares[index])
    return [shares[index] for index in range(len(texts))]
