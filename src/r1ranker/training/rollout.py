"""Experience. In: problems and the current policy. Out: `Trajectory`s of rewarded samples.

The same prompts, parser, elimination and rewards as in ranking; only the decoding samples instead of
taking the best. Next in the data flow: `ppo`, by way of `advantages` and `losses`.

An IRanker trains on two kinds of states. *Sampled states* are pools of every size that hold a
relevant candidate (the paper's); each is a trajectory of one step. The policy's *own episodes* run
from the whole pool to the last candidate; each is one trajectory of n-1 rewarded steps.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from r1ranker.answers import parse_ranking, parse_removal, removal_of
from r1ranker.backends.base import Choice
from r1ranker.backends.encoding import IdentifierTrie
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.elimination import Elimination, sampled_pool, start
from r1ranker.errors import ConfigError
from r1ranker.plans import chosen_step, ranking_tokens
from r1ranker.problem import Answer, Problem, part_of
from r1ranker.prompts import Prompt, bare_past, build_prompt, past_entry, sampled_past
from r1ranker.rewards import Reward, score_ranking, score_removal
from r1ranker.training.batch import Sample, joined
from r1ranker.training.config import RunConfig

Trajectory = list[Sample]


@dataclass
class State:
    """What the policy is asked in: the pool left of a problem, and the earlier steps (layout `append`)."""

    problem: Problem
    pool: tuple[int, ...]
    past: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Removal:
    """One sampled removal: what is trained on, what it said, and the whole completion as text."""

    sample: Sample
    answer: Answer
    completion: str


@dataclass
class _Episode:
    problem: Problem
    elimination: Elimination
    past: tuple[str, ...] = ()
    samples: Trajectory = field(default_factory=list)


def collect(
    backend: TransformersBackend, problems: Sequence[Problem], config: RunConfig, rng: random.Random
) -> list[Trajectory]:
    """About `ppo.batch` samples by the current policy."""
    ppo = config.ppo
    if config.design == "dranker":
        return rank_once(backend, rng.choices(problems, k=ppo.batch), config)
    own: list[Problem] = []
    while sum(len(p.candidates) - 1 for p in own) < ppo.batch * ppo.episode_share:
        own.append(sampled_part(rng.choice(problems), config, rng))
    remaining = ppo.batch - sum(len(p.candidates) - 1 for p in own)
    states = [sampled_state(rng.choice(problems), config, rng) for _ in range(remaining)]
    singles = [[removal.sample] for removal in removals(backend, states, config, rng)]
    return singles + (episodes(backend, own, config, rng) if own else [])


def sampled_state(problem: Problem, config: RunConfig, rng: random.Random) -> State:
    """A pool of random size that holds a relevant candidate; in `append`, the rest left in random order."""
    largest = min(len(problem.candidates), config.ppo.largest_pool or len(problem.candidates))
    pool = sampled_pool(problem, rng.randint(2, largest), rng)
    return State(problem, pool, sampled_past(problem, pool, rng, think=config.think))


def sampled_part(problem: Problem, config: RunConfig, rng: random.Random) -> Problem:
    """The problem itself, or with `largest_pool` a part of random size that holds a relevant candidate."""
    if config.ppo.largest_pool is None:
        return problem
    return part_of(problem, sampled_state(problem, config, rng).pool)


def episodes(
    backend: TransformersBackend, problems: Sequence[Problem], config: RunConfig, rng: random.Random
) -> list[Trajectory]:
    """Whole episodes by the current policy, side by side; finished ones leave.

    Where each step reads on from the one before, an episode is one sample instead of n - 1.
    """
    running = [_Episode(problem, start(problem.identifiers)) for problem in problems]
    everything = list(running)
    while running := [e for e in running if not e.elimination.done()]:
        states = [State(e.problem, e.elimination.pool, e.past) for e in running]
        for episode, step in zip(running, removals(backend, states, config, rng), strict=True):
            removed = removal_of(step.answer, episode.elimination.pool)
            episode.elimination = episode.elimination.remove(removed)
            episode.past = (
                (*episode.past, past_entry(step.completion, removed, step.answer.kind == "valid"))
                if config.think
                else bare_past(episode.elimination.removed)
            )
            episode.samples.append(step.sample)
    whole = [joined(episode.samples) for episode in everything]
    return [e.samples if one is None else [one] for e, one in zip(everything, whole, strict=True)]


def removals(
    backend: TransformersBackend, states: Sequence[State], config: RunConfig, rng: random.Random
) -> list[Removal]:
    """One sampled and rewarded removal per state."""
    prompts = [
        build_prompt(s.problem, s.pool, "iranker", layout=config.layout, think=config.think, past=s.past)
        for s in states
    ]
    if not config.think:
        choices = backend.choose(prompts, [state.pool for state in states])
        chosen = zip(states, prompts, choices, strict=True)
        return [_chosen(backend, state, prompt, choice, config, rng) for state, prompt, choice in chosen]
    out: list[Removal] = []
    generated = backend.generate_ids(prompts, max_new_tokens=config.ppo.max_new_tokens, temperature=1.0)
    for state, gen in zip(states, generated, strict=True):
        _check_prompt(len(gen.prompt_ids), config)
        text = backend.encoder.decode(gen.completion_ids)
        answer = parse_removal(text, state.pool, gen.truncated)
        reward = score_removal(text, answer, state.problem, state.pool, kind=config.ppo.reward)
        sample = _sample(gen.prompt_ids, gen.completion_ids, None, reward, answer, state.problem)
        out.append(Removal(sample, answer, text))
    return out


def rank_once(backend: TransformersBackend, problems: Sequence[Problem], config: RunConfig) -> list[Trajectory]:
    """One sampled and rewarded whole ranking per problem (DRanker)."""
    prompts = [build_prompt(p, p.identifiers, "dranker", think=config.think) for p in problems]
    limit = ranking_tokens(problems, config.think, config.ppo.max_new_tokens)
    generated = backend.generate_ids(prompts, max_new_tokens=limit, temperature=1.0)
    out: list[Trajectory] = []
    for problem, prompt, gen in zip(problems, prompts, generated, strict=True):
        _check_prompt(len(gen.prompt_ids), config)
        text = prompt.prefill + backend.encoder.decode(gen.completion_ids)
        answer = parse_ranking(text, problem.identifiers, gen.truncated)
        reward = score_ranking(text, answer, problem, problem.identifiers, kind=config.ppo.reward)
        out.append([_sample(gen.prompt_ids, gen.completion_ids, None, reward, answer, problem)])
    return out


def _chosen(
    backend: TransformersBackend,
    state: State,
    prompt: Prompt,
    choice: Choice,
    config: RunConfig,
    rng: random.Random,
) -> Removal:
    """An identifier drawn by the policy's probabilities, as the tokens that name it."""
    identifiers, weights = zip(*choice.probabilities.items(), strict=True)
    drawn: int = rng.choices(identifiers, weights=weights)[0]
    trie = backend.encoder.trie(state.pool)
    step = chosen_step(state.pool, choice, (drawn,))
    reward = score_removal(step.completion, step.answer, state.problem, state.pool, kind=config.ppo.reward)
    prompt_ids = backend.encoder.encode(prompt)
    _check_prompt(len(prompt_ids), config)
    sample = _sample(prompt_ids, list(trie.paths[drawn]), trie.allowed(drawn), reward, step.answer, state.problem)
    if config.ppo.answer == "expected" and len(trie.branches) == 1:
        branch = next(t for t, tokens in enumerate(trie.allowed(drawn)) if len(tokens) > 1)
        rewards = _answer_rewards(trie, state, choice, config)
        sample = dataclasses.replace(sample, answer_rewards={branch: rewards})
    return Removal(sample, step.answer, step.completion)


def _answer_rewards(trie: IdentifierTrie, state: State, choice: Choice, config: RunConfig) -> tuple[float, ...]:
    """The reward of each identifier of the pool, in the order of the tokens at which they part."""
    ((node, tokens),) = trie.branches.items()
    by_token = {path[len(node)]: identifier for identifier, path in trie.paths.items()}
    steps = [chosen_step(state.pool, choice, (by_token[token],)) for token in tokens]
    return tuple(
        score_removal(step.completion, step.answer, state.problem, state.pool, kind=config.ppo.reward).total
        for step in steps
    )


def _sample(
    prompt_ids: list[int],
    completion_ids: list[int],
    allowed: tuple[tuple[int, ...], ...] | None,
    reward: Reward,
    answer: Answer,
    problem: Problem,
) -> Sample:
    return Sample(prompt_ids, completion_ids, allowed, reward.total, reward.parts, answer.kind, problem.task)


def _check_prompt(tokens: int, config: RunConfig) -> None:
    if tokens > config.ppo.max_prompt_tokens:
        raise ConfigError(
            f"a training prompt has {tokens} tokens, more than ppo.max_prompt_tokens={config.ppo.max_prompt_tokens}; "
            "raise it, or use smaller pools or shorter candidate texts"
        )
