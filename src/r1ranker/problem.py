"""The types that cross module boundaries. Read this first; next in the data flow is `prompts`.

A source file becomes a `Problem`: a context, a pool of candidates and what is known about them.
A ranker turns it into a `Ranking`, made of `Step`s and paid for in `Usage`.

    Problem(
        qid="q17", task="passage-5", scenario="passage", query="why is the sky blue",
        candidates=(Candidate("d1", "Shorter wavelengths scatter more ..."), Candidate("d2", ...), ...),
        gains={"d1": 3, "d4": 1}, prior={"d1": 9.1, "d2": 11.4, ...}, relevant_at=2, group="q17",
    )

Inside one problem a candidate is named by its *identifier*: its 1-based place in `candidates`. The
identifier never changes while candidates leave the pool, so `[7]` means one thing for a whole episode.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from r1ranker.errors import DataError
from r1ranker.scenarios import GENERAL, SCENARIOS, Scenario, unknown

LARGEST_GAIN = 1_000_000
"""trec_eval counts documents grade by grade, in time and memory that grow with the largest one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing that can be ranked: a passage, an item, an LLM.

    text: what it is; baselines read it too. note: what else the model reads behind it, such as other rankers'
        places (`baselines.notes`).
    """

    docid: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Problem:
    """One query with its pool.

    scenario: a name in `scenarios.SCENARIOS`; or any other, with an instruction or a wording.
    query: what is asked (passage, routing); a recommendation may leave it empty and fill `history`.
    history: titles the user has consumed, oldest first (recommendation).
    objective: what the asker cares for, as text the model reads (routing: quality, cost or both).
    instruction: what is wanted, in the user's own words; replaces the scenario's question where there is one.
    wording: the record of a scenario of the user's own, put here where problems are read.
    gains: relevance grade >= 0 by docid. May name docids outside the pool (they count in ideal
        rankings); a docid that is absent is unjudged and counts as 0.
    relevant_at: the lowest gain that counts as relevant in binary measures (MRR, hit@k).
    prior: score by docid of the simple prior: popularity in the training data, average utility of an
        LLM on training queries, or the first stage's score. The model reads its places only with `show`.
    group: the unit by which splits are made (a user, a query); defaults to `qid`.
    nothing_found: the first stage found no candidate for a judged query. Only then may the pool be empty: nothing is
        asked or ranked, and the query counts 0 in every measure.
    """

    qid: str
    task: str
    scenario: str
    candidates: tuple[Candidate, ...]
    query: str = ""
    history: tuple[str, ...] = ()
    objective: str = ""
    instruction: str = ""
    wording: Scenario | None = None
    gains: Mapping[str, int] = field(default_factory=dict)
    relevant_at: int = 1
    prior: Mapping[str, float] = field(default_factory=dict)
    group: str = ""
    nothing_found: bool = False

    def __post_init__(self) -> None:
        where = f"problem {self.qid!r} of task {self.task!r}"
        if not self.task:
            raise DataError(f"{where}: has no task; name the set that it belongs to")
        self._check_scenario(where)
        if self.nothing_found and self.candidates:
            raise DataError(f"{where}: nothing_found is for an empty pool, this one has candidates")
        if not (self.candidates or self.nothing_found):
            raise DataError(f"{where}: has no candidates; a pool needs at least one")
        _check_text(where, "query", (self.query, self.objective, self.instruction, *self.history))
        also = " and no history" if "history" in self.words.places else ""
        if not (self.query or (self.history and also)):
            raise DataError(f"{where}: has no query{also}; give the model a context")
        docids = [candidate.docid for candidate in self.candidates]
        _check_text(where, "name", (self.qid, self.task, *docids, *self.gains, *self.prior))
        if len(set(docids)) != len(docids):
            twice = min(docid for docid, times in Counter(docids).items() if times > 1)
            raise DataError(f"{where}: docid {twice!r} occurs more than once in the pool")
        self._check_numbers(where)
        if not self.group:
            object.__setattr__(self, "group", self.qid)

    def _check_scenario(self, where: str) -> None:
        ours = self.scenario in SCENARIOS
        if self.wording and ours:
            raise DataError(f"{where}: scenario {self.scenario!r} has wordings of ours; give yours another name")
        if not (ours or self.wording or self.instruction):
            raise DataError(f"{where}: {unknown(self.scenario)}")
        for place in ("history", "objective"):
            if getattr(self, place) and not (ours or place in self.words.places):
                raise DataError(
                    f"{where}: the model would not read its {place}; write {{{place}}} into the context of a record of "
                    f"scenario {self.scenario!r}"
                )

    def _check_numbers(self, where: str) -> None:
        if any(gain < 0 for gain in self.gains.values()):
            raise DataError(f"{where}: gains must be >= 0")
        if any(gain > LARGEST_GAIN for gain in self.gains.values()):
            raise DataError(f"{where}: gains must be <= {LARGEST_GAIN}; write grades, such as 0 to 3")
        if self.relevant_at < 1:
            raise DataError(f"{where}: relevant_at must be at least 1, else all that is unjudged would be relevant")
        if self.relevant_at > LARGEST_GAIN:
            raise DataError(f"{where}: relevant_at must be <= {LARGEST_GAIN}, the largest gain there is")
        if not all(abs(score) < math.inf for score in self.prior.values()):
            raise DataError(f"{where}: scores of the prior must be finite numbers")

    @property
    def words(self) -> Scenario:
        """The wordings of its prompts."""
        return self.wording or SCENARIOS.get(self.scenario, GENERAL)

    @property
    def identifiers(self) -> tuple[int, ...]:
        """Identifiers of the whole pool: 1..n."""
        return tuple(range(1, len(self.candidates) + 1))

    def candidate(self, identifier: int) -> Candidate:
        """The candidate that `[identifier]` names."""
        return self.candidates[identifier - 1]

    def gain(self, identifier: int) -> int:
        """Relevance grade of the candidate that `[identifier]` names (0 when unjudged)."""
        return self.gains.get(self.candidates[identifier - 1].docid, 0)

    def is_relevant(self, identifier: int) -> bool:
        """Whether the candidate counts as relevant in binary measures and in the paper's rewards."""
        return self.gain(identifier) >= self.relevant_at

    @property
    def trainable(self) -> bool:
        """Whether a ranking of it can be rewarded: there are two candidates and a relevant one."""
        return len(self.candidates) > 1 and any(map(self.is_relevant, self.identifiers))


