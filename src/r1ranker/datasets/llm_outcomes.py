"""What LLMs scored and cost on questions. In: a `llmrouter` folder. Out: the LLMs asked, and each distinct question.

    llms, questions = read_outcomes(folder)
    llms["small"]       # LLM("7B", "Quick.", 0.1, 0.2)
    questions[0]        # Asked(0, "why is ...", {"small": 1.0, "large": 1.0}, {"small": 0.2, "large": 1.0})

Costs are shares of the dearest LLM's: of its call on that question where `cost_usd` says what calls cost, else of its
price. Next in the data flow is `llmrouter`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from r1ranker.datasets.tables import need_file, only_file
from r1ranker.errors import DataError
from r1ranker.io.documents import read_json, read_json_lines, text_of
from r1ranker.io.text import MissingFileError, finite

log = logging.getLogger(__name__)

PRICES = ("input_price", "output_price")

Numbers = Mapping[str, float]
"""By LLM."""


@dataclass(frozen=True, slots=True)
class LLM:
    """An entry of `llm_candidates.json`; prices are for a million tokens."""

    size: str
    feature: str
    input_price: float
    output_price: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A distinct question: its row in the file, and the score and the cost, both in [0, 1], of each LLM on it.

    paid: what each call cost, in money, where that is known. dataset: the set it is of, where the file says so.
    """

    row: int
    question: str
    scores: Numbers
    costs: Numbers
    paid: Numbers | None = None
    dataset: str = ""


class _Outcome(NamedTuple):
    where: str
    row: int
    scores: Numbers
    costs: Numbers | None
    dataset: str


def read_outcomes(folder: Path) -> tuple[dict[str, LLM], list[Asked]]:
    """The LLMs that were asked, by name, and the distinct questions of `train.json`, else of `outcomes.jsonl`."""
    candidates = need_file(folder, "llm_candidates.json")
    entries = _entries(candidates)
    asked = _asked(folder, entries.keys())
    scored = sorted({name for of_one in asked.values() for name in of_one.scores})
    llms = {name: _llm(f"{candidates}: {name!r}", entries[name]) for name in scored}
    prices = shares({name: llm.input_price + llm.output_price for name, llm in llms.items()})
    return llms, [
        Asked(
            row=of_one.row,
            question=question,
            scores=of_one.scores,
            costs=prices if of_one.costs is None else shares(of_one.costs),
            paid=of_one.costs,
            dataset=of_one.dataset,
        )
        for question, of_one in asked.items()
    ]


def read_llms(file: Path) -> dict[str, LLM]:
    """The LLMs of a file, by name."""
    return {name: _llm(f"{file}: {name!r}", entry) for name, entry in _entries(file).items()}


def _entries(file: Path) -> dict[str, Any]:
    entries = read_json(file)
    if not isinstance(entries, dict):
        raise DataError(f"{file}: the outermost value must be an object of LLMs by name")
    return entries


def _llm(where: str, entry: Any) -> LLM:
    if not isinstance(entry, dict):
        raise DataError(f"{where} must be an object with size, feature, input_price and output_price")
    size, feature = (text_of(entry.get(key), f"{where}: {key}").strip() for key in ("size", "feature"))
    prices = (at_least_0(entry.get(key), f"{where} lacks a numeric price: {key}") for key in PRICES)
    return LLM(size, feature, *prices)


def _asked(folder: Path, llms: Set[str]) -> dict[str, _Outcome]:
    train, logged = only_file(folder, "train.json"), only_file(folder, "outcomes.jsonl")
    asked = _distinct(_array(train), llms) if train else {}
    if logged:
        outcomes = _distinct(_lines(logged), llms)
        _need_costs(outcomes)
        asked = _joined(asked, outcomes, logged) if train else outcomes
    elif train is None:
        raise MissingFileError(f"{folder}: has neither train.json nor outcomes.jsonl")
    if any(of_one.costs is not None for of_one in asked.values()):
        _need_costs(asked)
    return asked


