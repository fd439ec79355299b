"""LLMRouter: a directory with `llm_candidates.json` and `train.json`; which LLM should answer a question.

    {"qwen2.5-7b-instruct": {"size": "7B", "feature": "...", "input_price": 0.2, "output_price": 0.2}, ...}
    [{"question": "...", "scores": {"qwen2.5-7b-instruct": 0.0, ...}}, ...]

The utility of an LLM is w_p * score - w_c * cost, its cost being the sum of its two prices divided by the
largest such sum. Every LLM tied at the best utility is relevant (gain 10, `relevant_at=10`): for most
questions several LLMs answer equally well. Tasks: `route-performance`, `route-balance`, `route-cost`.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1ranker.datasets.common import SPLIT_NAMES, Source, cut, limit_per_task, need, rng_for, split_groups
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Candidate, Problem, Splits

log = logging.getLogger(__name__)

BEST_GAIN = 10
TIE = 1e-9
DESCRIPTION_CHARS = 200


@dataclass(frozen=True, slots=True)
class Objective:
    """Weights of quality and of cost, and the sentence the model reads."""

    quality: float
    cost: float
    sentence: str


OBJECTIVES: dict[str, Objective] = {
    "performance": Objective(1.0, 0.0, "Only answer quality matters."),
    "balance": Objective(0.5, 0.5, "Quality and price matter equally."),
    "cost": Objective(0.2, 0.8, "Price matters most."),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A distinct question: its row in the file, the text the model reads, the score of each LLM.

    `group` is the first row whose text reads the same: long questions may be cut to one beginning.
    """

    row: int
    text: str
    scores: Mapping[str, float]
    group: str


def load(
    path: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    objectives: Sequence[str] = tuple(OBJECTIVES),
    max_query_chars: int = 1000,
) -> Splits:
    """Problems of the chosen `objectives`; a question stands in the same split for all of them."""
    unknown = [name for name in objectives if name not in OBJECTIVES]
    if unknown:
        raise ConfigError(f"objectives: {unknown[0]!r} is not one of {', '.join(OBJECTIVES)}")
    llms = _read(path / "llm_candidates.json", dict)
    questions = _questions(path / "train.json", llms, max_query_chars)
    costs = _costs(llms, {name for question in questions for name in question.scores})
    candidates = {name: Candidate(name, _describe(name, llms[name])) for name in costs}
    side = split_groups((question.group for question in questions), seed)
    sides = {split: [q for q in questions if side[q.group] == split] for split in SPLIT_NAMES}
    splits: Splits = {split: [] for split in SPLIT_NAMES}
    for name in objectives:
        prior = _average_utility(sides["train"], OBJECTIVES[name], costs)
        for split, members in sides.items():
            built = [_problem(question, name, costs, candidates, prior, seed) for question in members]
            splits[split] += [problem for problem in built if problem is not None]
            ties = built.count(None)
            if ties:
                log.info("route-%s, %s: %d questions where all LLMs tie are dropped", name, split, ties)
    return limit_per_task(splits, limit, seed)


