"""route-performance, route-balance, route-cost of the embedded tasks: which of ten LLMs should answer?

A query belongs to one of eight categories and is easy, plain or hard; its words tell both. Each LLM has a
price and a skill per category, which its description hints at. Its score on a query is that skill, more or
less by the difficulty and now and then by chance, in quarters from 0 to 1, so several LLMs often tie at the
best. Utility, gains and the prior are those of `llmrouter`: w_p * score - w_c * cost / largest cost, 10 for
every LLM at the best utility, and the mean utility on training queries.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1ranker.datasets.common import SPLIT_NAMES
from r1ranker.datasets.llmrouter import BEST_GAIN, OBJECTIVES, TIE, gains_of
from r1ranker.datasets.mini_words import words
from r1ranker.problem import Candidate, Problem, Splits, rng_for

TASKS = tuple(f"route-{objective}" for objective in OBJECTIVES)
LUCK = 0.06
"""Chance that an LLM does a quarter better or worse on a query than its skill says."""
LEAST_WORDS, MOST_WORDS = 8, 16
"""Length of a query."""
SMALL = 1.0
"""LLMs below this price lose a quarter on hard queries."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query and the score of each LLM; `category` and `difficulty` are hidden from the model."""

    name: str
    text: str
    category: str
    difficulty: str
    scores: Mapping[str, float]


def build(seed: int, sizes: Mapping[str, int]) -> Splits:
    """Problems of the three objectives; a query stands in the same split for all of them."""
    sides = queries(seed, sizes)
    splits: Splits = {split: [] for split in SPLIT_NAMES}
    for objective in OBJECTIVES:
        prior = _prior(sides["train"], objective)
        for split, members in sides.items():
            splits[split] += [_problem(query, objective, prior, seed) for query in members]
    return splits


def queries(seed: int, sizes: Mapping[str, int]) -> dict[str, list[Query]]:
    """Distinct queries by split. One on which all LLMs tie under some objective is left out."""
    rng = rng_for(seed, "queries")
    texts: set[str] = set()
    sides: dict[str, list[Query]] = {}
    for split in ("test", "dev", "train"):
        sides[split] = []
        while len(sides[split]) < sizes[split]:
            query = _query(f"{split}-{len(sides[split])}", rng)
            fits = LEAST_WORDS <= len(query.text.split()) <= MOST_WORDS and query.text not in texts
            if fits and all(_spread(_utilities(query, name)) > TIE for name in OBJECTIVES):
                texts.add(query.text)
                sides[split].append(query)
    return sides


def _query(name: str, rng: random.Random) -> Query:
    source = words()["routing"]
    category, difficulty = rng.choice(source["categories"]), rng.choice(list(source["hints"]))
    parts = source["queries"][category]
    slots = {slot: rng.choice(parts[slot].split("|")) for slot in ("a", "b")}
    core, hint = rng.choice(parts["templates"]).format(**slots), rng.choice(source["hints"][difficulty])
    text = f"{hint}, {core}" if rng.random() < 0.3 else f"{core}, {hint}"
    scores = {llm["name"]: _score(llm, source["categories"].index(category), difficulty, rng) for llm in _llms()}
    return Query(name, text, category, difficulty, scores)


def _score(llm: Mapping[str, Any], category: int, difficulty: str, rng: random.Random) -> float:
    score = float(llm["skills"][category])
    if difficulty == "easy" and score >= 0.5:
        score += 0.25
    if difficulty == "hard" and llm["price"] < SMALL:
        score -= 0.25
    if rng.random() < LUCK:
        score += rng.choice((-0.25, 0.25))
    return min(max(score, 0.0), 1.0)


def _llms() -> Sequence[Mapping[str, Any]]:
    llms: Sequence[Mapping[str, Any]] = words()["routing"]["llms"]
    return llms


def _utilities(query: Query, objective: str) -> dict[str, float]:
    wish, largest = OBJECTIVES[objective], max(llm["price"] for llm in _llms())
    return {
        llm["name"]: wish.quality * query.scores[llm["name"]] - wish.cost * llm["price"] / largest for llm in _llms()
    }


def _spread(utilities: Mapping[str, float]) -> float:
    return max(utilities.values()) - min(utilities.values())


def _prior(train: Sequence[Query], objective: str) -> dict[str, float]:
    """Mean utility of each LLM on the training queries."""
    rows = [_utilities(query, objective) for query in train]
    return {llm["name"]: sum(row[llm["name"]] for row in rows) / len(rows) for llm in _llms()}


def _problem(query: Query, objective: str, prior: Mapping[str, float], seed: int) -> Problem:
    qid = f"route-{objective}-{query.name}"
    rng = rng_for(seed, qid)
    pool = [Candidate(llm["name"], f"{llm['name']}, ${llm['price']:.2f}: {llm['text']}") for llm in _llms()]
    rng.shuffle(pool)
    return Problem(
        qid=qid,
        task=f"route-{objective}",
        scenario="routing",
        query=query.text,
        objective=rng.choice(words()["routing"]["objectives"][objective]),
        candidates=tuple(pool),
        gains=gains_of(_utilities(query, objective)),
        relevant_at=BEST_GAIN,
        prior=dict(prior),
        group=f"route-{query.name}",
    )
