"""Worked examples for the supervised start. In: a `Problem`. Out: a prompt, and what to write after it.

Where several continuations are equally right (any of the tied worst candidates may be removed), the
example says so: `alternatives` spreads the target over them, instead of teaching one at random.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from r1ranker.backends.encoding import Encoder
from r1ranker.baselines.fusion import lambdamart
from r1ranker.elimination import sampled_pool
from r1ranker.errors import DataError
from r1ranker.io.config import WarmstartConfig
from r1ranker.problem import Problem, Ranking, part_of
from r1ranker.prompts import ANOTHER, NEXT, build_prompt, neutralise

THOUGHT_WORDS = 4


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Token ids of prompt and target. alternatives: for a position in the target, weight by token.

    allowed: for a position in the target, the tokens that can be chosen there; elsewhere any.
    ends: where a candidate's line ends in the prompt: (position, the token of its identifier, its gain as a
        share of the best).
    ranks: whether the answer begins with the best candidate, not with the worst.
    """

    prompt_ids: list[int]
    target_ids: list[int]
    alternatives: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    allowed: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    ends: tuple[tuple[int, int, float], ...] = ()
    ranks: bool = False

    @property
    def deciding(self) -> int:
        """The position in the target of the first identifier that is chosen, not copied."""
        return min(self.alternatives, default=0)


def demonstrate(problem: Problem, encoder: Encoder, config: WarmstartConfig, rng: random.Random) -> Demonstration:
    """One example of a random kind: remove or rank, with or without a thought, either layout."""
    pool = random_pool(problem, rng)
    think = rng.random() < config.think_share
    ranks = rng.random() < config.ranking_share
    episode = not ranks and rng.random() < config.append_share and not think
    if episode:
        problem = part_of(problem, pool)
    shown = by_prior(problem) if config.answers == "prior" else problem
    if ranks:
        example = _ranking(shown, pool, think, encoder, rng)
    elif episode:
        example = _episode(shown, encoder, rng)
    else:
        example = _removal(shown, pool, think, encoder, rng)
    ends = candidate_ends(problem, example.prompt_ids, encoder)
    return dataclasses.replace(example, ends=ends, ranks=ranks)


def taught(problems: Sequence[Problem], config: WarmstartConfig) -> list[Problem]:
    """The problems; where examples answer by LambdaMART, its places stand in place of the gains.

    A teacher that ranks all candidates says more of a problem than its one relevant candidate does (Hinton et al.,
    2015), and has seen thousands of problems where a batch holds a few.
    """
    if config.answers != "lambdamart":
        return list(problems)
    return [_by_ranking(p, ranking) for p, ranking in zip(problems, lambdamart(problems, problems), strict=True)]


def _by_ranking(problem: Problem, ranking: Ranking) -> Problem:
    last = len(ranking.docids) - 1
    return dataclasses.replace(problem, gains={docid: last - i for i, docid in enumerate(ranking.docids)})


def by_prior(problem: Problem) -> Problem:
    """The problem with its prior in place of its gains: whoever answers by these knows no more than the prior does.

    Raises DataError where a candidate has none.
    """
    missing = [c.docid for c in problem.candidates if c.docid not in problem.prior]
    if missing:
        raise DataError(
            f"problem {problem.qid!r} of task {problem.task!r}: no prior for {missing[0]!r}; "
            "give one, or set warmstart.answers=gains"
        )
    levels = sorted(set(problem.prior.values()))
    gains = {c.docid: levels.index(problem.prior[c.docid]) for c in problem.candidates}
    return dataclasses.replace(problem, gains=gains)


def candidate_ends(problem: Problem, prompt_ids: list[int], encoder: Encoder) -> tuple[tuple[int, int, float], ...]:
    """Where each candidate's line ends in a prompt; none where identifiers or the line end are several tokens."""
    (line_end, *more) = encoder.encode_text("\n")
    starts = {path[0]: k for k, path in encoder.trie(problem.identifiers).paths.items() if len(path) == 1}
    if more or len(starts) < len(problem.candidates):
        return ()
    best = max(problem.gain(k) for k in problem.identifiers) or 1
    ends: list[tuple[int, int, float]] = []
    current, name = 0, 0
    for position, token in enumerate(prompt_ids):
        if position and prompt_ids[position - 1] == line_end:  # elsewhere, in the past, it is an answer
            current, name = starts.get(token, 0), token
        if current and token == line_end:
            ends.append((position, name, problem.gain(current) / best))
            current = 0
    return tuple(ends)


