"""Every word the model reads. In: a `Problem` and the identifiers still in the pool. Out: a `Prompt`.

Next in the data flow: a backend turns the prompt into a completion, `answers` reads the completion.

The wordings are those of the problem's scenario (`scenarios`), shared by both designs; only the last sentence differs.
Three pool layouts:

- `relist` lists what remains, anew at each step (the paper's).
- `append` always lists the whole pool; what the assistant wrote in earlier steps stands behind it in
  `past`. The prefix never changes during an episode, so it need be computed only once.
- `blocks` gives what is wanted first, then every candidate as a block that sees this and itself (`backends.blocks`).
  What is read out is a *judge* at each block's end, or, behind a question that sees the blocks left, an *identifier*.
  With the query `last` no block sees it: it stands in the question, which a judge then reads behind each block.

Thoughts that were recorded on similar queries may stand before it all (`with_advice`).

Candidate text cannot forge an answer or a turn: tags, bracketed numbers and control tokens are neutralised.
The same goes for recorded thoughts.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from r1ranker.problem import Problem
from r1ranker.scenarios import Scenario

Layout = Literal["relist", "append", "blocks"]
LAYOUTS: tuple[Layout, ...] = ("relist", "append")
"""Those that list candidates in one text, which any backend reads."""
Design = Literal["dranker", "iranker"]
Wanted = Literal["worst", "best"]
"""Which candidate a step names: the worst leaves (the paper), or the best is selected."""
Readout = Literal["judge", "identifier"]
QueryPlace = Literal["first", "last"]
"""Of layout `blocks`: before the candidates, which are read for this query, or behind them, so that they serve any."""

NO_THOUGHT = "<think>\n</think>\n<answer>"
"""How the completion begins when thinking is off: an empty thought, then straight to the answer."""
ANOTHER = "<answer>"
"""How it goes on in layout `append`: one empty thought is enough, so a step adds three short words."""
NEXT = ">"
"""What stands between two identifiers of a list."""

_TAG = re.compile(r"<\s*(/?)\s*(think|answer)\s*>", re.IGNORECASE)
_BRACKETED_NUMBER = re.compile(r"\[\s*(\d+)\s*\]")
_CONTROL_TOKEN = re.compile(r"<\s*[|｜]\s*([^<>|｜]*?)\s*[|｜]\s*>")
_TURN = re.compile(
    r"<<?\s*(/?(?:s|bos|eos|pad|unk|sop|eop|sys|(?:bos|eos|pad|unk|cls|sep|mask|eop)_token|(?:start|end)_of_\w+))\s*>>?"
    r"|\[\s*(/?(?:inst|g?mask|smask|(?:system_prompt|available_tools|tool_(?:calls|results|content))))\s*\]",
    re.IGNORECASE,
)
"""What marks turns in public chat models without bars. Of a model in this process `encoding` takes out every token;
those of one behind a network are not known here."""

_FORM = {
    "iranker": "Think inside <think> </think>, then give its identifier inside <answer> </answer>.",
    "dranker": "Think inside <think> </think>, then give the identifiers inside <answer> </answer>, separated by >.",
}
_ADVICE = "Thoughts of an expert on similar cases; the numbers in them name other candidates:\n{thoughts}\n\n"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one call sends. A completion is `prefill` plus what the model adds.

    text: the user's message. past: the assistant's earlier steps (layout `append`), else empty.
    prefill: how this step's completion begins: empty when thinking, `NO_THOUGHT` when not, and only the tag
        of another answer where the past has no thoughts either.
    stays: `text` will be the same at the next step, so a backend may keep what it computed for it.
    blocks: candidates in layout `blocks`, by identifier; `text` is then what stands before them and `prefill` the
        question behind them. labels: what each block is called (1..n); none where each is judged for itself, at its
        end or behind a question of its own.
    owner: whose prompt it is, where several share a model; what a backend keeps of one's prompts serves no other.
    """

    text: str
    past: tuple[str, ...] = ()
    prefill: str = ""
    stays: bool = False
    blocks: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    owner: str = ""

    @property
    def transcript(self) -> str:
        """The past as one text."""
        return "".join(self.past)


def neutralise(text: str) -> str:
    """One line of text without think and answer tags, bracketed numbers, turns such as `<|im_end|>` or `[/INST]`."""
    text = _TAG.sub(r"(\1\2)", text)
    text = _BRACKETED_NUMBER.sub(r"(\1)", text)
    text = _CONTROL_TOKEN.sub(r"(\1)", text)
    text = _TURN.sub(lambda turn: f"({turn[1] or turn[2]})", text)
    return " ".join(text.split())


def context_of(problem: Problem, *, asks: bool = True) -> str:
    """The query side of the prompt: everything but the pool. asks: with the question where it is a line of its own."""
    words = _plain(problem.words)
    query = neutralise(problem.query)
    left_out = {"{query}": not query, "{question}": not asks}
    lines = [line for line in words.context.split("\n") if not left_out.get(line)]
    return "\n".join((*lines, "")).format(
        query=query,
        history="\n".join(f"- {neutralise(title)}" for title in problem.history),
        objective=neutralise(problem.objective),
        question=question_of(problem),
    )


def question_of(problem: Problem) -> str:
    """What is wanted of the candidates, in the user's words or the scenario's; nothing of the query."""
    return neutralise(problem.instruction) or _plain(problem.words).question


