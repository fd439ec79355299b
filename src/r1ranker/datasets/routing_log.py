"""A log of calls to LLMs: JSON Lines, one call a line; a file, or a folder of `*.jsonl`. Which LLM should answer?

    {"prompt": "Why is ...", "model": "small", "score": 1.0, "cost": 4e-5, "prompt_tokens": 20, "completion_tokens": 90}
    {"prompt": "Why is ...", "model": "large", "score": 1.0, "cost": 3e-3, "prompt_tokens": 20, "completion_tokens": 80}

`score` is how good the answer was, from 0 to 1; `cost` is that of this call, in any currency, and where it is left out
that of its tokens at the prices of the file `llms` (as `llm_candidates.json` of `llmrouter`). `time` and other keys
are passed over. Calls are put together by prompt, and a pool is the LLMs that answered it: nothing is made up for the
others. Utility, gains and tasks are those of `llmrouter`: a call's cost is divided by the dearest one's of its prompt.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from r1ranker.datasets.common import Source
from r1ranker.datasets.llm_outcomes import LLM, Asked, at_least_0, read_llms, score_of, shares
from r1ranker.datasets.llmrouter import (
    OBJECTIVES,
    TASK,
    Wish,
    check_options,
    describe,
    objective_for,
    outcomes_of,
    routing_problems,
)
from r1ranker.datasets.tables import files_of, named_file
from r1ranker.errors import DataError
from r1ranker.io.documents import read_json_lines
from r1ranker.io.text import MissingFileError
from r1ranker.problem import Splits

log = logging.getLogger(__name__)

TOKENS = ("prompt_tokens", "completion_tokens")


class Call(NamedTuple):
    """One line. where: file and line. score: None where nobody said; cost: None where it is not known."""

    where: str
    prompt: str
    model: str
    score: float | None
    cost: float | None


def load(
    path: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    llms: str | None = None,
    objectives: Sequence[Wish] = tuple(OBJECTIVES),
    max_query_chars: int = 1000,
    task: str = TASK,
) -> Splits:
    """Problems of the chosen `objectives`; a prompt stands in the same split for all of them.

    llms: a file of what candidates show beside their names, and of prices. task: the first word of the tasks' names.
    """
    check_options(objectives, max_query_chars)
    shown, asked = read(path, llms, need_costs=any(objective_for(wish).cost for wish in objectives))
    return routing_problems(shown, asked, seed, limit, objectives, max_query_chars, task)


def read(path: Path, llms: str | None = None, *, need_costs: bool = True) -> tuple[dict[str, str], list[Asked]]:
    """What the model reads of each LLM, by name, and the prompts that two or more of them answered.

    Where a call's cost is not known, and costs are not needed, nothing is `paid` and all costs are 0.
    """
    known, asked = _read(path, llms, need_costs=need_costs)
    names = sorted({name for one in asked for name in one.scores})
    return {name: describe(name, known[name]) if name in known else name for name in names}, asked


def outcomes(
    path: Path, qids: Iterable[str], task: str = TASK, llms: str | None = None
) -> dict[str, dict[str, tuple[float, float]]]:
    """Score, and cost in [0, 1], of each LLM on the prompt of each qid, as `llmrouter.outcomes`.

    Empty where costs are not known.
    """
    known = [one for one in _read(path, llms, need_costs=False)[1] if one.paid is not None]
    return outcomes_of(known, qids, task)


def read_calls(path: Path, llms: Mapping[str, LLM] | None = None) -> Iterator[Call]:
    """The calls of a log, in its order. DataError names the line of one that cannot be used."""
    files = files_of(path, "*.jsonl") if path.is_dir() else [path]
    if not files:
        raise MissingFileError(f"{path}: has no *.jsonl")
    for file in files:
        for number, row in read_json_lines(file):
            yield _call(f"{file}:{number}", row, llms or {})


def _call(where: str, row: Mapping[str, Any], llms: Mapping[str, LLM]) -> Call:
    prompt, model = row.get("prompt"), row.get("model", row.get("llm"))
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: needs a prompt, a text; there are {', '.join(row) or 'no keys'}")
    if not isinstance(model, str) or model.split() != [model]:
        raise DataError(f"{where}: needs a model, the name of an LLM without white space, not {model!r}")
    score = None if row.get("score") is None else score_of(row["score"], f"{where}: score")
    cost = None if row.get("cost") is None else at_least_0(row["cost"], f"{where}: cost")
    if cost is None and model in llms and all(row.get(key) is not None for key in TOKENS):
        read, written = (at_least_0(row[key], f"{where}: {key}") for key in TOKENS)
        cost = (read * llms[model].input_price + written * llms[model].output_price) / 1e6
    return Call(where, prompt.strip(), model, score, cost)


def _read(path: Path, llms: str | None, *, need_costs: bool) -> tuple[dict[str, LLM], list[Asked]]:
    """What is known of LLMs, and the prompts that two or more of them answered, by their first line's number."""
    known = read_llms(named_file(path if path.is_dir() else path.parent, "llms", llms)) if llms else {}
    prompts: dict[str, tuple[int, dict[str, list[Call]]]] = {}
    unsaid = 0
    for row, call in enumerate(read_calls(path, known)):
        if known and call.model not in known:
            raise DataError(f"{call.where}: LLM {call.model!r} is not in {llms}; add it there")
        if call.score is None:
            unsaid += 1
            continue
        _, calls = prompts.setdefault(call.prompt, (row, defaultdict(list)))
        calls[call.model].append(call)
    several = {prompt: found for prompt, found in prompts.items() if len(found[1]) > 1}
    _tell(path, unsaid, [calls for _, calls in prompts.values()], len(prompts) - len(several))
    asked = (call for _, calls in several.values() for of_one in calls.values() for call in of_one)
    unknown = [call for call in asked if call.cost is None]
    if unknown:
        _check_not_needed(path, unknown, need_costs)
    return known, [_asked(row, prompt, calls, priced=not unknown) for prompt, (row, calls) in several.items()]


