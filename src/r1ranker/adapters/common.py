"""What all adapters share. In: queries with their texts. Out: places in them with scores, best first.

    order(ranker_of("smol"), "how long do barn owls live", ["A tractor ...", "A barn owl ..."])  # [(1, 0.8), (0, 0.2)]

Scores are in (0, 1] and strictly fall: they compare the texts of one query, and are no calibrated probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

from r1ranker.errors import BackendError, ConfigError, DataError
from r1ranker.problem import Candidate, Problem
from r1ranker.ranking.ranked import answered
from r1ranker.ranking.rankers import First, Ranker
from r1ranker.ranking.scores import scores
from r1ranker.ranking.spec import RankerSpec

Placed = tuple[int, float]
"""A text's place among those given, from 0, and its score."""


def ranker_of(ranker: Ranker | RankerSpec | str) -> Ranker:
    """The ranker itself, or the one that a spec or a model's name stands for, loaded."""
    if isinstance(ranker, Ranker):
        return ranker
    return (RankerSpec(model=ranker) if isinstance(ranker, str) else ranker).build()


def order(ranker: Ranker, query: str, texts: Sequence[str], top_n: int | None = None) -> list[Placed]:
    """Texts best first, the best `top_n` of them (None: all)."""
    return orders(ranker, [(query, texts)], top_n)[0]


def orders(
    ranker: Ranker, queries: Sequence[tuple[str, Sequence[str]]], top_n: int | None = None
) -> list[list[Placed]]:
    """The texts of each query best first, all queries ranked together; no texts, no places.

    Raises DataError for a blank query or a text that is none, BackendError where one query's ranking failed.
    """
    if top_n is not None and top_n < 1:
        raise ConfigError(f"the best {top_n} are none: give 1 or more, or None for all")
    problems = [_problem(place, query, texts) for place, (query, texts) in enumerate(queries) if len(texts)]
    asked = First(ranker, top_n) if top_n else ranker  # what is thrown away is not paid for
    placed = dict(zip((problem.qid for problem in problems), places(asked, problems), strict=True))
    return [placed.get(str(place), [])[:top_n] for place in range(len(queries))]


def places(ranker: Ranker, problems: Sequence[Problem]) -> list[list[Placed]]:
    """Of each problem the candidates' places, best first. Raises BackendError where one ranking failed."""
    rankings = map(answered, ranker.rank_many(problems))
    found = []
    for problem, ranking in zip(problems, rankings, strict=True):
        if ranking.error:
            raise BackendError(f"query {problem.query[:80]!r} could not be ranked: {ranking.error}")
        place = {candidate.docid: at for at, candidate in enumerate(problem.candidates)}
        falling = scores(problem, ranking)
        found.append([(place[docid], score) for docid, score in zip(ranking.docids, falling, strict=True)])
    return found


def _problem(place: int, query: str, texts: Sequence[str]) -> Problem:
    if not isinstance(query, str) or not query.strip():
        raise DataError(f"query {place} is {query!r}: give a text to rank for")
    bad = next((at for at, text in enumerate(texts) if not isinstance(text, str)), None)
    if bad is not None:
        raise DataError(f"text {bad} of query {query[:80]!r} is {texts[bad]!r}: only texts can be ranked")
    candidates = tuple(Candidate(str(at), text) for at, text in enumerate(texts))
    return Problem(str(place), "adapter", "passage", candidates, query)
