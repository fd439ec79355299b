"""Experience. In: problems and the current policy. Out: `Trajectory`s of rewarded samples.

    draw (where trajectories begin) -> collect (what the policy does there)

The same prompts, parser, elimination and rewards as in ranking; only the decoding samples instead of
taking the best. Next in the data flow: `experience`.

An IRanker trains on two kinds of states. *Sampled states* are pools of every size that hold a
relevant candidate (the paper's); each is a trajectory of one step. The policy's *own episodes* run
from the whole pool to the last candidate; each is one trajectory of n-1 rewarded steps.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from r1ranker.answers import parse_ranking, parse_removal, removal_of, thought_of
from r1ranker.backends.base import Choice
from r1ranker.backends.encoding import Encoder, IdentifierTrie, TokenPath
from r1ranker.backends.sampling import Trace
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.elimination import Elimination, sampled_pool, start
from r1ranker.errors import ConfigError
from r1ranker.io.config import RunConfig
from r1ranker.problem import Answer, Problem, Step, part_of
from r1ranker.prompts import (
    ANOTHER,
    NEXT,
    Prompt,
    bare_past,
    build_prompt,
    candidate_text,
    list_prompt,
    past_entry,
    sampled_past,
    written_list,
)
from r1ranker.ranking.plans import chosen_step
from r1ranker.rewards import Reward, score_ranking, score_removal
from r1ranker.training import pools
from r1ranker.training.algorithms.moved_up import moved_up
from r1ranker.training.batch import Sample, joined

Trajectory = list[Sample]


@dataclass
class State:
    """What the policy is asked in: the pool left of a problem, and the earlier steps (layout `append`).

    whole: a trajectory that begins here goes on to the last candidate; else it is one removal.
    rng: draws this trajectory's answers, so that they do not depend on who else is in the batch.
    """

    problem: Problem
    pool: tuple[int, ...]
    past: tuple[str, ...] = ()
    whole: bool = False
    rng: random.Random = field(default_factory=lambda: random.Random(0))


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
    rng: random.Random
    past: tuple[str, ...] = ()
    samples: Trajectory = field(default_factory=list)


@dataclass
class _List:
    """A ranking as it is written, the tokens that could have stood in it, and where in it which choice was made."""

    problem: Problem
    prompt: Prompt
    rng: random.Random
    named: tuple[int, ...] = ()
    written: list[int] = field(default_factory=list)
    allowed: list[TokenPath] = field(default_factory=list)
    choices: list[tuple[int, IdentifierTrie, Choice]] = field(default_factory=list)

    @property
    def left(self) -> tuple[int, ...]:
        gone = set(self.named)
        return tuple(k for k in self.problem.identifiers if k not in gone)


def draw(problems: Sequence[Problem], config: RunConfig, rng: random.Random, largest: int | None = None) -> list[State]:
    """Where about `ppo.batch` samples begin; `ppo.group` trajectories in a row begin alike.

    largest: no pool is larger (a pool-size curriculum). In layout `blocks` a whole episode is one sample.
    """
    ppo = config.ppo
    starts: list[State] = []
    if config.design == "dranker":
        starts = [whole_episode(problem) for problem in rng.choices(problems, k=max(1, ppo.batch // ppo.group))]
    else:
        left = ppo.batch
        while ppo.batch - left < ppo.batch * ppo.episode_share:
            starts.append(whole_episode(sampled_part(rng.choice(problems), rng, largest, config)))
            left -= ppo.group * (1 if config.layout == "blocks" else len(starts[-1].pool) - 1)
        starts += [sampled_state(rng.choice(problems), config, rng, largest) for _ in range(0, left, ppo.group)]
    return [dataclasses.replace(s, rng=random.Random(rng.getrandbits(64))) for s in starts for _ in range(ppo.group)]


def collect(backend: TransformersBackend, states: Sequence[State], config: RunConfig) -> list[Trajectory]:
    """What the current policy does from each state."""
    if config.layout == "blocks":
        begun = [(s.problem, s.pool, s.whole, s.rng) for s in states]
        return [[sample] for sample in pools.episodes(backend, begun, config)]
    if config.design == "dranker":
        return rank_once(backend, states, config)
    whole = [state for state in states if state.whole]
    single = [state for state in states if not state.whole]
    done = iter(episodes(backend, whole, config) if whole else [])
    removed = iter(removals(backend, single, config) if single else [])
    return [next(done) if state.whole else [next(removed).sample] for state in states]


def sampled_state(problem: Problem, config: RunConfig, rng: random.Random, largest: int | None = None) -> State:
    """A pool of random size that holds a relevant candidate; in `append`, the rest left in random order."""
    most = min(len(problem.candidates), largest or len(problem.candidates))
    pool = sampled_pool(problem, rng.randint(2, most), rng)
    return State(problem, pool, sampled_past(problem, pool, rng, think=config.think))


def sampled_part(problem: Problem, rng: random.Random, largest: int | None, config: RunConfig) -> Problem:
    """The problem itself, or with `largest` a part of random size that holds a relevant candidate."""
    return problem if largest is None else part_of(problem, sampled_state(problem, config, rng, largest).pool)


def whole_episode(problem: Problem) -> State:
    """The whole pool, from which to go on to the last candidate."""
    return State(problem, problem.identifiers, whole=True)


def episodes(backend: TransformersBackend, starts: Sequence[State], config: RunConfig) -> list[Trajectory]:
    """Whole episodes by the current policy, side by side; finished ones leave.

    Where each step reads on from the one before, an episode is one sample instead of n - 1.
    """
    running = [_Episode(s.problem, start(s.pool), s.rng) for s in starts]
    everything = list(running)
    while running := [e for e in running if not e.elimination.done()]:
        states = [State(e.problem, e.elimination.pool, e.past, rng=e.rng) for e in running]
        for episode, step in zip(running, removals(backend, states, config), strict=True):
            removed = removal_of(step.answer, episode.elimination.pool, config.ask)
            episode.elimination = episode.elimination.remove(removed)
            episode.past = (
                (*episode.past, past_entry(step.completion, removed, step.answer.kind == "valid"))
                if config.think
                else bare_past(episode.elimination.removed)
            )
            episode.samples.append(step.sample)
    whole = [joined(episode.samples) for episode in everything]
    return [e.samples if one is None else [one] for e, one in zip(everything, whole, strict=True)]


def removals(backend: TransformersBackend, states: Sequence[State], config: RunConfig) -> list[Removal]:
    """One sampled and rewarded removal per state."""
    prompts = [
        build_prompt(
            s.problem, s.pool, "iranker", layout=config.layout, think=config.think, past=s.past, ask=config.ask
        )
        for s in states
    ]
    if not config.think:
        choices = backend.choose(prompts, [state.pool for state in states])
        chosen = zip(states, prompts, choices, strict=True)
        return [_chosen(backend, state, prompt, choice, config) for state, prompt, choice in chosen]
    out: list[Removal] = []
    generated = backend.generate_ids(prompts, max_new_tokens=config.ppo.max_new_tokens, temperature=1.0, traced=True)
    for state, gen in zip(states, generated, strict=True):
        _check_prompt(len(gen.prompt_ids), config)
        text = backend.encoder.decode(gen.completion_ids)
        answer = parse_removal(text, state.pool, gen.truncated)
        reward = score_removal(text, answer, state.problem, state.pool, config.ppo.reward, config.ask)
        removed = removal_of(answer, state.pool, config.ask)
        step = Step(state.pool, answer, (removed,), thought_of(text), text)
        sample = _sample(gen.prompt_ids, gen.completion_ids, None, reward, step, state.problem, gen.trace)
        sample = _with_chance(sample, state, config)
        out.append(Removal(sample, answer, text))
    return out


def rank_once(backend: TransformersBackend, states: Sequence[State], config: RunConfig) -> list[Trajectory]:
    """One sampled and rewarded whole ranking per state (DRanker)."""
    if not config.think:
        return lists(backend, states, config)
    problems = [state.problem for state in states]
    prompts = [build_prompt(p, p.identifiers, "dranker") for p in problems]
    generated = backend.generate_ids(prompts, max_new_tokens=config.ppo.max_new_tokens, temperature=1.0, traced=True)
    out: list[Trajectory] = []
    for problem, gen in zip(problems, generated, strict=True):
        _check_prompt(len(gen.prompt_ids), config)
        text = backend.encoder.decode(gen.completion_ids)
        answer = parse_ranking(text, problem.identifiers, gen.truncated)
        reward = score_ranking(text, answer, problem, problem.identifiers, kind=config.ppo.reward)
        step = Step(problem.identifiers, answer, (), thought_of(text), text)
        out.append([_sample(gen.prompt_ids, gen.completion_ids, None, reward, step, problem, gen.trace)])
    return out


def lists(backend: TransformersBackend, states: Sequence[State], config: RunConfig) -> list[Trajectory]:
    """As `rank_once` without thoughts: each identifier is drawn among those not named yet (`plans.listed`).

    The last one is not written: there is no choice left.
    """
    everything = [
        _List(s.problem, build_prompt(s.problem, s.problem.identifiers, "dranker", think=False), s.rng) for s in states
    ]
    while running := [one for one in everything if len(one.left) > 1]:
        choices = backend.choose([list_prompt(one.prompt, one.named) for one in running], [one.left for one in running])
        for one, choice in zip(running, choices, strict=True):
            _name(one, choice, backend.encoder)
    return [[_whole_list(one, backend.encoder, config)] for one in everything]


def _name(one: _List, choice: Choice, encoder: Encoder) -> None:
    drawn = pools.drawn(choice.probabilities, one.rng)
    if one.named:
        between = encoder.encode_text(NEXT)
        one.written += between
        one.allowed += [(token,) for token in between]
    trie = encoder.trie(one.left)
    one.choices.append((len(one.written), trie, choice))
    one.written += trie.paths[drawn]
    one.allowed += trie.allowed(drawn)
    one.named = (*one.named, drawn)


def _whole_list(one: _List, encoder: Encoder, config: RunConfig) -> Sample:
    order = (*one.named, *one.left)
    answer = Answer("valid", order)
    reward = score_ranking(written_list(order), answer, one.problem, one.problem.identifiers, kind=config.ppo.reward)
    prompt_ids = encoder.encode(one.prompt)
    _check_prompt(len(prompt_ids), config)
    step = Step(one.problem.identifiers, answer, completion=written_list(order))
    sample = _sample(prompt_ids, one.written, tuple(one.allowed), reward, step, one.problem)
    if config.ppo.answer != "expected":
        return sample
    # Another identifier in a place moves up from where the list has it. That the policy, once it has named it, might
    # go on in another order is left out. All these lists are in good form, so they differ in one part alone.
    form = reward.total - reward.parts["ranking"]
    credit: dict[int, tuple[float, ...]] = {}
    moves = moved_up(order, one.problem, config.ppo.reward)
    for (begin, trie, choice), drawn, ranking in zip(one.choices, one.named, moves, strict=True):
        earned = {k: form + part for k, part in ranking.items()}
        credit |= _credit(trie, drawn, choice, earned, begin)
    return dataclasses.replace(sample, answer_rewards=credit)


def _credit(
    trie: IdentifierTrie, drawn: int, choice: Choice, earned: Mapping[int, float], begin: int = 0
) -> dict[int, tuple[float, ...]]:
    """`Sample.answer_rewards` of an identifier that is written from token `begin` on.

    Where identifiers are several tokens, a token is worth the mean, by probability, of those it can still become.
    """
    path = trie.paths[drawn]
    credit: dict[int, tuple[float, ...]] = {}
    for i in (i for i in range(len(path)) if path[:i] in trie.branches):
        becomes: dict[int, list[int]] = defaultdict(list)
        for k, other in trie.paths.items():
            if other[:i] == path[:i]:
                becomes[other[i]].append(k)
        credit[begin + i] = tuple(_worth(becomes[token], choice, earned) for token in trie.branches[path[:i]])
    return credit


def _worth(identifiers: Sequence[int], choice: Choice, earned: Mapping[int, float]) -> float:
    if len(identifiers) == 1:
        return earned[identifiers[0]]
    total = sum(choice.probabilities[k] for k in identifiers) or 1.0
    return sum(choice.probabilities[k] * earned[k] for k in identifiers) / total


def _chosen(
    backend: TransformersBackend,
    state: State,
    prompt: Prompt,
    choice: Choice,
    config: RunConfig,
) -> Removal:
    """An identifier drawn by the policy's probabilities, as the tokens that name it."""
    drawn = pools.drawn(choice.probabilities, state.rng)
    trie = backend.encoder.trie(state.pool)
    step = chosen_step(state.pool, (drawn,), choice.probabilities)
    reward = score_removal(step.completion, step.answer, state.problem, state.pool, config.ppo.reward, config.ask)
    prompt_ids = backend.encoder.encode(prompt)
    _check_prompt(len(prompt_ids), config)
    sample = _sample(prompt_ids, list(trie.paths[drawn]), trie.allowed(drawn), reward, step, state.problem)
    if config.ppo.answer == "expected":
        earned = pools.earned_by_each(state.problem, state.pool, config)
        sample = dataclasses.replace(sample, answer_rewards=_credit(trie, drawn, choice, earned))
    return Removal(_with_chance(sample, state, config), step.answer, step.completion)


