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
from r1ranker.backends.encoding import IdentifierTrie
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.elimination import Elimination, sampled_pool, start
from r1ranker.errors import ConfigError
from r1ranker.problem import Answer, Problem
from r1ranker.prompts import Prompt, build_prompt, transcript_entry
from r1ranker.rewards import Reward, score_ranking, score_removal
from r1ranker.training.batch import Sample
from r1ranker.training.config import RunConfig

Trajectory = list[Sample]


@dataclass
class State:
    """What the policy is asked in: the pool left of a problem, and the earlier steps (layout `append`)."""

    problem: Problem
    pool: tuple[int, ...]
    transcript: str = ""


@dataclass
class _Episode:
    problem: Problem
    elimination: Elimination
    transcript: str = ""
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
        own.append(rng.choice(problems))
    remaining = ppo.batch - sum(len(p.candidates) - 1 for p in own)
    states = [sampled_state(rng.choice(problems), config, rng) for _ in range(remaining)]
    singles = [[sample] for sample, _ in removals(backend, states, config, rng)]
    return singles + (episodes(backend, own, config, rng) if own else [])


def sampled_state(problem: Problem, config: RunConfig, rng: random.Random) -> State:
    """A pool of random size that holds a relevant candidate; in `append`, the rest left in random order."""
    largest = min(len(problem.candidates), config.ppo.largest_pool or len(problem.candidates))
    pool = sampled_pool(problem, rng.randint(2, largest), rng)
    gone = [k for k in problem.identifiers if k not in pool]
    rng.shuffle(gone)
    return State(problem, pool, "".join(transcript_entry("", k, valid=False) for k in gone))


def episodes(
    backend: TransformersBackend, problems: Sequence[Problem], config: RunConfig, rng: random.Random
) -> list[Trajectory]:
    """Whole episodes by the current policy, side by side; finished ones leave."""
    running = [_Episode(problem, start(problem.identifiers)) for problem in problems]
    everything = list(running)
    while running := [e for e in running if not e.elimination.done()]:
        states = [State(e.problem, e.elimination.pool, e.transcript) for e in running]
        for episode, (sample, answer) in zip(running, removals(backend, states, config, rng), strict=True):
            removed = removal_of(answer, episode.elimination.pool)
            completion = backend.encoder.decode(sample.completion_ids)
            prefill = build_prompt(episode.problem, (), "iranker", think=config.think).prefill
            closing = "" if config.think else "</answer>"
            entry = transcript_entry(f"{prefill}{completion}{closing}", removed, answer.kind == "valid")
            episode.elimination = episode.elimination.remove(removed)
            episode.transcript += entry
            episode.samples.append(sample)
    return [episode.samples for episode in everything]


def removals(
    backend: TransformersBackend, states: Sequence[State], config: RunConfig, rng: random.Random
) -> list[tuple[Sample, Answer]]:
    """One sampled and rewarded removal per state."""
    prompts = [
        build_prompt(s.problem, s.pool, "iranker", layout=config.layout, think=config.think, transcript=s.transcript)
        for s in states
    ]
    if not config.think:
        return [_chosen(backend, s, p, choice, config, rng) for s, p, choice in _choices(backend, states, prompts)]
    out: list[tuple[Sample, Answer]] = []
    generated = backend.generate_ids(
        prompts, max_new_tokens=config.ppo.max_new_tokens, temperature=config.ppo.temperature
    )
    for state, gen in zip(states, generated, strict=True):
        _check_prompt(len(gen.prompt_ids), config)
        text = backend.encoder.decode(gen.completion_ids)
        answer = parse_removal(text, state.pool, gen.truncated)
        reward = score_removal(text, answer, state.problem, state.pool, kind=config.ppo.reward)
        out.append((_sample(gen.prompt_ids, gen.completion_ids, None, reward, answer, state.problem), answer))
    return out


def rank_once(backend: TransformersBackend, problems: Sequence[Problem], config: RunConfig) -> list[Trajectory]:
    """One sampled and rewarded whole ranking per problem (DRanker)."""
    prompts = [build_prompt(p, p.identifiers, "dranker", think=config.think) for p in problems]
    generated = backend.generate_ids(
        prompts, max_new_tokens=config.ppo.max_new_tokens, temperature=config.ppo.temperature
    )
    out: list[Trajectory] = []
    for problem, prompt, gen in zip(problems, prompts, generated, strict=True):
        _check_prompt(len(gen.prompt_ids), config)
        text = prompt.prefill + backend.encoder.decode(gen.completion_ids)
        answer = parse_ranking(text, problem.identifiers, gen.truncated)
        reward = score_ranking(text, answer, problem, problem.identifiers, kind=config.ppo.reward)
        out.append([_sample(gen.prompt_ids, gen.completion_ids, None, reward, answer, problem)])
    return out


def _choices(
    backend: TransformersBackend, states: Sequence[State], prompts: Sequence[Prompt]
) -> list[tuple[State, Prompt, dict[int, float]]]:
    choices = backend.choose(prompts, [s.pool for s in states])
    return [(s, p, dict(c.probabilities)) for s, p, c in zip(states, prompts, choices, strict=True)]


def _chosen(
    backend: TransformersBackend,
    state: State,
    prompt: Prompt,
    probabilities: dict[int, float],
    config: RunConfig,
    rng: random.Random,
) -> tuple[Sample, Answer]:
    """An identifier drawn by the policy's probabilities, as the tokens that name it."""
    identifiers = list(probabilities)
    drawn = rng.choices(identifiers, weights=[probabilities[k] for k in identifiers])[0]
    trie = backend.encoder.trie(state.pool)
    answer = Answer("valid", (drawn,))
    text = f"{prompt.prefill}[{drawn}]</answer>"
    reward = score_removal(text, answer, state.problem, state.pool, kind=config.ppo.reward)
    prompt_ids = backend.encoder.encode(prompt)
    _check_prompt(len(prompt_ids), config)
    sample = _sample(prompt_ids, list(trie.paths[drawn]), trie.allowed(drawn), reward, answer, state.problem)
    if config.ppo.answer == "expected" and len(trie.branches) == 1:
        sample = dataclasses.replace(sample, answer_rewards=_answer_rewards(trie, state, prompt, config))
    return sample, answer


def _answer_rewards(trie: IdentifierTrie, state: State, prompt: Prompt, config: RunConfig) -> tuple[float, ...]:
    """The reward of each identifier of the pool, in the order of the tokens at which they part."""
    ((node, tokens),) = trie.branches.items()
    by_token = {path[len(node)]: identifier for identifier, path in trie.paths.items()}
    rewards = []
    for token in tokens:
        text = f"{prompt.prefill}[{by_token[token]}]</answer>"
        answer = Answer("valid", (by_token[token],))
        rewards.append(score_removal(text, answer, state.problem, state.pool, kind=config.ppo.reward).total)
    return tuple(rewards)


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