def _need_costs(asked: Mapping[str, _Outcome]) -> None:
    for of_one in asked.values():
        if of_one.costs is None:
            raise DataError(f"{of_one.where}: has no cost_usd, what the call of each LLM cost, as the others have")


def _array(path: Path) -> Iterator[tuple[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: the outermost value must be a list of questions")
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    return ((f"{path}:{number}", row) for number, row in read_json_lines(path))


def _distinct(rows: Iterable[tuple[str, Any]], llms: Set[str]) -> dict[str, _Outcome]:
    """What is known of each question. One that stands twice must say the same."""
    distinct: dict[str, _Outcome] = {}
    repeated = 0
    for number, (where, row) in enumerate(rows):
        question, outcome = _outcome(where, number, row, llms)
        known = distinct.setdefault(question, outcome)
        repeated += known is not outcome
        if (known.scores, known.costs) != (outcome.scores, outcome.costs):
            raise DataError(f"{where}: asks what {known.where} asks, with other outcomes; keep one of them")
    if repeated:
        log.info("%d rows repeat a question and are dropped", repeated)
    return distinct


def _outcome(where: str, number: int, row: Any, llms: Set[str]) -> tuple[str, _Outcome]:
    needs = f"{where}: needs a question and numeric scores by LLM"
    question, scores = (row.get("question"), row.get("scores")) if isinstance(row, dict) else (None, None)
    if not isinstance(question, str) or not question.strip() or not isinstance(scores, dict) or not scores:
        raise DataError(needs)
    unknown = sorted(scores.keys() - llms)
    if unknown:
        raise DataError(f"{where}: LLM {unknown[0]!r} is not in llm_candidates.json")
    numbers = {name: score_of(score, f"{needs}; {name}") for name, score in scores.items()}
    costs = row.get("cost_usd")
    if costs is not None:
        if not isinstance(costs, dict) or costs.keys() != scores.keys():
            raise DataError(f"{where}: cost_usd must hold a number for each LLM that has a score, and for no other")
        costs = {name: at_least_0(cost, f"{where}: cost_usd of {name}") for name, cost in costs.items()}
    dataset = row.get("dataset", row.get("source"))
    named = dataset.strip() if isinstance(dataset, str) else ""
    return question.strip(), _Outcome(where, number, numbers, costs, named)


def score_of(value: object, where: str) -> float:
    """How good an answer was. `where` begins the DataError."""
    score = finite(value, where)
    if not 0 <= score <= 1:
        raise DataError(f"{where}: {score:g} is not from 0 to 1, beside which costs are weighed; scale it")
    return score


def at_least_0(value: object, where: str) -> float:
    """A cost, a price or a number of tokens. `where` begins the DataError."""
    number = finite(value, where)
    if number < 0:
        raise DataError(f"{where}: {value!r} is below 0")
    return number


def _joined(asked: Mapping[str, _Outcome], outcomes: Mapping[str, _Outcome], logged: Path) -> dict[str, _Outcome]:
    """The questions asked, with the costs of their outcomes, whose scores must be the same."""
    for question, of_one in asked.items():
        if question not in outcomes:
            raise DataError(f"{of_one.where}: {logged.name} has no line for this question")
        if outcomes[question].scores != of_one.scores:
            raise DataError(f"{outcomes[question].where}: the scores are not those of {of_one.where}")
    if len(outcomes) > len(asked):
        log.warning("%d questions of %s are not in train.json and are left out", len(outcomes) - len(asked), logged)
    return {
        question: of_one._replace(costs=outcomes[question].costs, dataset=of_one.dataset or outcomes[question].dataset)
        for question, of_one in asked.items()
    }


def shares(costs: Numbers) -> dict[str, float]:
    """Costs as parts of the largest."""
    largest = max(costs.values(), default=0.0)
    return {name: cost / largest if largest else 0.0 for name, cost in costs.items()}