def _with_chance(sample: Sample, state: State, config: RunConfig) -> Sample:
    """With `ppo.centre`, what a removal at random from this pool would have earned, in good form."""
    if not config.ppo.centre:
        return sample
    earned = pools.earned_by_each(state.problem, state.pool, config)
    return dataclasses.replace(sample, chance={len(sample.completion_ids) - 1: fmean(earned.values())})


def _sample(
    prompt_ids: list[int],
    completion_ids: list[int],
    allowed: tuple[tuple[int, ...], ...] | None,
    reward: Reward,
    step: Step,
    problem: Problem,
    trace: Trace | None = None,
) -> Sample:
    return Sample(
        prompt_ids,
        completion_ids,
        allowed,
        reward.total,
        reward.parts,
        step.answer.kind,
        problem.task,
        trace=trace,
        said=(step,),
    )


def check_prompts(encoder: Encoder, problems: Sequence[Problem], config: RunConfig) -> None:
    """Refuse, before anything is trained, problems whose largest pool is too long a prompt. Raises ConfigError."""
    if config.layout == "blocks":
        return  # a pool is as long as it is; that each block fits is seen when it is read
    if config.design == "iranker" and config.ppo.largest_pool:
        problems = [_longest_part(problem, config.ppo.largest_pool, encoder) for problem in problems]
    prompts = (
        build_prompt(p, p.identifiers, config.design, layout=config.layout, think=config.think, ask=config.ask)
        for p in problems
    )
    grows = len(encoder.encode_text(f"[1]</answer>{ANOTHER}")) if config.layout == "append" else 0
    _check_prompt(
        max(
            len(encoder.encode(prompt)) + grows * (len(p.candidates) - 2)
            for prompt, p in zip(prompts, problems, strict=True)
        ),
        config,
    )


def _longest_part(problem: Problem, largest: int, encoder: Encoder) -> Problem:
    if len(problem.candidates) <= largest:
        return problem
    tokens = {k: len(encoder.encode_text(candidate_text(problem, k))) for k in problem.identifiers}
    return part_of(problem, sorted(sorted(tokens, key=lambda k: -tokens[k])[:largest]))


def _check_prompt(tokens: int, config: RunConfig) -> None:
    if tokens > config.ppo.max_prompt_tokens:
        raise ConfigError(
            f"a training prompt has {tokens} tokens, more than ppo.max_prompt_tokens={config.ppo.max_prompt_tokens}; "
            "raise it, or use smaller pools or shorter candidate texts"
        )
