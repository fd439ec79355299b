"""A ranking to look at. In: a `Problem` and its `Ranking`. Out: hits in order, a table for a terminal or a notebook.

ranked = Ranked.of(problem, ranking)
for hit in ranked: print(hit.rank, hit.docid, hit.score, hit.text)
pandas.DataFrame(ranked)    # a row for each hit
print(ranked)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import overload

from r1ranker.problem import Problem, Ranking
from r1ranker.ranking.scores import scores

WIDTH = 100
"""Characters of a text in a table on a terminal."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A candidate in its place. rank: from 1. index: its place among those given, from 0. score: see `scores`."""

    rank: int
    docid: str
    text: str
    score: float
    index: int


@dataclass(frozen=True)
class Ranked(Sequence[Hit]):
    """A query's candidates, best first. `problem` and `ranking` hold all that is known: steps, thoughts, cost."""

    problem: Problem
    ranking: Ranking
    hits: tuple[Hit, ...]

    @classmethod
    def of(cls, problem: Problem, ranking: Ranking, top_k: int | None = None) -> Ranked:
        """The best `top_k` (None: all) with texts and scores."""
        places = {candidate.docid: place for place, candidate in enumerate(problem.candidates)}
        scored = zip(ranking.docids, scores(problem, ranking), strict=True)
        hits = (
            Hit(rank, docid, problem.candidates[places[docid]].text, score, places[docid])
            for rank, (docid, score) in enumerate(scored, start=1)
        )
        return cls(problem, ranking, tuple(hits)[:top_k])

    @property
    def docids(self) -> tuple[str, ...]:
        """Of the hits, in order."""
        return tuple(hit.docid for hit in self.hits)

    @property
    def texts(self) -> tuple[str, ...]:
        """Of the hits, in order."""
        return tuple(hit.text for hit in self.hits)

    @property
    def scores(self) -> tuple[float, ...]:
        """Of the hits, in order."""
        return tuple(hit.score for hit in self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @overload
    def __getitem__(self, place: int) -> Hit: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, place: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[place]

    def __repr__(self) -> str:
        said = f"failed: {self.ranking.error}" if self.ranking.error else " ".join(self.docids)
        return f"<Ranked {self.problem.qid}: {said}>"

    def __str__(self) -> str:
        wide = max(len("docid"), *(len(hit.docid) for hit in self.hits), 0)
        rows = (f"{hit.rank:>4}  {hit.score:.3f}  {hit.docid:<{wide}}  {_short(hit.text)}" for hit in self.hits)
        return "\n".join([f"{'rank':>4}  score  {'docid':<{wide}}  text", *rows])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = "".join(
            f"<tr><td>{hit.rank}</td><td>{hit.score:.3f}</td><td>{escape(hit.docid)}</td>"
            f'<td style="text-align:left">{escape(hit.text)}</td></tr>'
            for hit in self.hits
        )
        head = "".join(f"<th>{name}</th>" for name in ("rank", "score", "docid", "text"))
        asked = escape(self.problem.query or " · ".join(self.problem.history))
        return f"<table><caption>{asked}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def answered(ranking: Ranking) -> Ranking:
    """The ranking; where no answer of the model could be read, the order is none of its own, and so it has failed."""
    if not ranking.steps or ranking.broken < len(ranking.steps):
        return ranking
    why = f"none of {ranking.broken} answers of the model could be read; more max_new_tokens, or think=False, may help"
    return replace(ranking, docids=(), scores=(), steps=(), error=why)