@lru_cache
def _plain(words: Scenario) -> Scenario:
    """The same wordings, which cannot forge an answer or a turn either; the context keeps its lines."""
    texts = {field.name: neutralise(getattr(words, field.name)) for field in dataclasses.fields(words)}
    context = "\n".join(neutralise(line) for line in words.context.rstrip().splitlines())
    return Scenario(**(texts | {"context": context}))


def candidate_text(problem: Problem, identifier: int) -> str:
    """What the model reads of a candidate: one line, with its note where there is one."""
    candidate = problem.candidate(identifier)
    return neutralise(" | ".join(filter(None, (candidate.text, candidate.note))))


def pool_lines(problem: Problem, pool: Sequence[int]) -> str:
    """The candidates as `[identifier] text`, one a line."""
    return "\n".join(f"[{k}] {candidate_text(problem, k)}" for k in pool)


def build_prompt(
    problem: Problem,
    pool: Sequence[int],
    design: Design,
    *,
    layout: Layout = "relist",
    think: bool = True,
    past: Sequence[str] = (),
    ask: Wanted = "worst",
) -> Prompt:
    """The prompt of one step: `pool` holds the identifiers that are left.

    `past` is what `past_entry` or `bare_past` made of the earlier steps; only the layout `append` shows it.
    """
    shown = problem.identifiers if layout == "append" else pool
    text = f"{context_of(problem)}{pool_lines(problem, shown)}\n{task_of(problem, design, ask)}"
    return next_prompt(Prompt(text, stays=layout == "append" and design == "iranker"), past, think=think)


def task_of(problem: Problem, design: Design, ask: Wanted) -> str:
    """The sentences that say what to write."""
    words = _plain(problem.words)
    wanted = words.list if design == "dranker" else words.best if ask == "best" else words.worst
    return f"{wanted} {_FORM[design]}"


def block_prompt(
    problem: Problem,
    readout: Readout,
    ask: Wanted,
    rng: random.Random | None = None,
    *,
    query: QueryPlace = "first",
) -> Prompt:
    """The prompt of a whole episode in layout `blocks`: it stays the same while candidates leave the pool.

    Labels of an identifier read-out say nothing of a candidate's place: in training `rng` draws them, else they
    follow the candidates' texts. With the query last, what stands before the blocks is the same for all queries.
    """
    blocks = tuple(candidate_text(problem, k) for k in problem.identifiers)
    task = task_of(problem, "iranker", ask) if readout == "identifier" else ""
    text, question = context_of(problem), task
    if query == "last":
        text = "".join(f"{line}\n" for line in (question_of(problem), task) if line)
        question = context_of(problem, asks=False)
    if readout == "judge":
        return Prompt(text, prefill=question, stays=True, blocks=blocks)
    order = sorted(range(len(blocks)), key=blocks.__getitem__)
    if rng is not None:
        rng.shuffle(order)
    labels = {place: label for label, place in enumerate(order, start=1)}
    named = tuple(labels[place] for place in range(len(blocks)))
    return Prompt(text, prefill=question, stays=True, blocks=blocks, labels=named)


def next_prompt(prompt: Prompt, past: Sequence[str], *, think: bool = True) -> Prompt:
    """The prompt of a later step of the same episode; in layout `append` it differs by its past alone."""
    shown = tuple(past) if prompt.stays else ()
    prefill = "" if think else ANOTHER if shown else NO_THOUGHT
    return dataclasses.replace(prompt, past=shown, prefill=prefill)


def with_advice(prompt: Prompt, thoughts: Sequence[str]) -> Prompt:
    """The prompt behind recorded thoughts, one a line (paper, Thought templates); without any, as it is."""
    if not thoughts:
        return prompt
    lines = "\n".join(f"- {neutralise(thought)}" for thought in thoughts)
    return dataclasses.replace(prompt, text=f"{_ADVICE.format(thoughts=lines)}{prompt.text}")


def past_entry(completion: str, removed: int, valid: bool) -> str:
    """What the layout `append` keeps of a finished step that had a thought.

    The completion as it stands when its answer was valid; otherwise what really left the pool, so that
    the model always reads the true state.
    """
    kept = completion.strip() if valid else f"{NO_THOUGHT}[{removed}]</answer>"
    return f"{kept}\n"


def bare_past(removed: Sequence[int]) -> tuple[str, ...]:
    """What the layout `append` keeps of steps without a thought: an empty one, then answer after answer."""
    return tuple(f"{ANOTHER if i else NO_THOUGHT}[{k}]</answer>" for i, k in enumerate(removed))


def list_prompt(prompt: Prompt, named: Sequence[int]) -> Prompt:
    """The prompt for the next identifier of a list without a thought: those named already stand behind the text."""
    pieces = (NO_THOUGHT, *(piece for k in named for piece in (f"[{k}]", NEXT)))
    return dataclasses.replace(prompt, past=pieces[:-1], prefill=pieces[-1], stays=True)


def written_list(order: Sequence[int]) -> str:
    """The completion that is a whole ranking without a thought."""
    return f"{NO_THOUGHT}{NEXT.join(f'[{k}]' for k in order)}</answer>"


def sampled_past(problem: Problem, pool: Sequence[int], rng: random.Random, *, think: bool) -> tuple[str, ...]:
    """A past for a sampled state: all that is not in the pool, removed in random order without thoughts."""
    gone = [k for k in problem.identifiers if k not in pool]
    rng.shuffle(gone)
    return tuple(past_entry("", k, valid=False) for k in gone) if think else bare_past(gone)
