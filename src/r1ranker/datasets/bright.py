"""BRIGHT, retrieval that needs reasoning: the files of the Hugging Face hub, `xlangai/BRIGHT`, as they are there.

    load(Path("BRIGHT"), domains=["biology"], instruction="Which passage helps to work out an answer?")

A folder holds `documents/DOMAIN-*` (id, content) and `examples/DOMAIN-*` (id, query, gold_ids, excluded_ids), parquet
or JSON Lines. Each domain is a task, `bright-DOMAIN`, and all of it is test. Identifiers of queries are numbers that
every domain begins anew, so they are named `DOMAIN-ID`. What is excluded for a query is never among its candidates and
never judged (the grade -100 of ir_datasets, see `trec`). The first stage is BM25 over a domain's documents, or a run.
The dataset's `reasoning` is not read: it was written with the answer at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from r1ranker.datasets import trec
from r1ranker.datasets.collection import Document
from r1ranker.datasets.common import Source, check_sizes, limit_per_task
from r1ranker.datasets.first_stage import EXCLUDED, collected, scores_of
from r1ranker.datasets.rankllm import spaced
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.documents import identifier_of, read_json_lines, text_of
from r1ranker.io.parquet import read_rows
from r1ranker.io.text import MissingFileError, bare, list_files
from r1ranker.problem import Problem, Splits

COLUMNS = {"documents": ("id", "content"), "examples": ("id", "query", "gold_ids", "excluded_ids")}
NONE = "N/A"
"""What stands in `excluded_ids` where nothing is excluded."""


def load(
    path: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    domains: Sequence[str] = (),
    top_k: int = 100,
    max_chars: int | None = None,
    run: Path | None = None,
    instruction: str = "",
) -> Splits:
    """One test problem for each query: the best `top_k` of the first stage, texts cut to `max_chars`.

    domains: those wanted; none is all whose examples are there. run: a first stage for one domain, by its own
    identifiers. instruction: what is wanted, in place of the question that passages have.
    """
    check_sizes(top_k=top_k, max_chars=max_chars)
    names = list(domains) or sorted({_domain(file) for file in _files(path, "examples")})
    if run is not None and len(names) != 1:
        raise ConfigError(f"run is a first stage for one domain: name it by the option domains; here are {names}")
    found = [problem for name in names for problem in _problems(path, name, top_k, max_chars, run)]
    test = [replace(problem, instruction=instruction) for problem in found]
    return limit_per_task({"train": [], "dev": [], "test": test}, limit, seed)


def _problems(path: Path, domain: str, top_k: int, max_chars: int | None, run: Path | None) -> list[Problem]:
    examples = list(_rows(path, "examples", domain))
    queries: dict[str, str] = {}
    for row in examples:
        query = spaced(text_of(row["query"], "the query"))
        if queries.setdefault(row["id"], query) != query:
            raise DataError(f"{path}: query {row['id']!r} of {domain} stands twice, with unequal texts")
    grades = {row["id"]: _grades(row) for row in examples}
    documents: dict[str, Document] = {}
    for row in _rows(path, "documents", domain):
        document = Document("", spaced(text_of(row["content"], "the content")))
        if documents.setdefault(row["id"], document) != document:
            raise DataError(f"{path}: document {row['id']!r} of {domain} stands twice, with unequal texts")

    def texts(ids: set[str]) -> Mapping[str, Document]:
        return documents

    first = scores_of(run) if run is not None else None
    requests = collected(grades, queries, first, texts, top_k)
    judged = trec.Judged(f"bright-{domain}", "test", grades)
    problems = [trec.problem_of(r, judged, top_k, 1, max_chars) for r in trec.ready(judged, requests)]
    return [replace(p, qid=f"{domain}-{p.qid}", group=f"{domain}-{p.qid}") for p in problems]


def _grades(row: Mapping[str, Any]) -> dict[str, int]:
    gold = {_name(docid): 1 for docid in row["gold_ids"] or ()}
    excluded = [docid for docid in row["excluded_ids"] or () if docid not in (None, NONE)]
    return gold | {_name(docid): EXCLUDED for docid in excluded}


def _rows(path: Path, kind: str, domain: str) -> Iterator[dict[str, Any]]:
    """The rows of a domain's files, identifiers as text."""
    files = [file for file in _files(path, kind) if _domain(file) == domain]
    if not files:
        there = ", ".join(sorted({_domain(file) for file in _files(path, kind)}))
        raise MissingFileError(f"{path}: has no {kind}/{domain}-*; there are {there}")
    for file in files:
        plain = bare(file.name).endswith(".jsonl")
        rows = (row for _, row in read_json_lines(file)) if plain else read_rows(file, COLUMNS[kind])
        for row in rows:
            if lacking := [column for column in COLUMNS[kind] if column not in row]:
                raise DataError(f"{file}: a row has no field {lacking[0]!r}")
            yield {**row, "id": _name(row["id"])}


def _files(path: Path, kind: str) -> list[Path]:
    if not (path / kind).is_dir():
        raise MissingFileError(f"{path}: has no folder {kind}")
    return list_files(path / kind, "*.parquet", "*.jsonl")


def _domain(file: Path) -> str:
    """`earth_science-00000-of-00001.parquet` is of earth_science."""
    return file.name.partition(".")[0].partition("-")[0]


def _name(identifier: object) -> str:
    """An identifier as a run file can hold it, without white space."""
    return "_".join(identifier_of(identifier, "an identifier").split())


SOURCE = Source(
    load=load,
    description="BRIGHT: passages that help to reason out an answer, 12 domains; to test on",
    layout="documents/DOMAIN-*.parquet, examples/DOMAIN-*.parquet (or .jsonl)",
    licence="CC BY 4.0",
    citation="Su et al., BRIGHT, ICLR 2025, arXiv 2407.12883",
    download="https://huggingface.co/datasets/xlangai/BRIGHT",
)
