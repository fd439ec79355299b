"""A backend without a model: a Python function writes the answers. For tests, examples and docs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r1ranker.backends.base import Backend, Choice, Completion
from r1ranker.prompts import Prompt


class ScriptedBackend(Backend):
    """`write(prompt)` gives the completion's text; `weigh(prompt, identifier)` a weight for `choose`.

    Tokens are counted as words.
    """

    name = "scripted"

    def __init__(
        self, write: Callable[[Prompt], str] | None = None, weigh: Callable[[Prompt, int], float] | None = None
    ) -> None:
        self._write = write or (lambda prompt: "")
        self._weigh = weigh or (lambda prompt, identifier: 1.0)

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 1024, temperature: float = 0.0
    ) -> list[Completion]:
        """What `write` says, cut after `max_new_tokens` words."""
        completions = []
        for prompt in prompts:
            text = self._write(prompt)
            words = text.split(" ")
            cut = len(words) > max_new_tokens
            completions.append(
                Completion(
                    text=" ".join(words[:max_new_tokens]) if cut else text,
                    truncated=cut,
                    prompt_tokens=_words(prompt),
                    generated_tokens=min(len(words), max_new_tokens),
                )
            )
        return completions

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        """Weights of `weigh`, scaled to sum to 1."""
        choices = []
        for prompt, pool in zip(prompts, pools, strict=True):
            weights = {k: self._weigh(prompt, k) for k in pool}
            total = sum(weights.values())
            choices.append(Choice({k: w / total for k, w in weights.items()}, _words(prompt), 1))
        return choices


def _words(prompt: Prompt) -> int:
    return len(f"{prompt.text} {prompt.transcript} {prompt.prefill}".split())
