"""What a completion earns. In: a completion (never the prompt) and its `Answer`. Out: a `Reward`.

Next in the data flow: `training.rollout` puts the total on the step's last token.

| part      | paper                                        | graded                                  |
| --------- | -------------------------------------------- | --------------------------------------- |
| format    | 0, or -1 when not think block, answer block  | same                                    |
| tags      | -0.25 a tag that does not occur exactly once | same                                    |
| exclusion | 1 not the positive, 0 the positive           | 1 lowest gain of the pool ... 0 highest |
| selection | 1 relevant, 0 not                            | 1 highest gain of the pool ... 0 lowest |
| ranking   | nDCG@20 of the positives + coverage          | nDCG@20 of the gains + coverage         |
| both      | -0.5 unknown identifier, -1 no answer        | same                                    |

Coverage is (distinct listed) / max(n, identifiers written) - 1: the paper's "share listed - 1" when nothing
repeats. An `Answer` keeps only distinct identifiers, so a duplicate one counts as if n + 1 were written.
"No answer" is every kind that leaves nothing to score: missing, truncated, malformed.

`module:function` is a reward of the user's own, in one of two forms, told apart by how many arguments it takes:

    def table(problem, pool) -> {identifier: worth}     # what each candidate is worth, for every identifier of the pool
    def judged(answer, problem, pool) -> float          # what one answer earns

A table stands where the gains stand in `graded`: removals, selections, lists and credit of all answers follow from it,
and only differences within the pool count. `judged` stands for exclusion, selection, or the nDCG of a list; it is asked
about answers that can be scored only, the other rows of the table above stay.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Answer, Problem
from r1ranker.prompts import Wanted

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
UNKNOWN_ID = -0.5
NO_ANSWER = -1.0
CUTOFF = 20

_TAG = re.compile("|".join(TAGS))
_FORM = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reward:
    """`total` is the sum of the named `parts`."""

    total: float
    parts: Mapping[str, float]


RewardPart = Callable[[Answer, Problem, Sequence[int]], float]
Gains = Callable[[Problem, Sequence[int]], Mapping[int, float]]
"""A number for each identifier of the pool, the more the better, none below 0."""


def format_reward(completion: str) -> float:
    """0 when the completion is exactly think block then answer block, else -1 (paper, Rewards: format)."""
    exact = _TAG.findall(completion) == list(TAGS) and _FORM.fullmatch(completion)
    return 0.0 if exact else -1.0


def tag_reward(completion: str) -> float:
    """-0.25 for each of the four tags that does not occur exactly once (paper, Rewards: tags)."""
    return -0.25 * sum(completion.count(tag) != 1 for tag in TAGS)


def exclusion_reward(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """1 when what was removed is not relevant, 0 when it is (paper, Rewards: exclusion)."""
    if answer.kind != "valid":
        return _broken(answer)
    return 0.0 if problem.is_relevant(answer.ids[0]) else 1.0


def graded_exclusion_reward(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """1 for removing the least relevant of the pool, 0 for the most; 1 when all are equal.

    With one positive and gains 0 and 1 it is the paper's exclusion reward while the positive is in the pool.
    """
    return _removal_reward(_gains, answer, problem, pool)


def selection_reward(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """1 when what was selected is relevant, 0 when it is not."""
    if answer.kind != "valid":
        return _broken(answer)
    return 1.0 if problem.is_relevant(answer.ids[0]) else 0.0


def graded_selection_reward(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """1 for selecting the most relevant of the pool, 0 for the least; 1 when all are equal."""
    return _selection_reward(_gains, answer, problem, pool)


def ranking_reward(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """nDCG@20 with relevance 0 or 1, plus coverage (paper, Rewards: ranking)."""
    return _ranking_reward(_binary_gains, answer, problem, pool)


def graded_ranking_reward(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """nDCG@20 with the gains as they are (linear, as trec_eval computes it), plus coverage."""
    return _ranking_reward(_gains, answer, problem, pool)


def ndcg(gains: Sequence[float], ideal: Sequence[float]) -> float:
    """Linear-gain nDCG@20 of `gains` in listed order against the best order of `ideal`; 1 when all are 0."""
    best = dcg(sorted(ideal, reverse=True)[:CUTOFF])
    return dcg(gains[:CUTOFF]) / best if best else 1.0


Own = Callable[..., Any]
"""A function of the user's."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A reward by its parts. gains: what a list's nDCG is made of; None where a list is judged as a whole."""

    exclusion: RewardPart
    selection: RewardPart
    ranking: RewardPart
    gains: Gains | None


def _binary_gains(problem: Problem, pool: Sequence[int]) -> dict[int, int]:
    return {k: int(problem.is_relevant(k)) for k in pool}


def _gains(problem: Problem, pool: Sequence[int]) -> dict[int, int]:
    return {k: problem.gain(k) for k in pool}


REWARDS: dict[str, Kind] = {
    "paper": Kind(exclusion_reward, selection_reward, ranking_reward, _binary_gains),
    "graded": Kind(graded_exclusion_reward, graded_selection_reward, graded_ranking_reward, _gains),
}


def score_removal(
    completion: str,
    answer: Answer,
    problem: Problem,
    pool: Sequence[int],
    kind: str = "paper",
    ask: Wanted = "worst",
) -> Reward:
    """The reward of one IRanker step; `pool` is what the model could choose from."""
    name = "selection" if ask == "best" else "exclusion"
    part: RewardPart = getattr(kind_of(kind), name)
    return _total(completion, {name: part(answer, problem, pool)})


def score_ranking(
    completion: str, answer: Answer, problem: Problem, pool: Sequence[int], kind: str = "paper"
) -> Reward:
    """The reward of a DRanker completion; `pool` is what it had to rank."""
    return _total(completion, {"ranking": kind_of(kind).ranking(answer, problem, pool)})


def gains_of(kind: str) -> Gains:
    """What a list's nDCG is made of. Raises ConfigError for a reward that judges lists as a whole."""
    gains = kind_of(kind).gains
    if gains is None:
        raise ConfigError(
            f"the reward {kind} judges whole lists, not what each candidate in a place would earn, which "
            "ppo.answer=expected credits: write it as a table, function(problem, pool), or set ppo.answer=sampled"
        )
    return gains


