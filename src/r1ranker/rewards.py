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
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from r1ranker.errors import ConfigError
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
    if answer.kind != "valid":
        return _broken(answer)
    gains = [problem.gain(k) for k in pool]
    spread = max(gains) - min(gains)
    return 1.0 - (problem.gain(answer.ids[0]) - min(gains)) / spread if spread else 1.0


def selection_reward(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """1 when what was selected is relevant, 0 when it is not."""
    if answer.kind != "valid":
        return _broken(answer)
    return 1.0 if problem.is_relevant(answer.ids[0]) else 0.0


def graded_selection_reward(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """1 for selecting the most relevant of the pool, 0 for the least; 1 when all are equal."""
    if answer.kind != "valid":
        return _broken(answer)
    gains = [problem.gain(k) for k in pool]
    spread = max(gains) - min(gains)
    return (problem.gain(answer.ids[0]) - min(gains)) / spread if spread else 1.0


def ranking_reward(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """nDCG@20 with relevance 0 or 1, plus coverage (paper, Rewards: ranking)."""
    return _list_reward(answer, _binary_gains(problem, pool))


def graded_ranking_reward(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """nDCG@20 with the gains as they are (linear, as trec_eval computes it), plus coverage."""
    return _list_reward(answer, _gains(problem, pool))


def ndcg(gains: Sequence[int], ideal: Sequence[int], cutoff: int = CUTOFF) -> float:
    """Linear-gain nDCG of `gains` in listed order against the best order of `ideal`; 1 when all are 0."""
    best = _dcg(sorted(ideal, reverse=True)[:cutoff])
    return _dcg(gains[:cutoff]) / best if best else 1.0


RewardPart = Callable[[Answer, Problem, Sequence[int]], float]

REWARDS: dict[str, dict[str, RewardPart]] = {
    "paper": {"exclusion": exclusion_reward, "selection": selection_reward, "ranking": ranking_reward},
    "graded": {
        "exclusion": graded_exclusion_reward,
        "selection": graded_selection_reward,
        "ranking": graded_ranking_reward,
    },
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
    return _total(completion, {name: _reward_part(kind, name)(answer, problem, pool)})


def score_ranking(
    completion: str, answer: Answer, problem: Problem, pool: Sequence[int], kind: str = "paper"
) -> Reward:
    """The reward of a DRanker completion; `pool` is what it had to rank."""
    part = _reward_part(kind, "ranking")(answer, problem, pool)
    return _total(completion, {"ranking": part})


def moved_up(order: Sequence[int], problem: Problem, kind: str = "paper") -> list[dict[int, float]]:
    """The `ranking` part of a whole list where one candidate moves up: `[i][k]` is that of k, moved up to place i.

    For the n - 1 places at which there is a choice, and each k that stands there or later. Sums of what stays where it
    is and of what moves one place down make it n(n + 1) / 2 additions, where scoring each list takes n times as many.
    """
    gains = {"paper": _binary_gains, "graded": _gains}[_known(kind)](problem, order)
    best = _dcg(sorted(gains.values(), reverse=True)[:CUTOFF])
    listed = [gains[k] for k in order]
    discounts = [1 / math.log2(place + 2) if place < CUTOFF else 0.0 for place in range(len(order))]
    stays = [*accumulate(map(mul, listed, discounts), initial=0.0)]  # of all before a place
    moves = [*accumulate(map(mul, listed, discounts[1:]), initial=0.0)]  # the same, one place further down

    def reward(i: int, p: int) -> float:
        total = stays[i] + listed[p] * discounts[i] + moves[p] - moves[i] + stays[-1] - stays[p + 1]
        return total / best if best else 1.0

    return [{order[p]: reward(i, p) for p in range(i, len(order))} for i in range(len(order) - 1)]


def _reward_part(kind: str, name: str) -> RewardPart:
    return REWARDS[_known(kind)][name]


def _known(kind: str) -> str:
    if kind not in REWARDS:
        raise ConfigError(f"reward {kind!r} does not exist; choose one of {', '.join(REWARDS)}")
    return kind


def _binary_gains(problem: Problem, pool: Sequence[int]) -> dict[int, int]:
    return {k: int(problem.is_relevant(k)) for k in pool}


def _gains(problem: Problem, pool: Sequence[int]) -> dict[int, int]:
    return {k: problem.gain(k) for k in pool}


def _total(completion: str, judged: Mapping[str, float]) -> Reward:
    parts = {"format": format_reward(completion), "tags": tag_reward(completion), **judged}
    return Reward(sum(parts.values()), parts)


def _broken(answer: Answer) -> float:
    return UNKNOWN_ID if answer.kind == "unknown_id" else NO_ANSWER


def _list_reward(answer: Answer, gains: Mapping[int, int]) -> float:
    if answer.kind not in ("valid", "incomplete", "duplicate"):
        return _broken(answer)
    written = len(gains) + (answer.kind == "duplicate")
    quality = ndcg([gains[k] for k in answer.ids], list(gains.values()))
    return quality + (len(answer.ids) / written - 1.0)


def _dcg(gains: Sequence[int]) -> float:
    return math.fsum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
