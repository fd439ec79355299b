"""Experience in layout `blocks`. In: states and the current policy. Out: a `Trajectory` of one sample for each.

A pool is read once, and a whole episode is one sample: a judge's numbers are the policy of every step, and an
identifier's questions stand side by side behind the same blocks. Next in the data flow: `experience`.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from r1ranker.backends.blocks import Blocks
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.io.config import RunConfig
from r1ranker.problem import Answer, Problem, Step, part_of
from r1ranker.prompts import Prompt, Wanted, block_prompt, written_list
from r1ranker.ranking.plans import chosen_step
from r1ranker.rewards import score_ranking, score_removal
from r1ranker.training.algorithms.moved_up import moved_up
from r1ranker.training.batch import Sample


@dataclass
class _Episode:
    """Identifiers are those of `problem`, which holds the pool alone. steps: how many decisions there are.

    called: what the whole problem calls them. chances: the policy of each decision; empty where it was not asked yet.
    """

    problem: Problem
    prompt: Prompt
    pool: Blocks
    rng: random.Random
    steps: int
    judged: tuple[float, ...] = ()
    named: list[int] = field(default_factory=list)
    left: list[tuple[int, ...]] = field(default_factory=list)
    called: tuple[int, ...] = ()
    chances: list[Mapping[int, float]] = field(default_factory=list)


Begun = tuple[Problem, Sequence[int], bool, random.Random]
"""A problem, the pool of it, whether to go on to the last candidate, and what draws."""


def episodes(backend: TransformersBackend, states: Sequence[Begun], config: RunConfig) -> list[Sample]:
    """What the policy does from each state."""
    running = [_begin(backend, problem, pool, whole, rng, config) for problem, pool, whole, rng in states]
    if config.readout == "judge" and config.reads_once:
        for episode in running:  # nobody asks what was drawn
            episode.judged = (0.0,) * len(episode.pool.blocks)
            _draw(episode, dict.fromkeys(episode.problem.identifiers, 1.0))
    elif config.readout == "judge":
        for episode, values in zip(running, backend.judged([episode.pool for episode in running]), strict=True):
            episode.judged = tuple(values.float().tolist())
            for weights in _by_judge(episode, wanted(config)):
                total = sum(weights.values())
                episode.chances.append({k: weight / total for k, weight in weights.items()})
                _draw(episode, weights)
    else:
        while unfinished := [episode for episode in running if len(episode.named) < episode.steps]:
            choices = backend.choose([e.prompt for e in unfinished], [_left(e) for e in unfinished])
            for episode, choice in zip(unfinished, choices, strict=True):
                episode.chances.append(choice.probabilities)
                _draw(episode, choice.probabilities)
    return [_sample(episode, config) for episode in running]


def wanted(config: RunConfig) -> Wanted:
    """Which candidate is named first: a list begins with the best."""
    return "best" if config.design == "dranker" else config.ask


def _begin(
    backend: TransformersBackend,
    problem: Problem,
    pool: Sequence[int],
    whole: bool,
    rng: random.Random,
    config: RunConfig,
) -> _Episode:
    part = part_of(problem, pool)
    prompt = block_prompt(part, config.readout, wanted(config), rng, query=config.query)
    steps = len(pool) - 1 if whole else 1
    return _Episode(part, prompt, backend.block_ids(prompt), rng, steps, called=tuple(pool))


def _left(episode: _Episode) -> tuple[int, ...]:
    return tuple(k for k in episode.problem.identifiers if k not in episode.named)


def _by_judge(episode: _Episode, ask: Wanted) -> Iterator[Mapping[int, float]]:
    """The policy of each step: the softmax of what is left."""
    sign = 1.0 if ask == "best" else -1.0
    while len(episode.named) < episode.steps:
        values = {k: sign * episode.judged[k - 1] for k in _left(episode)}
        most = max(values.values())
        yield {k: math.exp(value - most) for k, value in values.items()}


def _draw(episode: _Episode, weights: Mapping[int, float]) -> None:
    episode.left.append(_left(episode))
    episode.named.append(drawn(weights, episode.rng))


def drawn(weights: Mapping[int, float], rng: random.Random) -> int:
    """An identifier, each as often as its weight says."""
    identifiers, chances = zip(*weights.items(), strict=True)
    identifier: int = rng.choices(identifiers, weights=chances)[0]
    return identifier


def _sample(episode: _Episode, config: RunConfig) -> Sample:
    """The episode as one sample, an entry of `completion_ids` for each step: the place of the block that was named."""
    pool = episode.pool
    if not pool.judged:
        (question,) = pool.questions
        sees = [tuple(k - 1 for k in left) for left in episode.left]
        pool = dataclasses.replace(pool, questions=tuple(dataclasses.replace(question, sees=s) for s in sees))
    sample = Sample(
        list(pool.head),
        [k - 1 for k in episode.named],
        tuple(tuple(k - 1 for k in left) for left in episode.left),
        0.0,
        task=episode.problem.task,
        steps=episode.steps,
        pool=pool,
        wants=wanted(config),
        judged=episode.judged,
        said=_said(episode, config),
    )
    return _ranked(sample, episode, config) if config.design == "dranker" else _stepwise(sample, episode, config)


def _said(episode: _Episode, config: RunConfig) -> tuple[Step, ...]:
    """The steps in the whole problem's identifiers."""
    called = dict(enumerate(episode.called, start=1))
    if config.design == "dranker":
        order = tuple(called[k] for k in (*episode.named, *_left(episode)))
        return (Step(episode.called, Answer("valid", order), completion=written_list(order)),)
    chances = episode.chances or [{} for _ in episode.named]
    return tuple(
        chosen_step(tuple(called[k] for k in left), (called[named],), {called[k]: p for k, p in of_step.items()})
        for left, named, of_step in zip(episode.left, episode.named, chances, strict=True)
    )