def is_own(kind: str) -> bool:
    """Whether a reward is named as the user's own: module:function."""
    return re.fullmatch(r"[\w.]+:\w+", kind) is not None


@lru_cache
def kind_of(kind: str) -> Kind:
    """The reward of a name; one of the user's own is imported, from the working directory too. Raises ConfigError."""
    if kind in REWARDS:
        return REWARDS[kind]
    if not is_own(kind):
        raise ConfigError(
            f"reward {kind!r} does not exist; choose one of {', '.join(REWARDS)}, or name a function of your own as "
            "module:function"
        )
    function = own_function(kind)
    if _arguments(kind, function) == len(TABLE):
        gains = partial(_table, kind, function)
        removal, selection, ranking = (partial(p, gains) for p in (_removal_reward, _selection_reward, _ranking_reward))
        return Kind(removal, selection, ranking, gains)
    step = partial(_judged_step, kind, function)
    return Kind(step, step, partial(_judged_list, kind, function), None)


def own_function(kind: str) -> Own:
    """The function that module:function names. Raises ConfigError."""
    module, _, name = kind.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` has it
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # what a module does when it is imported is the user's
        raise ConfigError(
            f"the reward {kind} cannot be imported ({type(error).__name__}: {error}); the module has to lie in the "
            f"working directory, {here}, or on PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigError(f"the reward {kind}: module {module} has no function {name!r}")
    function: Own = found
    return function


TABLE, JUDGED = ("problem", "pool"), ("answer", "problem", "pool")


def _arguments(kind: str, function: Own) -> int:
    """How many arguments the function takes: those of a table or of a judgement."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some of Python's own say nothing of theirs
        signature = inspect.Signature()
    needed = [p for p in signature.parameters.values() if p.default is p.empty]
    fixed = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed)
    if not fixed or len(needed) not in (len(TABLE), len(JUDGED)):
        forms = f"({', '.join(TABLE)}) -> {{identifier: worth}} or ({', '.join(JUDGED)}) -> float"
        raise ConfigError(f"the reward {kind} takes {signature}; it has to take {forms}")
    return len(needed)


def _table(kind: str, function: Own, problem: Problem, pool: Sequence[int]) -> dict[int, float]:
    """The worths that the user's function gives, from 0, the least of the pool, to 1."""
    told = _called(kind, function, problem, tuple(pool))
    if not isinstance(told, Mapping):
        raise DataError(
            f"the reward {kind} returned a {type(told).__name__}, not {{identifier: worth}}, {_of(problem)}"
        )
    if missing := [k for k in pool if k not in told]:
        raise DataError(f"the reward {kind} gives no worth to identifier {missing[0]}, {_of(problem)}")
    worth = {k: _number(kind, told[k], problem) for k in pool}
    least = min(worth.values())
    spread = _number(kind, max(worth.values()) - least, problem)
    return {k: (value - least) / spread if spread else 0.0 for k, value in worth.items()}


def _judged_step(kind: str, function: Own, answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    if answer.kind != "valid":
        return _broken(answer)
    return _number(kind, _called(kind, function, answer, problem, tuple(pool)), problem)


def _judged_list(kind: str, function: Own, answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    if not _is_list(answer):
        return _broken(answer)
    quality = _number(kind, _called(kind, function, answer, problem, tuple(pool)), problem)
    return quality + _coverage(answer, len(pool))


def _called(kind: str, function: Own, *given: Any) -> Any:
    try:
        return function(*given)
    except Exception as error:
        problem = given[-2]
        raise DataError(f"the reward {kind} failed ({type(error).__name__}: {error}), {_of(problem)}") from error


def _number(kind: str, value: Any, problem: Problem) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"the reward {kind} returned {value!r}, which is no finite number, {_of(problem)}")
    return number


def _of(problem: Problem) -> str:
    return f"of problem {problem.qid!r}, task {problem.task!r}"


def _total(completion: str, judged: Mapping[str, float]) -> Reward:
    parts = {"format": format_reward(completion), "tags": tag_reward(completion), **judged}
    return Reward(sum(parts.values()), parts)


def _broken(answer: Answer) -> float:
    return UNKNOWN_ID if answer.kind == "unknown_id" else NO_ANSWER


def _removal_reward(gains: Gains, answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    return _broken(answer) if answer.kind != "valid" else 1.0 - _share(gains(problem, pool), answer.ids[0], 0.0)


def _selection_reward(gains: Gains, answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    return _broken(answer) if answer.kind != "valid" else _share(gains(problem, pool), answer.ids[0], 1.0)


def _share(gains: Mapping[int, float], named: int, equal: float) -> float:
    """Where a gain stands between the lowest of the pool, 0, and the highest, 1; `equal` when they are the same."""
    low, high = min(gains.values()), max(gains.values())
    return (gains[named] - low) / (high - low) if high > low else equal


def _ranking_reward(gains: Gains, answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    if not _is_list(answer):
        return _broken(answer)
    of_pool = gains(problem, pool)
    return ndcg([of_pool[k] for k in answer.ids], list(of_pool.values())) + _coverage(answer, len(pool))


def _is_list(answer: Answer) -> bool:
    return answer.kind in ("valid", "incomplete", "duplicate")


def _coverage(answer: Answer, size: int) -> float:
    return len(answer.ids) / (size + (answer.kind == "duplicate")) - 1.0


def dcg(gains: Sequence[float]) -> float:
    """Linear gains, each over log2 of its place + 1 (places from 1)."""
    return math.fsum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
