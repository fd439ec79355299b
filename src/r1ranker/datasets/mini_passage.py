"""passage-5, passage-7, passage-9 of the embedded tasks: which passage answers the question?

A question asks for one attribute of one entity ("how long do barn owls live"). The pool holds

- one passage on that entity and attribute, mostly in words the question lacks (gain 3);
- passages on the same entity and another attribute (gain 1);
- passages on another entity and the same attribute, mostly repeating the question's words;
- passages on something else.

So shared words deceive, while knowing the entity and which words mean the same solves it. A pair of entity
and attribute stands in one split; each entity and each attribute of dev and test also occurs in train.
`prior` is what a first stage would give: shared words weighted by their rarity in train, with some noise.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from r1ranker.datasets.common import SPLIT_NAMES
from r1ranker.datasets.mini_words import words
from r1ranker.problem import Candidate, Problem, Splits, rng_for

MIXES = {5: (2, 1, 1), 7: (2, 3, 1), 9: (3, 3, 2)}
"""By pool size: passages on the same entity, on the same attribute, on neither."""
TASKS = tuple(f"passage-{size}" for size in MIXES)
ECHO = {"answer": 0.25, "entity": 0.4, "attribute": 0.7, "neither": 0.4}
"""Chance that a passage uses the wording of the questions, by its part in the pool."""
NOISE = 3.0
"""Standard deviation of the noise of the prior."""
LEAST_WORDS, MOST_WORDS = 12, 20
"""Length of a passage."""
KEPT = 2
"""Least number of attributes of an entity that stay in train."""


@dataclass(frozen=True, slots=True, order=True)
class Fact:
    """An entity's attribute: what a question asks for and a passage tells."""

    kind: str
    entity: str
    attribute: str

    @property
    def name(self) -> str:
        return f"{self.entity.replace(' ', '-')}-{self.attribute}".lower()


def build(seed: int, sizes: Mapping[str, int]) -> Splits:
    """Problems of the three sizes; a fact, and so its questions, stands in the same split for all."""
    sides = _split(facts(), seed, sizes)
    splits: Splits = {split: [] for split in SPLIT_NAMES}
    for size in MIXES:
        for split, members in sides.items():
            rounds = ((fact, number) for number in range(sizes[split]) for fact in members)
            splits[split] += [_problem(size, fact, number, seed) for fact, number in islice(rounds, sizes[split])]
    return _with_prior(splits, seed)


@cache
def facts() -> tuple[Fact, ...]:
    """Every pair of an entity and an attribute of its kind."""
    return tuple(
        Fact(kind, entity, attribute)
        for kind, source in words()["passage"]["kinds"].items()
        for entity in source["entities"]
        for attribute in source["attributes"]
    )


@cache
def _apart(fact: Fact) -> tuple[Fact, ...]:
    """Facts on another entity and another attribute."""
    same = (fact.kind, fact.attribute)
    return tuple(f for f in facts() if f.entity != fact.entity and (f.kind, f.attribute) != same)


def _split(every: Sequence[Fact], seed: int, sizes: Mapping[str, int]) -> dict[str, list[Fact]]:
    """Facts by split: one for each problem of dev and test, all others in train."""
    shuffled = rng_for(seed, "facts").sample(every, len(every))
    left = Counter(fact.entity for fact in every)
    held: list[Fact] = []
    for fact in shuffled:
        if len(held) < sizes["dev"] + sizes["test"] and left[fact.entity] > KEPT:
            left[fact.entity] -= 1
            held.append(fact)
    taken = set(held)
    train = [fact for fact in shuffled if fact not in taken]
    return {"train": train, "dev": held[: sizes["dev"]], "test": held[sizes["dev"] :]}


