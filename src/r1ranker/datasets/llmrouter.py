"""LLMRouter: a directory with `llm_candidates.json` and `train.json`; which LLM should answer a question.

    {"qwen2.5-7b-instruct": {"size": "7B", "feature": "...", "input_price": 0.2, "output_price": 0.2}, ...}
    [{"question": "...", "scores": {"qwen2.5-7b-instruct": 0.0, ...}}, ...]

and, where it is known what each call cost, `outcomes.jsonl`, beside `train.json` or in its place:

    {"question": "...", "scores": {"qwen2.5-7b-instruct": 0.0, ...}, "cost_usd": {"qwen2.5-7b-instruct": 4e-05, ...}}

The utility of an LLM is w_p * score - w_c * cost. Its cost is what its call cost, divided by the dearest call on that
question; without outcomes, the sum of its two prices divided by the largest such sum. Every LLM tied at the best
utility is relevant (gain 10, `relevant_at=10`): for most questions several LLMs answer equally well. Tasks:
`route-performance`, `route-balance`, `route-cost`; another first word with the option `task`.

An objective may also be a number, the weight of quality (`route-0.9`): a model that learns from many of them reads the
number. Gains are then what the utility lost to the best leaves of 1000, on one scale for all questions.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1ranker.datasets.common import SPLIT_NAMES, Source, check_sizes, limit_per_task, split_groups
from r1ranker.datasets.llm_outcomes import LLM, Asked, Numbers, read_outcomes
from r1ranker.errors import ConfigError
from r1ranker.io.text import cut
from r1ranker.problem import Answer, Candidate, Problem, Splits, rng_for

log = logging.getLogger(__name__)

TASK = "route"
BEST_GAIN = 10
WHOLE = 1000
"""Gain of the best LLMs where the objective is a number; the utility lost to them, in thousandths, is taken off."""
TIE = 1e-9
DESCRIPTION_CHARS = 200


@dataclass(frozen=True, slots=True)
class Objective:
    """Weights of quality and of cost, which sum to 1, the sentence the model reads, and the gain of the best LLMs."""

    quality: float
    cost: float
    sentence: str
    best: int = BEST_GAIN


OBJECTIVES: dict[str, Objective] = {
    "performance": Objective(1.0, 0.0, "Only answer quality matters."),
    "balance": Objective(0.5, 0.5, "Quality and price matter equally."),
    "cost": Objective(0.2, 0.8, "Price matters most."),
}
"""Those with a name. On the scale of numbers, which are weights of quality, they stand at 1, 0.5 and 0.2."""
Wish = str | float
"""A name of `OBJECTIVES`, or a weight of quality from 0 to 1."""
LEADS = {0.0: "Only price matters", 0.5: "Quality and price matter equally", 1.0: "Only answer quality matters"}


@dataclass(frozen=True, slots=True)
class Question:
    """A distinct question: its row in the file, the text the model reads, the score and the cost of each LLM.

    `group` is the first row whose text reads the same: long questions may be cut to one beginning.
    """

    row: int
    text: str
    scores: Numbers
    costs: Numbers
    group: str


def objective_for(wish: Wish) -> Objective:
    """The objective of that name or of that weight of quality, which may be text too, as it stands in a task's name.

    Raises ConfigError for what is neither.
    """
    if wish in OBJECTIVES:
        return OBJECTIVES[str(wish)]
    try:
        weight = float(wish)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= 1:
        known = ", ".join(OBJECTIVES)
        raise ConfigError(f"objectives: {wish!r} is not one of {known}, and no weight of quality from 0 to 1")
    lead = LEADS.get(weight, f"{'Quality' if weight > 0.5 else 'Price'} matters most")
    said = f"{lead}: quality {100 * weight:.4g}%, price {100 - 100 * weight:.4g}%."
    return Objective(weight, 1 - weight, said, WHOLE)


def name_of(wish: Wish) -> str:
    """What tasks and qids call it."""
    return wish if isinstance(wish, str) else f"{wish:g}"


def load(
    path: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    objectives: Sequence[Wish] = tuple(OBJECTIVES),
    max_query_chars: int = 1000,
    task: str = TASK,
) -> Splits:
    """Problems of the chosen `objectives`; a question stands in the same split for all of them.

    task: the first word of the tasks' names, so that two folders can stand in one run.
    """
    check_options(objectives, max_query_chars)
    shown, asked = read(path)
    return routing_problems(shown, asked, seed, limit, objectives, max_query_chars, task)


def read(path: Path) -> tuple[dict[str, str], list[Asked]]:
    """What the model reads of each LLM, by name, and the distinct questions."""
    llms, asked = read_outcomes(path)
    return {name: describe(name, llm) for name, llm in llms.items()}, asked


def check_options(objectives: Sequence[Wish], max_query_chars: int) -> None:
    """Raises ConfigError for an objective that there is not, and for queries of no length."""
    for wish in objectives:
        objective_for(wish)
    check_sizes(max_query_chars=max_query_chars)


def routing_problems(
    shown: Mapping[str, str],
    asked: Iterable[Asked],
    seed: int,
    limit: int | None,
    objectives: Sequence[Wish],
    max_query_chars: int,
    task: str,
    *,
    ties: bool = False,
) -> Splits:
    """Problems of the chosen `objectives` from what each LLM scored and cost; a pool is the LLMs that were asked.

    shown: what the model reads of each LLM, by name. ties: keep the questions on which all LLMs tie, so that each
    objective has the same ones in the same order.
    """
    questions = _questions(asked, max_query_chars)
    candidates = {name: Candidate(name, text) for name, text in shown.items()}
    side = split_groups((question.group for question in questions), seed)
    sides = {split: [q for q in questions if side[q.group] == split] for split in SPLIT_NAMES}
    splits: Splits = {split: [] for split in SPLIT_NAMES}
    for name, objective in {name_of(wish): objective_for(wish) for wish in objectives}.items():
        prior = _average_utility(sides["train"], objective)
        for split, members in sides.items():
            built = [_problem(question, name, candidates, prior, seed, task) for question in members]
            kept = built if ties else [problem for problem in built if set(problem.gains.values()) != {objective.best}]
            splits[split] += kept
            if dropped := len(built) - len(kept):
                log.info("%s-%s, %s: %d questions where all LLMs tie are dropped", task, name, split, dropped)
    return limit_per_task(splits, limit, seed)


def outcomes(path: Path, qids: Iterable[str], task: str = TASK) -> dict[str, dict[str, tuple[float, float]]]:
    """Score, and cost in [0, 1], of each LLM on the question of each qid: what gains and the prior are made of.

    Qids of other sources, and of other values of the option `task`, are passed over.
    """
    return outcomes_of(read_outcomes(path)[1], qids, task)


def outcomes_of(known: Iterable[Asked], qids: Iterable[str], task: str) -> dict[str, dict[str, tuple[float, float]]]:
    """`outcomes` of what is known of each question."""
    return {
        qid: {name: (score, one.costs[name]) for name, score in one.scores.items()}
        for qid, one in asked_of(known, qids, task).items()
    }


def asked_of(known: Iterable[Asked], qids: Iterable[str], task: str) -> dict[str, Asked]:
    """The question of each qid that is of this source."""
    asked = {question.row: question for question in known}
    form = re.compile(rf"{re.escape(_owner(task))}q(\d+):[\w.]+")
    rows = {qid: int(match[1]) for qid in qids if (match := form.fullmatch(qid))}
    return {qid: asked[row] for qid, row in rows.items() if row in asked}


def _owner(task: str) -> str:
    """What qids and groups begin with, where two folders could give the same ones."""
    return "" if task == TASK else f"{task}:"


def _questions(asked: Iterable[Asked], max_chars: int) -> list[Question]:
    first: dict[str, int] = {}
    questions: list[Question] = []
    for one in asked:
        shown = cut(one.question, max_chars)
        group = f"q{first.setdefault(shown, one.row)}"
        questions.append(Question(one.row, shown, one.scores, one.costs, group))
    return questions


def describe(name: str, llm: LLM) -> str:
    """Name, size, price and what it is for. Sentences on prices are left out: some contradict the price."""
    sentences = re.split(r"(?<=[.!?])\s+", llm.feature)
    description = cut(" ".join(s for s in sentences if "$" not in s), DESCRIPTION_CHARS)
    price = f"${llm.input_price:.2f} in, ${llm.output_price:.2f} out per million tokens"
    return " | ".join(part for part in (name, llm.size, price, description) if part)


def _utilities(question: Question, objective: Objective) -> dict[str, float]:
    return {
        name: objective.quality * score - objective.cost * question.costs[name]
        for name, score in sorted(question.scores.items())
    }


def _average_utility(questions: Sequence[Question], objective: Objective) -> dict[str, float]:
    """Mean utility of each LLM on the questions on which it was asked."""
    totals: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for question in questions:
        for name, utility in _utilities(question, objective).items():
            totals[name] += utility
            counts[name] += 1
    return {name: total / counts[name] for name, total in totals.items()}


def gains_of(utilities: Mapping[str, float], best: int = BEST_GAIN) -> dict[str, int]:
    """`best` for every LLM tied at the best utility; less for others.

    Of named objectives 0 to 8 by the place between worst and best; of numbers what is left of the whole.
    """
    low, high = min(utilities.values()), max(utilities.values())

    def lesser(utility: float) -> int:
        if best == WHOLE:
            return min(max(round(WHOLE * (1 - (high - utility))), 0), WHOLE - 1)
        return math.floor(9 * (utility - low) / (high - low))

    return {name: best if high - utility <= TIE else lesser(utility) for name, utility in utilities.items()}


def worth(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """The reward of selecting an LLM where objectives are numbers: 1 less the utility lost to the best.

        ppo: {reward: "r1ranker.datasets.llmrouter:worth"}      # with ask: best

    `graded` gives each question the same range from 0 to 1. There a small difference in price, where all LLMs are
    wrong, counts as much as a right answer where they differ, and the cheapest LLM earns most at every weight below 1.
    """
    return problem.gain(answer.ids[0]) / problem.relevant_at


def _problem(
    question: Question,
    name: str,
    candidates: Mapping[str, Candidate],
    prior: Numbers,
    seed: int,
    task: str,
) -> Problem:
    objective = objective_for(name)
    gains = gains_of(_utilities(question, objective), objective.best)
    qid = f"q{question.row}:{name}"
    pool = sorted(gains)
    rng_for(seed, qid).shuffle(pool)
    return Problem(
        qid=f"{_owner(task)}{qid}",
        task=f"{task}-{name}",
        scenario="routing",
        query=question.text,
        objective=objective.sentence,
        candidates=tuple(candidates[llm] for llm in pool),
        gains=gains,
        relevant_at=objective.best,
        prior={llm: prior[llm] for llm in pool if llm in prior},
        group=f"{_owner(task)}{question.group}",
    )


SOURCE = Source(
    load=load,
    description="route-performance, route-balance, route-cost: which LLM should answer",
    layout="llm_candidates.json, and train.json or outcomes.jsonl (or both)",
    licence="MIT",
    citation="LLMRouter, https://github.com/ulab-uiuc/LLMRouter",
    download="https://github.com/ulab-uiuc/LLMRouter",
)
