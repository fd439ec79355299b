"""What a backend is. In: `Prompt`s. Out: completions, or probabilities over identifiers.

A backend holds the model; nothing else in the package does. Two calls are all that rankers need. A model in
this process is a `Backend` and answers in batches; one behind a network is an `AsyncBackend`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from r1ranker.errors import BackendError, NotFiniteError
from r1ranker.problem import Usage
from r1ranker.prompts import Prompt

STOP = "</answer>"
"""Generation ends at the closing answer tag, which stays in the completion."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One call: choose among the identifiers of `pool`, or (None) write up to `max_new_tokens`."""

    prompt: Prompt
    pool: tuple[int, ...] | None
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model added to the prompt. `truncated`: cut by the token limit, not by the model.

    prompt_tokens: those that had to be computed. retries, cost: of a call over a network; cost in the
        currency of the price file.
    """

    text: str
    truncated: bool
    prompt_tokens: int
    generated_tokens: int
    retries: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Probability by identifier of the pool; they sum to 1. Raises NotFiniteError for one that is no number."""

    probabilities: Mapping[int, float]
    prompt_tokens: int
    generated_tokens: int
    retries: int = 0
    cost: float = 0.0

    def __post_init__(self) -> None:
        """Every backend's probabilities pass here, and an order by NaN would be the order they came in."""
        bad = [k for k, value in self.probabilities.items() if not math.isfinite(value)]
        if bad:
            raise NotFiniteError(
                f"the model's probabilities are not finite: that of [{bad[0]}] is {self.probabilities[bad[0]]}. "
                "Its weights, or the dtype it runs in, are at fault: take an earlier checkpoint, or a wider dtype"
            )


class CallError(BackendError):
    """A call over a network that failed for good. usage: what its attempts cost, without their time.

    status: of the endpoint's last answer, where it gave one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        prompt_tokens: int = 0,
        generated_tokens: int = 0,
        retries: int = 0,
        cost: float = 0.0,
    ) -> None:
        """What it cost is named as in a Completion."""
        super().__init__(message)
        self.status = status
        self.usage = Usage(1, prompt_tokens, generated_tokens, 0.0, max(0, retries), cost)


class PromptError(BackendError):
    """A prompt that this model cannot read: too long, or no text. Only that query is lost; others can be answered."""


def too_long(tokens: int | str, new: int, limit: float, name: str) -> PromptError:
    """What to say of a prompt that leaves the context no room for what is to be written. tokens: or what is known of
    them, such as "more than 2048"."""
    return PromptError(
        f"a prompt of {tokens} tokens plus {new} to generate exceeds the context of {limit} tokens of {name}; cut the "
        "texts (truncate), show fewer at a time (window), write less (max_new_tokens), or take a model with a longer "
        "context"
    )


class Model(Protocol):
    """What is known of a model before it is asked; here, what holds where nothing is. A backend says what it knows.

    masks_blocks: layout `blocks` can be had of it. trained_in: layout, read-out, what is asked and where the query
    stands, as it was trained.
    """

    name: str
    masks_blocks: bool = False
    trained_in: Mapping[str, Any] = MappingProxyType({})

    @property
    def context(self) -> int | None:
        """Tokens that a prompt and its answer may have."""
        return None

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt: a third of its bytes, which is seldom too few."""
        return len((prompt.text + prompt.transcript).encode()) // 3


class Backend(Model, Protocol):
    """A model that can be asked. Calls return one result per prompt, in order, or raise BackendError."""

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 1024, temperature: float = 0.0
    ) -> list[Completion]:
        """Complete each prompt; greedy at temperature 0. Stops at the closing answer tag."""
        ...

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        """The model's probabilities over the identifiers of each pool, as the next thing it writes."""
        ...


@dataclass
class NoBackend(Backend):
    """Stands where a ranker's settings are looked at before its model is loaded. Cannot be asked."""

    name: str
    masks_blocks: bool

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 1024, temperature: float = 0.0
    ) -> list[Completion]:
        """Raises BackendError."""
        raise BackendError("no model has been loaded")

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        """Raises BackendError."""
        raise BackendError("no model has been loaded")


class Session(Protocol):
    """An open connection to an endpoint."""

    async def answer(self, ask: Ask) -> Completion | Choice:
        """Raises BackendError when the call failed for good, CallError to say its cost; only that query is lost."""
        ...


@runtime_checkable
class AsyncBackend(Model, Protocol):
    """A model behind a network: every query's calls go out as they come, `concurrency` queries at a time."""

    concurrency: int

    def session(self) -> AbstractAsyncContextManager[Session]:
        """A connection for one run, opened in the event loop that uses it."""
        ...
