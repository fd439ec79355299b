"""An IRanker's episode as token sequences. In: a state and who writes. Out: what was read, written and earned.

    tokens   | prompt | [4] </answer> | <answer> | [2] </answer> |
    mask     |        |  1      1     |    0     |  1      1     |
    rewards  |        |        0.75   |          |        1.0    |

In layout `append` a step reads on from the one before, so an episode is one sequence. After an answer that was not
valid the prompt tells what really left the pool, not what was written: there, as at every step of `relist`, a new
sequence begins. Needs no verl; next in the data flow: `agent_loop`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from r1ranker.answers import parse_removal, removal_of, thought_of
from r1ranker.backends.encoding import Encoder
from r1ranker.elimination import start
from r1ranker.io.config import RunConfig
from r1ranker.problem import Problem, Step
from r1ranker.prompts import NO_THOUGHT, Prompt, bare_past, build_prompt, past_entry
from r1ranker.ranking.plans import EMPTY_THOUGHT_TOKENS, TOKENS_PER_CANDIDATE
from r1ranker.rewards import Reward, score_removal
from r1ranker.training.rollout import State, sampled_part, sampled_state, whole_episode


@dataclass(frozen=True, slots=True)
class Written:
    """What the policy added to a prompt. `truncated`: cut by the token limit. `logprobs`: one a token, or none."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    text: str
    truncated: bool


Write = Callable[[list[int], int], Awaitable[Written]]
"""Writes on from token ids, at most so many tokens."""


@dataclass
class Tokens:
    """One sequence to train on: a prompt, what was written behind it, and between two answers what was only read.

    mask: 1 where a token was written. logprobs: 0 where it was not. rewards: by place in `response_ids`.
    """

    prompt_ids: list[int]
    response_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: dict[int, float] = field(default_factory=dict)

    def read(self, token_ids: Sequence[int]) -> None:
        """Add tokens that the policy did not choose."""
        self.response_ids += token_ids
        self.mask += [0] * len(token_ids)
        self.logprobs += [0.0] * len(token_ids)

    def write(self, written: Written, reward: float | None = None) -> None:
        """Add tokens that it chose, and on the last of them what they earned."""
        self.response_ids += written.token_ids
        self.mask += [1] * len(written.token_ids)
        self.logprobs += written.logprobs
        if reward is not None:
            self.rewards[len(self.response_ids) - 1] = reward


@dataclass(frozen=True)
class Episode:
    """All of it. `removed`: identifiers in the order they left; `left`: those that did not."""

    sequences: list[Tokens]
    steps: list[Step]
    rewards: list[Reward]
    removed: tuple[int, ...]
    left: tuple[int, ...]

    @property
    def total(self) -> float:
        """The sum of the steps' rewards."""
        return sum(reward.total for reward in self.rewards)

    @property
    def means(self) -> dict[str, float]:
        """Means over the steps: the rewards' parts, and the share of broken answers."""
        parts = {name: fmean(reward.parts[name] for reward in self.rewards) for name in self.rewards[0].parts}
        return parts | {"broken": fmean(step.answer.kind != "valid" for step in self.steps)}


async def run_episode(state: State, config: RunConfig, encoder: Encoder, write: Write) -> Episode:
    """Remove until one candidate is left, or once where the state is not `whole`."""
    elimination, past = start(state.pool), state.past
    prompt = _prompt(state.problem, state.pool, past, config)
    sequences, steps, rewards = [Tokens(encoder.encode(prompt))], list[Step](), list[Reward]()
    while True:
        current = sequences[-1]
        written = await write(current.prompt_ids + current.response_ids, removal_tokens(config))
        step, reward = judged(written, state.problem, elimination.pool, config)
        current.write(written, reward.total)
        steps.append(step)
        rewards.append(reward)
        elimination = elimination.remove(step.removed[0])
        if elimination.done() or not state.whole:
            return Episode(sequences, steps, rewards, elimination.removed, elimination.pool)
        past = _told(past, step) if config.think else bare_past(elimination.removed)
        following = _prompt(state.problem, elimination.pool, past, config)
        between = what_follows(prompt, written.text, following)
        if between is None:
            sequences.append(Tokens(encoder.encode(following)))
        else:
            current.read(encoder.encode_text(between))
        prompt = following


def what_follows(prompt: Prompt, written: str, following: Prompt) -> str | None:
    """What `following` shows behind what was written after `prompt`; None where it shows something else."""
    read = prompt.transcript + prompt.prefill + written
    shown = following.transcript + following.prefill
    return shown[len(read) :] if following.stays and shown.startswith(read) else None


def judged(written: Written, problem: Problem, pool: tuple[int, ...], config: RunConfig) -> tuple[Step, Reward]:
    """The step that was written, and what it earns. Without thoughts the prompt begins the completion."""
    text = written.text if config.think else NO_THOUGHT + written.text
    answer = parse_removal(text, pool, written.truncated)
    step = Step(pool, answer, (removal_of(answer, pool),), thought_of(text), text)
    return step, score_removal(text, answer, problem, pool, kind=config.ppo.reward)


def removal_tokens(config: RunConfig) -> int:
    """How many tokens one removal may have; without a thought, what one identifier needs."""
    most = config.ppo.max_new_tokens
    return most if config.think else min(most, EMPTY_THOUGHT_TOKENS + TOKENS_PER_CANDIDATE)


def training_state(problem: Problem, config: RunConfig, rng: random.Random) -> State:
    """Where a training row begins: at the whole pool, or at a sampled state (see `rollout`)."""
    largest = config.ppo.largest_pool
    if rng.random() < episode_chance(config.ppo.episode_share, len(problem.candidates) - 1):
        return whole_episode(sampled_part(problem, rng, largest, config))
    return sampled_state(problem, config, rng, largest)


def episode_chance(share: float, steps: float) -> float:
    """How often a row is an episode of so many steps, for `share` of all steps to be those of episodes."""
    return share / (share + (1 - share) * steps)


def _prompt(problem: Problem, pool: Sequence[int], past: Sequence[str], config: RunConfig) -> Prompt:
    return build_prompt(problem, pool, "iranker", layout=config.layout, think=config.think, past=past)


def _told(past: tuple[str, ...], step: Step) -> tuple[str, ...]:
    return (*past, past_entry(step.completion, step.removed[0], step.answer.kind == "valid"))