def _problem(size: int, fact: Fact, number: int, seed: int) -> Problem:
    """The problem with the question of that number on `fact`, still without a prior."""
    qid = f"passage-{size}-{fact.name}-{number}"
    rng = rng_for(seed, qid)
    asks = words()["passage"]["kinds"][fact.kind]["attributes"][fact.attribute]["ask"]
    order = rng_for(seed, "asks", fact.name).sample(asks, len(asks))
    told = [(fact, 3, "answer"), *_others(fact, MIXES[size], rng)]
    rng.shuffle(told)
    pool = [(Candidate(f"{qid}-{k}", _passage(about, part, rng)), gain) for k, (about, gain, part) in enumerate(told)]
    return Problem(
        qid=qid,
        task=f"passage-{size}",
        scenario="passage",
        query=_fill(order[number % len(order)], fact.entity),
        candidates=tuple(candidate for candidate, _ in pool),
        gains={candidate.docid: gain for candidate, gain in pool},
        relevant_at=3,
        group=fact.name,
    )


def _others(fact: Fact, mix: tuple[int, int, int], rng: random.Random) -> list[tuple[Fact, int, str]]:
    """The rest of the pool: facts with their gain and their part in the pool."""
    source = words()["passage"]["kinds"][fact.kind]
    attributes = [name for name in source["attributes"] if name != fact.attribute]
    entities = [name for name in source["entities"] if name != fact.entity]
    same_entity = [Fact(fact.kind, fact.entity, name) for name in rng.sample(attributes, mix[0])]
    same_attribute = [Fact(fact.kind, name, fact.attribute) for name in rng.sample(entities, mix[1])]
    return [
        *((other, 1, "entity") for other in same_entity),
        *((other, 0, "attribute") for other in same_attribute),
        *((other, 0, "neither") for other in rng.sample(_apart(fact), mix[2])),
    ]


def _passage(fact: Fact, part: str, rng: random.Random) -> str:
    """A passage that tells `fact`, mostly between phrases that say nothing."""
    source: Mapping[str, Any] = words()["passage"]
    wording = source["kinds"][fact.kind]["attributes"][fact.attribute]
    pattern = rng.choice(wording["echo" if rng.random() < ECHO[part] else "own"])
    core = _fill(pattern, fact.entity, rng.choice(wording["values"]))
    text = ""
    while not LEAST_WORDS <= len(text.split()) <= MOST_WORDS:
        lead, tail = rng.choice(source["leads"]), rng.choice(source["tails"])
        joined = f"{lead} {core[0].lower()}{core[1:]}"
        text = rng.choice((core, joined, f"{core}, {tail}", f"{joined}, {tail}"))
    return f"{text}."


def _fill(pattern: str, entity: str, value: str = "") -> str:
    """The pattern with {e} the entity, {s} its plural and {v} the value; "a" becomes "an" where due."""
    if entity[0] in "aeio":
        pattern = re.sub(r"\b([Aa]) \{e\}", r"\1n {e}", pattern)
    return pattern.format(e=entity, s=_plural(entity), v=value)


def _plural(noun: str) -> str:
    if noun.endswith(("x", "sh", "s")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def _terms(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def _rarity(problems: Iterable[Problem]) -> dict[str, float]:
    """Weight of each word by how few passages of `problems` hold it."""
    passages = [_terms(candidate.text) for problem in problems for candidate in problem.candidates]
    counts = Counter(term for passage in passages for term in passage)
    return {term: math.log(1 + len(passages) / count) for term, count in counts.items()}


def _with_prior(splits: Splits, seed: int) -> Splits:
    rarity = _rarity(splits["train"])
    return {split: [_scored(problem, rarity, seed) for problem in problems] for split, problems in splits.items()}


def _scored(problem: Problem, rarity: Mapping[str, float], seed: int) -> Problem:
    rng = rng_for(seed, "prior", problem.qid)
    asked = _terms(problem.query)
    prior = {
        candidate.docid: sum(rarity.get(term, 0.0) for term in sorted(asked & _terms(candidate.text)))
        + rng.gauss(0.0, NOISE)
        for candidate in problem.candidates
    }
    return dataclasses.replace(problem, prior=prior)
