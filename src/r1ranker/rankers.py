"""The two designs. In: `Problem`s and a backend. Out: `Ranking`s.

    ranker = IRanker(TransformersBackend.load("nano"), think=False)
    ranking = ranker.rank(problem)

Both run prompts -> backend -> answers -> elimination; training and evaluation run the same code. Many
problems are ranked in one batch of calls; a problem that is finished leaves it and the next one
takes its place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from r1ranker.answers import completed_order, parse_ranking, parse_removal, removal_of, thought_of
from r1ranker.backends.base import Backend, Choice, Completion
from r1ranker.elimination import Elimination, ranking_from, start
from r1ranker.errors import ConfigError
from r1ranker.problem import Answer, Problem, Ranking, Step, Usage
from r1ranker.progress import track
from r1ranker.prompts import Design, Layout, Prompt, build_prompt, transcript_entry

EMPTY_THOUGHT_TOKENS = 16
"""Room for a ranking without a thought: this many tokens plus TOKENS_PER_CANDIDATE for each candidate."""
TOKENS_PER_CANDIDATE = 6


class Ranker(Protocol):
    """What evaluation and serving need of a ranker."""

    def rank(self, problem: Problem) -> Ranking:
        """The ranking of one problem."""
        ...

    def rank_many(self, problems: Sequence[Problem], *, progress: str = "") -> list[Ranking]:
        """The rankings of many, in order; `progress` names a progress bar (none when empty)."""
        ...


@dataclass
class DRanker:
    """Direct: one completion holds the whole ranking. Candidates it does not name follow in pool order."""

    backend: Backend
    think: bool = True
    max_new_tokens: int = 1024
    batch_size: int = 64

    def rank(self, problem: Problem) -> Ranking:
        """The ranking of one problem."""
        return self.rank_many([problem])[0]

    def rank_many(self, problems: Sequence[Problem], *, progress: str = "") -> list[Ranking]:
        """The rankings of many problems, in order."""
        rankings: list[Ranking] = []
        with track(len(problems), progress) as advance:
            for first in range(0, len(problems), self.batch_size):
                batch = problems[first : first + self.batch_size]
                rankings += self._rank_batch(batch)
                advance(len(batch))
        return rankings

    def _rank_batch(self, problems: Sequence[Problem]) -> list[Ranking]:
        prompts = [build_prompt(p, p.identifiers, "dranker", think=self.think) for p in problems]
        limit = ranking_tokens(problems, self.think, self.max_new_tokens)
        began = time.perf_counter()
        completions = self.backend.generate(prompts, max_new_tokens=limit)
        seconds = (time.perf_counter() - began) / len(problems)
        return [
            self._ranking(problem, prompt, completion, seconds)
            for problem, prompt, completion in zip(problems, prompts, completions, strict=True)
        ]

    def _ranking(self, problem: Problem, prompt: Prompt, completion: Completion, seconds: float) -> Ranking:
        text = prompt.prefill + completion.text
        answer = parse_ranking(text, problem.identifiers, completion.truncated)
        step = Step(problem.identifiers, answer, thought=thought_of(text), completion=text)
        usage = Usage(1, completion.prompt_tokens, completion.generated_tokens, seconds)
        return ranking_from(problem, completed_order(answer, problem.identifiers), (step,), usage)


def ranking_tokens(problems: Sequence[Problem], think: bool, max_new_tokens: int) -> int:
    """How many tokens one completion of a DRanker may have; without a thought, what the longest list needs."""
    if think:
        return max_new_tokens
    longest = max(len(problem.candidates) for problem in problems)
    return min(max_new_tokens, EMPTY_THOUGHT_TOKENS + TOKENS_PER_CANDIDATE * longest)


@dataclass
class _Episode:
    """One problem on its way through the loop."""

    problem: Problem
    state: Elimination
    steps: list[Step] = field(default_factory=list)
    transcript: str = ""
    usage: Usage = field(default_factory=Usage)

    def leave(self, step: Step, usage: Usage) -> None:
        """Take the step: its removed candidate leaves the pool."""
        removed = step.removed[0]
        self.steps.append(step)
        self.usage += usage
        self.state = self.state.remove(removed)
        self.transcript += transcript_entry(step.completion, removed, step.answer.kind == "valid")

    def ranking(self) -> Ranking:
        """Survivors first (least likely to be removed next first), then the removed, last removed first."""
        last = self.steps[-1].probabilities if self.steps else {}
        survivors = sorted(self.state.pool, key=lambda k: last.get(k, 0.0))
        return ranking_from(self.problem, self.state.order(survivors), tuple(self.steps), self.usage)


@dataclass
class IRanker:
    """Iterative: each call removes the worst candidate left, until `top_k` are left.

    think: a free thought before each answer; off, the identifier is chosen by the model's
        probabilities over the pool (one forward pass, cannot be malformed).
    layout: `relist` or `append`, see `prompts`.
    top_k: stop when this many are left; they are ordered by the last known removal probabilities
        (think off) or in pool order. 1 gives the whole order.
    """

    backend: Backend
    think: bool = True
    layout: Layout = "relist"
    top_k: int = 1
    max_new_tokens: int = 1024
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, not {self.top_k}; 1 gives the whole order")

    def rank(self, problem: Problem) -> Ranking:
        """The ranking of one problem."""
        return self.rank_many([problem])[0]

    def rank_many(self, problems: Sequence[Problem], *, progress: str = "") -> list[Ranking]:
        """The rankings of many problems, in order."""
        rankings: dict[int, Ranking] = {}
        waiting = iter(enumerate(problems))
        active: list[tuple[int, _Episode]] = []
        with track(len(problems), progress) as advance:
            while True:
                for index, problem in islice(waiting, self.batch_size - len(active)):
                    active.append((index, _Episode(problem, start(problem.identifiers))))
                if not active:
                    return [rankings[index] for index in range(len(problems))]
                running = [episode for _, episode in active if not episode.state.done(self.top_k)]
                if running:
                    self._step(running)
                for index, episode in active:
                    if episode.state.done(self.top_k):
                        rankings[index] = episode.ranking()
                        advance(1)
                active = [(index, episode) for index, episode in active if index not in rankings]

    def _step(self, episodes: list[_Episode]) -> None:
        """One call for every episode."""
        prompts = [
            build_prompt(
                e.problem, e.state.pool, "iranker", layout=self.layout, think=self.think, transcript=e.transcript
            )
            for e in episodes
        ]
        began = time.perf_counter()
        steps = self._thought_steps(episodes, prompts) if self.think else self._chosen_steps(episodes, prompts)
        seconds = (time.perf_counter() - began) / len(episodes)
        for episode, (step, usage) in zip(episodes, steps, strict=True):
            episode.leave(step, usage + Usage(seconds=seconds))

    def _thought_steps(self, episodes: list[_Episode], prompts: list[Prompt]) -> list[tuple[Step, Usage]]:
        completions = self.backend.generate(prompts, max_new_tokens=self.max_new_tokens)
        steps = []
        for episode, prompt, completion in zip(episodes, prompts, completions, strict=True):
            text = prompt.prefill + completion.text
            answer = parse_removal(text, episode.state.pool, completion.truncated)
            removed = removal_of(answer, episode.state.pool)
            step = Step(episode.state.pool, answer, (removed,), thought_of(text), text)
            steps.append((step, Usage(1, completion.prompt_tokens, completion.generated_tokens)))
        return steps

    def _chosen_steps(self, episodes: list[_Episode], prompts: list[Prompt]) -> list[tuple[Step, Usage]]:
        choices = self.backend.choose(prompts, [e.state.pool for e in episodes])
        return [
            (
                chosen_step(e.state.pool, prompt, choice, max(e.state.pool, key=choice.probabilities.__getitem__)),
                Usage(1, choice.prompt_tokens, choice.generated_tokens),
            )
            for e, prompt, choice in zip(episodes, prompts, choices, strict=True)
        ]


def chosen_step(pool: tuple[int, ...], prompt: Prompt, choice: Choice, removed: int) -> Step:
    """The step in which the identifier `removed` was chosen without a thought."""
    completion = f"{prompt.prefill}[{removed}]</answer>"
    return Step(pool, Answer("valid", (removed,)), (removed,), "", completion, dict(choice.probabilities))


def make_ranker(
    design: Design,
    backend: Backend,
    *,
    think: bool = True,
    layout: Layout = "relist",
    top_k: int = 1,
    max_new_tokens: int = 1024,
) -> Ranker:
    """The ranker of a design; `layout` and `top_k` concern the iterative one only."""
    if design == "dranker":
        return DRanker(backend, think=think, max_new_tokens=max_new_tokens)
    return IRanker(backend, think=think, layout=layout, top_k=top_k, max_new_tokens=max_new_tokens)
