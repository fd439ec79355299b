"""What `routing` works on: the questions of a source, what each LLM scored and what each call cost.

    bench = read_bench(DataConfig(source="llmrouter", path=Path("data/llm-routing")), limit=None)
    bench.known["test"]["q7:performance"]["small"]      # Outcome(score=1.0, cost=0.04)

The objectives are those of the source's option `objectives`. Questions on which all LLMs tie are kept, unlike in
training and in `evaluate`: they are asked and paid for too. A source's split by question text is kept.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1ranker import datasets
from r1ranker.datasets import llmrouter, mini, mini_routing, routing_log
from r1ranker.datasets.common import take
from r1ranker.datasets.llm_outcomes import Asked, shares
from r1ranker.datasets.mini_words import words
from r1ranker.errors import ConfigError, DataError
from r1ranker.evaluation.routing import Outcome, Outcomes, Weights
from r1ranker.io.config import DataConfig
from r1ranker.io.files import at_home
from r1ranker.problem import Problem, Splits, rng_for

log = logging.getLogger(__name__)

READ: Mapping[str, Any] = {"llmrouter": llmrouter.read, "routing-log": routing_log.read}
"""Sources of outcomes: what a model reads of each LLM, and the questions."""
BY_CALL = "money for a thousand questions, by what each call cost"
BY_PRICE = "shares of the dearest LLM's price: what each call cost is not known"
UNKNOWN = "not known, or nothing, so AIQ is the best quality of each"
THOUSAND = 1000
QUERY_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Bench:
    """A source's questions, each named by the qid of its problem of quality alone.

    problems: by split and objective, quality alone first, the same questions in the same order. known: score and cost
    by split, question and LLM. datasets: of questions, where the source says so. unit: of costs. show: whose places a
    ranker under test reads, as in the source.
    """

    name: str
    problems: Mapping[str, Mapping[str, Sequence[Problem]]]
    known: Mapping[str, Outcomes]
    datasets: Mapping[str, str]
    unit: str
    show: Sequence[str] = ()

    @property
    def weights(self) -> dict[str, Weights]:
        """Weights of quality and of cost as a share, by objective."""
        wishes = map(llmrouter.objective_for, self.problems["test"])
        return {name: Weights(one.quality, one.cost) for name, one in zip(self.problems["test"], wishes, strict=True)}

    def in_shares(self) -> Bench:
        """The same with costs as shares of the dearest LLM's on each question, beside which qualities are weighed."""
        if self.unit != BY_CALL:
            return self
        known = {split: {qid: _shares(one) for qid, one in of_split.items()} for split, of_split in self.known.items()}
        return dataclasses.replace(self, known=known, unit=BY_PRICE)


def benches(sources: Sequence[DataConfig], limit: int | None) -> list[Bench]:
    """A bench for each source that holds outcomes of LLMs. limit: test questions of each, at most."""
    found = [read_bench(data, limit) for data in sources if data.source in (*READ, "mini")]
    if not found:
        raise ConfigError(f"routing needs outcomes of LLMs: a source among {', '.join((*READ, 'mini'))}")
    names = [bench.name for bench in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"two sources are both called {max(names, key=names.count)!r}; give one the option task")
    return found


def read_bench(data: DataConfig, limit: int | None) -> Bench:
    """Read a source. data.limit: questions of each split, at most; limit: the first so many of test."""
    name, splits, asked = mini_asked(data) if data.source == "mini" else _logged(data)
    objectives = _objectives(data)
    problems: dict[str, dict[str, list[Problem]]] = {}
    everywhere = {llm for one in asked.values() for llm in one.scores}
    for split, of_split in splits.items():
        rows = list(zip(*(_of(of_split, objective) for objective in objectives), strict=True))
        kept = [row for row in rows if asked[row[0].qid].scores.keys() == everywhere]
        if len(kept) < len(rows):
            log.warning("%s, %s: %d questions lack an LLM and are left out", name, split, len(rows) - len(kept))
        if not kept:
            raise DataError(f"{name}, {split}: no question was answered by all {len(everywhere)} LLMs")
        kept = take(kept, data.limit, rng_for(data.seed, "limit", name, split))
        kept = kept[:limit] if split == "test" else kept
        problems[split] = dict(zip(objectives, map(list, zip(*kept, strict=True)), strict=True))
    unit = _unit(asked.values())
    names = {split: [p.qid for p in of_split[objectives[0]]] for split, of_split in problems.items()}
    return Bench(
        name=name,
        problems=problems,
        known={split: {qid: _outcomes(asked[qid], unit == BY_CALL) for qid in qids} for split, qids in names.items()},
        datasets={qid: asked[qid].dataset for qids in names.values() for qid in qids if asked[qid].dataset},
        unit=unit,
        show=data.show,
    )


