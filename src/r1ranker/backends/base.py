"""What a backend is. In: `Prompt`s. Out: completions, or probabilities over identifiers.

A backend holds the model; nothing else in the package does. Two calls are all that rankers need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from r1ranker.prompts import Prompt

STOP = "</answer>"
"""Generation ends at the closing answer tag, which stays in the completion."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model added to the prompt. `truncated`: cut by the token limit, not by the model."""

    text: str
    truncated: bool
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Choice:
    """Probability by identifier of the pool; they sum to 1."""

    probabilities: Mapping[int, float]
    prompt_tokens: int
    generated_tokens: int


class Backend(Protocol):
    """A model that can be asked. Calls return one result per prompt, in order, or raise BackendError."""

    name: str

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 1024, temperature: float = 0.0
    ) -> list[Completion]:
        """Complete each prompt; greedy at temperature 0. Stops at the closing answer tag."""
        ...

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        """The model's probabilities over the identifiers of each pool, as the next thing it writes."""
        ...