def outcomes(path: Path, qids: Iterable[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """Score, and cost in [0, 1], of each LLM on the question of each qid: what gains and the prior are made of."""
    llms = _read(path / "llm_candidates.json", dict)
    scores = {question.row: question.scores for question in _questions(path / "train.json", llms, DESCRIPTION_CHARS)}
    costs = _costs(llms, {name for of_question in scores.values() for name in of_question})
    rows = {qid: int(qid.removeprefix("q").partition(":")[0]) for qid in qids}
    return {qid: {name: (score, costs[name]) for name, score in scores[row].items()} for qid, row in rows.items()}


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(need(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, kind):
        raise DataError(f"{path}: the outermost value must be a {kind.__name__}")
    return content


def _questions(path: Path, llms: Mapping[str, Any], max_chars: int) -> list[Question]:
    """Distinct questions, the first row of each kept."""
    distinct: dict[str, Question] = {}
    first: dict[str, int] = {}
    rows = _read(path, list)
    for number, row in enumerate(rows):
        try:
            text = str(row["question"]).strip()
            scores = {str(name): float(score) for name, score in row["scores"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: row {number}: needs a question and numeric scores by LLM") from error
        unknown = sorted(scores.keys() - llms.keys())
        if unknown:
            raise DataError(f"{path}: row {number}: LLM {unknown[0]!r} is not in llm_candidates.json")
        shown = cut(text, max_chars)
        group = f"q{first.setdefault(shown, number)}"
        distinct.setdefault(text, Question(number, shown, scores, group))
    if len(distinct) < len(rows):
        log.info("%s: %d rows repeat a question and are dropped", path, len(rows) - len(distinct))
    return [question for question in distinct.values() if question.text and question.scores]


def _costs(llms: Mapping[str, Any], scored: set[str]) -> dict[str, float]:
    """Cost in [0, 1] of the LLMs that have scores; the others never stand in a pool."""
    try:
        prices = {name: float(llms[name]["input_price"] + llms[name]["output_price"]) for name in sorted(scored)}
    except (KeyError, TypeError) as error:
        raise DataError(f"llm_candidates.json: an LLM lacks a numeric price: {error}") from error
    largest = max(prices.values(), default=0.0)
    return {name: price / largest if largest else 0.0 for name, price in prices.items()}


def _describe(name: str, llm: Mapping[str, Any]) -> str:
    """Name, size, price and what it is for. Sentences on prices are left out: some contradict the price."""
    sentences = re.split(r"(?<=[.!?])\s+", str(llm.get("feature", "")))
    description = cut(" ".join(s for s in sentences if "$" not in s), DESCRIPTION_CHARS)
    price = f"${llm['input_price']:.2f} in, ${llm['output_price']:.2f} out per million tokens"
    return " | ".join(part for part in (name, str(llm.get("size", "")), price, description) if part)


def _utilities(question: Question, objective: Objective, costs: Mapping[str, float]) -> dict[str, float]:
    return {
        name: objective.quality * score - objective.cost * costs[name]
        for name, score in sorted(question.scores.items())
    }


def _average_utility(
    questions: Sequence[Question], objective: Objective, costs: Mapping[str, float]
) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for question in questions:
        for name, utility in _utilities(question, objective, costs).items():
            totals[name] += utility
            counts[name] += 1
    return {name: total / counts[name] for name, total in totals.items()}


def _gains(utilities: Mapping[str, float]) -> dict[str, int]:
    """10 for every LLM tied at the best utility, else 0 to 8 by its place between worst and best."""
    low, high = min(utilities.values()), max(utilities.values())
    return {
        name: BEST_GAIN if high - utility <= TIE else math.floor(9 * (utility - low) / (high - low))
        for name, utility in utilities.items()
    }


def _problem(
    question: Question,
    objective: str,
    costs: Mapping[str, float],
    candidates: Mapping[str, Candidate],
    prior: Mapping[str, float],
    seed: int,
) -> Problem | None:
    """The problem, or None where all LLMs tie: there is nothing to rank."""
    gains = _gains(_utilities(question, OBJECTIVES[objective], costs))
    if set(gains.values()) == {BEST_GAIN}:
        return None
    qid = f"q{question.row}:{objective}"
    pool = sorted(gains)
    rng_for(seed, qid).shuffle(pool)
    return Problem(
        qid=qid,
        task=f"route-{objective}",
        scenario="routing",
        query=question.text,
        objective=OBJECTIVES[objective].sentence,
        candidates=tuple(candidates[name] for name in pool),
        gains=gains,
        relevant_at=BEST_GAIN,
        prior={name: prior.get(name, 0.0) for name in pool},
        group=question.group,
    )


SOURCE = Source(
    load=load,
    description="route-performance, route-balance, route-cost: which LLM should answer",
    layout="llm_candidates.json and train.json",
    licence="MIT",
    citation="LLMRouter, https://github.com/ulab-uiuc/LLMRouter",
    download="https://github.com/ulab-uiuc/LLMRouter",
)