def _check_text(where: str, what: str, values: Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, str):
            found = f"{value!r} is a {type(value).__name__}"
            raise DataError(f"{where}: {found}; a {what} is text, such as {str(value)!r}")


def name_fault(problem: Problem) -> str:
    """Why a run file cannot hold the problem's names, or "": its fields are split at whitespace, in UTF-8."""
    for name in (problem.qid, *(candidate.docid for candidate in problem.candidates)):
        if name.split() != [name]:
            rule = "is empty or has whitespace, which a run file cannot hold; rename it"
        elif any("\ud800" <= character <= "\udfff" for character in name):
            rule = "holds half a character, which a run file cannot hold; rename it"
        else:
            continue
        return f"qid or docid {name!r} of query {problem.qid!r} {rule}"
    return ""


def part_of(problem: Problem, pool: Sequence[int]) -> Problem:
    """A part of the pool as a problem of its own: candidates in the order given, identifiers counted anew."""
    candidates = tuple(problem.candidate(k) for k in pool)
    docids = {candidate.docid for candidate in candidates}
    return replace(
        problem,
        candidates=candidates,
        gains={docid: gain for docid, gain in problem.gains.items() if docid in docids},
        prior={docid: value for docid, value in problem.prior.items() if docid in docids},
    )


AnswerKind = Literal["valid", "unknown_id", "missing", "truncated", "malformed", "incomplete", "duplicate"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a completion said. `ids` are distinct identifiers of the pool, in the order named.

    kinds: valid; unknown_id (names one that is not in the pool); missing (no answer tag, or an empty
    one); truncated (cut by the token limit before the answer ended); malformed (an answer that is not
    in the stated form); and for rankings incomplete (some of the pool not named) and duplicate.
    """

    kind: AnswerKind
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a ranking cost. Tokens that a backend did not have to compute again are not in it.

    retries: calls over a network made again. cost: money, in the currency of the price file. cut: lists whose texts
    were cut to fit. cut_short: lists that a deadline ended, ordered by what was known then.
    """

    calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    retries: int = 0
    cost: float = 0.0
    cut: int = 0
    cut_short: int = 0

    @property
    def tokens(self) -> int:
        """Those read and those written."""
        return self.prompt_tokens + self.generated_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.generated_tokens + other.generated_tokens,
            self.seconds + other.seconds,
            self.retries + other.retries,
            self.cost + other.cost,
            self.cut + other.cut,
            self.cut_short + other.cut_short,
        )


@dataclass(frozen=True, slots=True)
class _Plain:
    """To pydantic, not loaded here: a field that may be a view (`ranking.luce`) is read and written as this."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        written = core_schema.plain_serializer_function_ser_schema(
            self.kind, return_schema=handler.generate_schema(self.kind)
        )
        return core_schema.no_info_after_validator_function(self.kind, handler(source), serialization=written)


Pool = Annotated[Sequence[int], _Plain(tuple[int, ...])]
Probabilities = Annotated[Mapping[int, float], _Plain(dict[int, float])]


@dataclass(frozen=True, slots=True)
class Step:
    """One model call and what followed. `pool` is what the model saw, `removed` what left the pool.

    A DRanker has a single step that removes nothing. `probabilities` are the model's, by identifier, where the answer
    was chosen without a thought: of being named in this step; for a list, of being the best of the pool.
    """

    pool: Pool
    answer: Answer
    removed: tuple[int, ...] = ()
    thought: str = ""
    completion: str = ""
    probabilities: Probabilities = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The whole pool, best first. `scores` strictly decrease, so a run file keeps this order.

    error: why there is none, when a call failed for good; then `docids` is empty.
    """

    qid: str
    docids: tuple[str, ...]
    scores: tuple[float, ...]
    steps: tuple[Step, ...] = ()
    usage: Usage = Usage()
    error: str = ""

    @property
    def broken(self) -> int:
        """Number of steps whose answer was not valid."""
        return sum(step.answer.kind != "valid" for step in self.steps)


Splits = dict[str, list[Problem]]
"""Problems by split name: train, dev, test. No group stands in two of them."""


def by_task(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """Problems by task, tasks in order of first appearance."""
    tasks: dict[str, list[Problem]] = {}
    for problem in problems:
        tasks.setdefault(problem.task, []).append(problem)
    return tasks


def scenario_names(problems: Iterable[Problem]) -> list[str]:
    """Names of the scenarios that problems are of, ours first."""
    found = dict.fromkeys(problem.scenario for problem in problems)
    return [*(name for name in SCENARIOS if name in found), *(name for name in found if name not in SCENARIOS)]


def first_by_task(problems: Sequence[Problem], count: int | None) -> list[Problem]:
    """The first `count` problems of each task (None: all), one task after the other."""
    return [problem for of_task in by_task(problems).values() for problem in of_task[:count]]


def rng_for(*parts: object) -> random.Random:
    """A generator seeded by the text of `parts`: the same in every process and on every machine."""
    return random.Random(":".join(map(str, parts)))