def _stepwise(sample: Sample, episode: _Episode, config: RunConfig) -> Sample:
    """Each step earns its own reward, and what each candidate left would have earned in its place is known."""
    earned = [earned_by_each(episode.problem, left, config) for left in episode.left]
    got = [rewards[k] for rewards, k in zip(earned, episode.named, strict=True)]
    name = "selection" if wanted(config) == "best" else "exclusion"
    credited = {t: tuple(rewards.values()) for t, rewards in enumerate(earned)}
    return dataclasses.replace(
        sample,
        reward=fmean(got),
        parts={name: fmean(got)},
        rewards=dict(enumerate(got)),
        answer_rewards=credited if config.ppo.answer == "expected" else {},
        chance={t: fmean(rewards.values()) for t, rewards in enumerate(earned)} if config.ppo.centre else {},
    )


def earned_by_each(problem: Problem, left: tuple[int, ...], config: RunConfig) -> dict[int, float]:
    """What naming each identifier that is left earns, in good form."""
    steps = {k: chosen_step(left, (k,), {}) for k in left}
    return {
        k: score_removal(step.completion, step.answer, problem, left, config.ppo.reward, wanted(config)).total
        for k, step in steps.items()
    }


def _ranked(sample: Sample, episode: _Episode, config: RunConfig) -> Sample:
    """The list earns one reward; where all answers are credited, each place has that of who moves up to it."""
    order = (*episode.named, *_left(episode))
    answer = Answer("valid", order)
    reward = score_ranking(written_list(order), answer, episode.problem, order, kind=config.ppo.reward)
    credited = {}
    if config.ppo.answer == "expected":
        moves = moved_up(order, episode.problem, config.ppo.reward)
        credited = {t: tuple(moves[t][k] for k in left) for t, left in enumerate(episode.left)}
    return dataclasses.replace(sample, reward=reward.total, parts=reward.parts, answer_rewards=credited)