def _check_not_needed(path: Path, unknown: Sequence[Call], needed: bool) -> None:
    if needed:
        raise DataError(
            f"{unknown[0].where}: has no cost; write it, or give its {' and '.join(TOKENS)} and the prices of "
            f"{unknown[0].model} in a file (option llms), or keep to objectives: [performance]"
        )
    log.info("%s: %d calls have no cost, so no cost counts", path, len(unknown))


def _asked(row: int, prompt: str, calls: Mapping[str, Sequence[Call]], *, priced: bool) -> Asked:
    """A prompt with the means of each LLM that answered it."""
    scores = {model: fmean(call.score or 0.0 for call in of_one) for model, of_one in calls.items()}
    if not priced:
        return Asked(row, prompt, scores, dict.fromkeys(scores, 0.0))
    paid = {model: fmean(call.cost or 0.0 for call in of_one) for model, of_one in calls.items()}
    return Asked(row, prompt, scores, shares(paid), paid)


def _tell(path: Path, unsaid: int, prompts: Sequence[Mapping[str, Sequence[Call]]], alone: int) -> None:
    """Say what was left out, and what was put together. DataError where nothing is left."""
    if unsaid:
        log.warning("%s: %d calls have no score and are left out", path, unsaid)
    if again := sum(len(of_model) - 1 for calls in prompts for of_model in calls.values()):
        log.info("%s: %d calls ask an LLM a prompt again: the means of scores and costs count", path, again)
    if alone:
        log.warning("%s: %d of %d prompts were answered by one LLM alone, and left out", path, alone, len(prompts))
    if alone == len(prompts):
        raise DataError(f"{path}: no prompt has scores of two LLMs, so none can be compared; ask several the same")


SOURCE = Source(
    load=load,
    description="route-performance, route-balance, route-cost: a log of your own calls to LLMs, what each cost",
    layout="JSON Lines with prompt, model, score and cost (or prompt_tokens and completion_tokens); a file or a folder",
    licence="yours",
    citation="yours",
)
