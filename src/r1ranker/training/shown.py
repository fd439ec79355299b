"""Rollouts to look at. In: what the policy did in a step of training. Out: lines of `<out>/rollouts.jsonl`.

A line is a `Ranking` as `rank --trace` writes it, of the pool that the policy was asked about, with three more keys:
training_step, task and reward. What reads traces reads these too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from r1ranker.answers import completed_order
from r1ranker.elimination import ranking_from, start
from r1ranker.io.runs import RANKING
from r1ranker.problem import Ranking, Step, Usage, part_of
from r1ranker.prompts import Design, Wanted
from r1ranker.ranking.plans import chosen_step
from r1ranker.training.experience import Experience
from r1ranker.training.rollout import State, Trajectory

SHOWN = 4
"""Trajectories of a step that are written down."""


def rollouts(
    step: int,
    states: Sequence[State],
    trajectories: Sequence[Trajectory],
    experience: Sequence[Experience],
    design: Design,
    ask: Wanted,
) -> list[dict[str, Any]]:
    """The first few of a step's trajectories; `experience` is of all their samples in a row."""
    known = iter(experience)
    lines = []
    for state, trajectory in islice(zip(states, trajectories, strict=True), SHOWN):
        of_state = list(islice(known, len(trajectory)))
        steps = tuple(one for e in of_state for one in _steps(e))
        rewards = [_reward(e) for e in of_state]
        line = RANKING.dump_python(_ranking(state, steps, design, ask), mode="json")
        more = {"training_step": step, "task": state.problem.task, "reward": sum(rewards) / len(rewards)}
        lines.append(line | more)
    return lines


def _ranking(state: State, steps: Sequence[Step], design: Design, ask: Wanted) -> Ranking:
    if design == "dranker":
        order = completed_order(steps[0].answer, state.pool)
    else:
        left = start(state.pool)
        for k in (k for step in steps for k in step.removed):
            left = left.remove(k)
        order = left.order(left.pool, ask)
    part = part_of(state.problem, order)
    usage = Usage(calls=len(steps))
    return dataclasses.replace(ranking_from(part, part.identifiers, (), usage), steps=tuple(steps))


def _steps(e: Experience) -> list[Step]:
    """What was said; where the policy was not asked before its update, the likeliest by that."""
    return [_likeliest(step, e.answer_logprobs[t]) if _unasked(e) else step for t, step in enumerate(e.sample.said)]


def _likeliest(step: Step, logprobs_A: Tensor) -> Step:
    probabilities = dict(zip(step.pool, logprobs_A.exp().tolist(), strict=True))
    return chosen_step(step.pool, (max(probabilities, key=probabilities.__getitem__),), probabilities)


def _reward(e: Experience) -> float:
    """What was earned; where the policy was not asked, what it earns on average."""
    if not _unasked(e):
        return e.sample.reward
    rewards = e.sample.answer_rewards
    return fmean(float((e.answer_logprobs[t].exp() * torch.tensor(rewards[t])).sum()) for t in rewards)


def _unasked(e: Experience) -> bool:
    """Whether what was said was drawn before the policy was known (`RunConfig.reads_once`)."""
    return e.sample.pool is not None and bool(e.answer_logprobs) and not any(s.probabilities for s in e.sample.said)