def _unit(asked: Collection[Asked]) -> str:
    if all(one.paid is not None for one in asked):
        return BY_CALL
    return BY_PRICE if any(cost for one in asked for cost in one.costs.values()) else UNKNOWN


def _outcomes(one: Asked, paid: bool) -> dict[str, Outcome]:
    costs = {llm: THOUSAND * cost for llm, cost in (one.paid or {}).items()} if paid else one.costs
    return {llm: Outcome(score, costs[llm]) for llm, score in one.scores.items()}


def _shares(of_query: Mapping[str, Outcome]) -> dict[str, Outcome]:
    parts = shares({llm: outcome.cost for llm, outcome in of_query.items()})
    return {llm: Outcome(outcome.score, parts[llm]) for llm, outcome in of_query.items()}


def _objectives(data: DataConfig) -> list[str]:
    """Names of the objectives, the highest weight of quality first."""
    names = [llmrouter.name_of(wish) for wish in data.options.get("objectives", llmrouter.OBJECTIVES)]
    ordered = sorted(names, key=lambda name: -llmrouter.objective_for(name).quality)
    if not ordered or llmrouter.objective_for(ordered[0]).cost:
        raise ConfigError("routing compares quality alone too: add performance, or 1, to the option objectives")
    return ordered


def _of(problems: Sequence[Problem], objective: str) -> list[Problem]:
    return [problem for problem in problems if problem.task.endswith(f"-{objective}")]


def _logged(data: DataConfig) -> tuple[str, Splits, dict[str, Asked]]:
    if data.path is None or not at_home(data.path).exists():
        raise DataError(f"source {data.source!r}: {data.path} does not exist; set its path")
    options = dict(data.options)
    task, chars = options.pop("task", llmrouter.TASK), options.pop("max_query_chars", QUERY_CHARS)
    options.pop("objectives", None)
    if data.source == "routing-log":
        options["need_costs"] = any(llmrouter.objective_for(name).cost for name in _objectives(data))
    shown, asked = READ[data.source](at_home(data.path), **options)
    splits = llmrouter.routing_problems(shown, asked, data.seed, None, _objectives(data), chars, task, ties=True)
    qids = [problem.qid for problems in splits.values() for problem in problems]
    return task, splits, llmrouter.asked_of(asked, qids, task)


def mini_asked(data: DataConfig) -> tuple[str, Splits, dict[str, Asked]]:
    """The embedded tasks; a question's data set is its category."""
    loaded = datasets.load("mini", seed=data.seed)
    splits = {split: [p for p in problems if p.scenario == "routing"] for split, problems in loaded.items()}
    queries = [query for of_split in mini_routing.queries(data.seed, mini.SIZES).values() for query in of_split]
    by_group = {f"route-{query.name}": query for query in queries}
    prices = {llm["name"]: float(llm["price"]) for llm in words()["routing"]["llms"]}
    most = max(prices.values())
    parts = {llm: price / most for llm, price in prices.items()}
    asked = {
        problem.qid: Asked(row, query.text, query.scores, parts, None, query.category)
        for problems in splits.values()
        for row, problem in enumerate(problems)
        for query in [by_group[problem.group]]
    }
    return "mini-route", splits, asked
