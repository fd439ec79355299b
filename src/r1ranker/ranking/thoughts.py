"""Thoughts kept for later (paper, Thought templates). In: rankings of training problems. Out: advice for a query.

    write_thoughts(recorded(problems, ranker.rank_many(problems)), path)
    Advised(IRanker(untrained), advisor(read_thoughts(path)))

One line of the file is one step of an elimination:

    {"query": "how long do barn owls live", "task": "passage-5", "thought": "[2] tells of its food ...",
     "removed": "d17", "kind": "valid", "reward": 1.0}

A thought is shown only if its answer was valid and earned `FULL_REWARD`; of those on one query the last, which chose
from the smallest pool. `prompts.with_advice` puts it before the prompt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from r1ranker.errors import BackendError, DataError
from r1ranker.io.bm25 import query_of, scorer
from r1ranker.io.documents import read_json_lines
from r1ranker.io.text import cut
from r1ranker.problem import AnswerKind, Problem, Ranking, rng_for
from r1ranker.prompts import Wanted
from r1ranker.rewards import score_removal

FULL_REWARD = 1.0
"""Form right, and what was removed as irrelevant as anything left."""
SHOWN = 3
"""Thoughts before a prompt."""
LONGEST = 600
"""Characters of a thought that are shown."""

Advisor = Callable[[Problem], list[str]]
Scorer = Callable[[Problem], Sequence[float]]
"""How similar a problem is to each query that was given."""


@dataclass(frozen=True, slots=True)
class Thought:
    """One step of a training problem. removed: the docid that left the pool. reward: its total, see `rewards`."""

    query: str
    task: str
    thought: str
    removed: str
    kind: AnswerKind
    reward: float


_THOUGHT = TypeAdapter(Thought)


def recorded(
    problems: Sequence[Problem], rankings: Sequence[Ranking], reward: str = "paper", ask: Wanted = "worst"
) -> Iterator[Thought]:
    """Every step of eliminations, or of selections where the best was asked for, rewarded by the kind `reward`.

    Steps after the last relevant candidate has left are no training states and nothing can be learned from them.
    """
    for problem, ranking in zip(problems, rankings, strict=True):
        for step in ranking.steps:
            if step.removed and any(map(problem.is_relevant, step.pool)):
                earned = score_removal(step.completion, step.answer, problem, step.pool, reward, ask).total
                removed = problem.candidate(step.removed[0]).docid
                yield Thought(query_of(problem), problem.task, step.thought, removed, step.answer.kind, earned)


def write_thoughts(thoughts: Iterable[Thought], path: Path) -> None:
    """Write JSON Lines that `read_thoughts` reads."""
    lines = (json.dumps(dataclasses.asdict(thought), ensure_ascii=False) for thought in thoughts)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_thoughts(path: Path) -> list[Thought]:
    """The thoughts of a file. Raises DataError naming file and line."""
    try:
        return [_parsed(record, f"{path}:{number}") for number, record in read_json_lines(path)]
    except DataError as error:
        raise DataError(f"cannot read the thoughts in {path}: {error}; record some first") from error


def _parsed(record: dict[str, Any], where: str) -> Thought:
    try:
        return _THOUGHT.validate_python(record)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the line"
        raise DataError(f"{where}: {key}: {first['msg']}; write_thoughts has the form") from error


def worth_showing(thoughts: Iterable[Thought]) -> list[Thought]:
    """Of each query the last thought whose answer was valid and earned all."""
    good = (t for t in thoughts if t.thought and t.kind == "valid" and t.reward >= FULL_REWARD)
    return list({(thought.task, thought.query): thought for thought in good}.values())


def advisor(thoughts: Iterable[Thought], recall: str | None = None) -> Advisor:
    """Finds the `SHOWN` thoughts of a problem's own task that are nearest to it, nearest first.

    recall: None finds them by BM25; `random` draws them, as a control; anything else is the name or directory of a
    sentence-transformers model. A task without thoughts gets none.
    """
    by_task: dict[str, list[Thought]] = {}
    for thought in worth_showing(thoughts):
        by_task.setdefault(thought.task, []).append(thought)
    queries = {task: [thought.query for thought in known] for task, known in by_task.items()}
    scorers = _scorers(queries, recall)

    def advise(problem: Problem) -> list[str]:
        if problem.task not in by_task:
            return []
        known, scores = by_task[problem.task], scorers[problem.task](problem)
        nearest = sorted(range(len(known)), key=lambda i: -scores[i])[:SHOWN]
        return [cut(known[i].thought, LONGEST) for i in nearest]

    return advise


def _scorers(queries: dict[str, list[str]], recall: str | None) -> dict[str, Scorer]:
    if recall is None:
        return {task: _bm25(of_task) for task, of_task in queries.items()}
    if recall == "random":
        return {task: _at_random(len(of_task)) for task, of_task in queries.items()}
    from r1ranker.backends.encoders import load

    try:
        model = load("SentenceTransformer", recall)
    except BackendError as error:
        raise BackendError(f"recall={recall}: {error}; or leave recall out for BM25") from error
    return {task: _dense(of_task, model) for task, of_task in queries.items()}


def _at_random(count: int) -> Scorer:
    def scores(problem: Problem) -> list[float]:
        rng = rng_for("thoughts", problem.task, problem.qid)
        return [rng.random() for _ in range(count)]

    return scores


def _bm25(queries: list[str]) -> Scorer:
    scores = scorer(queries)
    return lambda problem: next(scores([query_of(problem)]))


def _dense(queries: list[str], model: Any) -> Scorer:
    known_N_H = model.encode(queries, normalize_embeddings=True, show_progress_bar=False)

    def scores(problem: Problem) -> Sequence[float]:
        asked_H = model.encode(query_of(problem), normalize_embeddings=True, show_progress_bar=False)
        found: Sequence[float] = known_N_H @ asked_H
        return found

    return scores