def random_pool(problem: Problem, rng: random.Random) -> tuple[int, ...]:
    """A pool of random size from 2 to n; small ones are likelier, since they teach most per token."""
    n = len(problem.candidates)
    size = min(n, 2 + int((n - 1) * rng.random() ** 3))
    if any(map(problem.is_relevant, problem.identifiers)):
        return sampled_pool(problem, size, rng)
    return tuple(sorted(rng.sample(problem.identifiers, size)))


def _episode(problem: Problem, encoder: Encoder, rng: random.Random) -> Demonstration:
    """A whole elimination without thoughts in layout `append`: every step's answer is a target of one sequence."""
    prompt = build_prompt(problem, problem.identifiers, "iranker", layout="append", think=False)
    target_ids: list[int] = []
    alternatives: dict[int, Mapping[int, float]] = {}
    allowed: dict[int, tuple[int, ...]] = {}
    left = problem.identifiers
    while len(left) > 1:
        if target_ids:
            target_ids += encoder.encode_text(ANOTHER)
        worst = _worst(problem, left)
        tokens = {k: encoder.encode_text(f"[{k}]") for k in left}
        if all(len(path) == 1 for path in tokens.values()):
            alternatives[len(target_ids)] = {tokens[k][0]: 1 / len(worst) for k in worst}
            allowed[len(target_ids)] = tuple(path[0] for path in tokens.values())
        removed = rng.choice(worst)
        target_ids += [*tokens[removed], *encoder.encode_text("</answer>")]
        left = tuple(k for k in left if k != removed)
    return Demonstration(encoder.encode(prompt), target_ids, alternatives, allowed)


def _removal(
    problem: Problem, pool: tuple[int, ...], think: bool, encoder: Encoder, rng: random.Random
) -> Demonstration:
    worst = _worst(problem, pool)
    removed = rng.choice(worst)
    prompt = build_prompt(problem, pool, "iranker", think=think)
    thought = f"<think>\n{_named(problem, removed)} fits least\n</think>\n<answer>" if think else ""
    return _demonstration(encoder, encoder.encode(prompt), thought, [removed], [worst])


def _ranking(
    problem: Problem, pool: tuple[int, ...], think: bool, encoder: Encoder, rng: random.Random
) -> Demonstration:
    order = sorted(pool, key=lambda k: (-problem.gain(k), rng.random()))
    ties = [[j for j in order[i:] if problem.gain(j) == problem.gain(k)] for i, k in enumerate(order)]
    prompt = build_prompt(problem, pool, "dranker", think=think)
    thought = f"<think>\n{_named(problem, order[0])} fits best\n</think>\n<answer>" if think else ""
    return _demonstration(encoder, encoder.encode(prompt), thought, order, ties)


def _demonstration(
    encoder: Encoder, prompt_ids: list[int], thought: str, answer: list[int], ties: list[list[int]]
) -> Demonstration:
    """The thought, then the answer's identifiers; with a thought the answer follows it without choice."""
    target_ids = encoder.encode_text(thought) if thought else []
    alternatives: dict[int, Mapping[int, float]] = {}
    for i, (identifier, tied) in enumerate(zip(answer, ties, strict=True)):
        if i:
            target_ids += encoder.encode_text(NEXT)
        starts = [encoder.encode_text(f"[{k}]") for k in tied]
        if all(len(tokens) == 1 for tokens in starts) and not (thought and i == 0):
            alternatives[len(target_ids)] = {tokens[0]: 1 / len(starts) for tokens in starts}
        target_ids += encoder.encode_text(f"[{identifier}]")
    return Demonstration(prompt_ids, target_ids + encoder.encode_text("</answer>"), alternatives)


def _worst(problem: Problem, pool: tuple[int, ...]) -> list[int]:
    lowest = min(problem.gain(k) for k in pool)
    return [k for k in pool if problem.gain(k) == lowest]


def _named(problem: Problem, identifier: int) -> str:
    words = neutralise(problem.candidate(identifier).text).split()
    return f"[{identifier}] {' '.join(words[:THOUGHT_WORDS])}"
