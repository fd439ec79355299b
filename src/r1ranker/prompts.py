"""Every word the model reads. In: a `Problem` and the identifiers still in the pool. Out: a `Prompt`.

Next in the data flow: a backend turns the prompt into a completion, `answers` reads the completion.

One template per scenario, shared by both designs; only the last sentence differs. Two pool layouts:

- `relist` lists what remains, anew at each step (the paper's).
- `append` always lists the whole pool; what the assistant wrote in earlier steps stands behind it in
  `transcript`. The prefix never changes during an episode, so it need be computed only once.

Candidate text cannot forge an answer or a turn: tags, bracketed numbers and control tokens are neutralised.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from r1ranker.problem import Problem

Layout = Literal["relist", "append"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
Design = Literal["dranker", "iranker"]

NO_THOUGHT = "<think>\n</think>\n<answer>"
"""How the completion begins when thinking is off: an empty thought, then straight to the answer."""

_TAG = re.compile(r"<\s*(/?)\s*(think|answer)\s*>", re.IGNORECASE)
_BRACKETED_NUMBER = re.compile(r"\[\s*(\d+)\s*\]")
_CONTROL_TOKEN = re.compile(r"<\|\s*([^<>|]*?)\s*\|>")

_CONTEXT = {
    "recommendation": "The user chose, oldest first:\n{history}\n{query}What will the user choose next?\n",
    "routing": "A prompt goes to one of several LLMs. {objective}\nPrompt: {query}\nWhich LLM serves it best?\n",
    "passage": "Query: {query}\nWhich passage answers the query?\n",
}
_TASK = {
    "iranker": "Remove the least suitable candidate that is left. Think inside <think> </think>, then give its "
    "identifier inside <answer> </answer>.",
    "dranker": "Rank all candidates, best first. Think inside <think> </think>, then give the identifiers inside "
    "<answer> </answer>, separated by >.",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one call sends. A completion, as parsed and rewarded, is `prefill` plus what the model adds.

    text: the user's message. transcript: the assistant's earlier steps (layout `append`), else empty.
    prefill: how this step's completion begins: empty when thinking, `NO_THOUGHT` when not.
    stays: `text` will be the same at the next step, so a backend may keep what it computed for it.
    """

    text: str
    transcript: str = ""
    prefill: str = ""
    stays: bool = False


def neutralise(text: str) -> str:
    """One line of text that holds no think or answer tag, no bracketed number and no token such as `<|im_end|>`."""
    text = _TAG.sub(r"(\1\2)", text)
    text = _BRACKETED_NUMBER.sub(r"(\1)", text)
    text = _CONTROL_TOKEN.sub(r"(\1)", text)
    return " ".join(text.split())


def context_of(problem: Problem) -> str:
    """The query side of the prompt: everything but the pool."""
    query = neutralise(problem.query)
    if problem.scenario == "recommendation":
        history = "\n".join(f"- {neutralise(title)}" for title in problem.history)
        return _CONTEXT["recommendation"].format(history=history, query=f"{query}\n" if query else "")
    return _CONTEXT[problem.scenario].format(query=query, objective=neutralise(problem.objective))


def pool_lines(problem: Problem, pool: Sequence[int]) -> str:
    """The candidates as `[identifier] text`, one a line."""
    return "\n".join(f"[{k}] {neutralise(problem.candidate(k).text)}" for k in pool)


def build_prompt(
    problem: Problem,
    pool: Sequence[int],
    design: Design,
    *,
    layout: Layout = "relist",
    think: bool = True,
    transcript: str = "",
) -> Prompt:
    """The prompt of one step: `pool` holds the identifiers that are left.

    `transcript` is what `transcript_entry` made of the earlier steps; only the layout `append` shows it.
    """
    shown = problem.identifiers if layout == "append" else pool
    text = f"{context_of(problem)}{pool_lines(problem, shown)}\n{_TASK[design]}"
    return Prompt(
        text=text,
        transcript=transcript if layout == "append" else "",
        prefill="" if think else NO_THOUGHT,
        stays=layout == "append" and design == "iranker",
    )


def transcript_entry(completion: str, removed: int, valid: bool) -> str:
    """What the layout `append` keeps of a finished step.

    The completion as it stands when its answer was valid; otherwise what really left the pool, so that
    the model always reads the true state.
    """
    kept = completion.strip() if valid else f"{NO_THOUGHT}[{removed}]</answer>"
    return f"{kept}\n"


def sampled_transcript(problem: Problem, pool: Sequence[int], rng: random.Random) -> str:
    """A past for a sampled state: all that is not in the pool, removed in random order without thoughts."""
    gone = [k for k in problem.identifiers if k not in pool]
    rng.shuffle(gone)
    return "".join(transcript_entry("", k, valid=False) for k in gone)
