"""rank_llm requests with TREC qrels: a directory with any number of `*.json` and `qrels*` files.

    [{"query": "how long is life cycle of flea",
      "hits": [{"content": "...", "qid": 264014, "docid": "5611210", "rank": 1, "score": 15.78}, ...]}, ...]
    264014 Q0 5611210 2

The newer form `{"query": {"text", "qid"}, "candidates": [{"docid", "score", "doc": {"contents"}}]}` is read
too. Only judged queries with a relevant passage count. Tasks: `passage-bm25` is a query's whole first stage
in its own order with all its qrels; `passage-5`, `-7`, `-9` are pools of one relevant passage and others of
the first stage that are not relevant, cut to `max_chars` in all.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1ranker.datasets.common import (
    SPLIT_NAMES,
    MissingFileError,
    Source,
    cut_pool,
    limit_per_task,
    rng_for,
    split_groups,
)
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Candidate, Problem, Splits

log = logging.getLogger(__name__)

POOL_SIZES = {"passage-5": 5, "passage-7": 7, "passage-9": 9}
TOP_K = "passage-bm25"
TEXT_KEYS = ("contents", "content", "text", "segment", "body", "passage")
TASKS = (*POOL_SIZES, TOP_K)


@dataclass(frozen=True, slots=True)
class Hit:
    docid: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Request:
    """A query with its first stage, best first."""

    qid: str
    query: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class _Settings:
    seed: int
    relevant_at: int
    top_k: int
    pools_per_query: int
    eval_pools_per_query: int
    max_chars: int


def load(
    path: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    tasks: Sequence[str] = TASKS,
    relevant_at: int = 2,
    top_k: int = 100,
    pools_per_query: int = 8,
    eval_pools_per_query: int = 4,
    max_chars: int = 2600,
) -> Splits:
    """Problems of the chosen `tasks`, split by query; `pools_per_query` is for training queries."""
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ConfigError(f"tasks: {unknown[0]!r} is not one of {', '.join(TASKS)}")
    settings = _Settings(seed, relevant_at, top_k, pools_per_query, eval_pools_per_query, max_chars)
    qrels = read_qrels(path)
    requests = read_requests(path)
    judged = [r for r in requests if max(qrels.get(r.qid, {}).values(), default=0) >= relevant_at]
    if len(judged) < len(requests):
        log.info("%d of %d queries have no relevant judgement", len(requests) - len(judged), len(requests))
    if not judged:
        raise DataError(f"{path}: no query is judged >= {relevant_at}; do the qrels belong to the requests?")
    side = split_groups((request.qid for request in judged), seed)
    splits: Splits = {split: [] for split in SPLIT_NAMES}
    for task in tasks:
        for request in judged:
            split = side[request.qid]
            splits[split] += _problems(request, qrels[request.qid], task, split, settings)
    return limit_per_task(splits, limit, seed)


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Grade by query and document from every `qrels*` file; negative grades (junk, spam) become 0."""
    files = sorted(file for file in path.glob("qrels*") if file.is_file())
    if not files:
        raise MissingFileError(f"{path}: has no qrels* file")
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
            fields = line.split()
            if not fields:
                continue
            try:
                qid, _, docid, grade = fields
                qrels[qid][docid] = max(0, int(grade))
            except ValueError:
                raise DataError(f"{file}:{number}: expected 'qid 0 docid grade', found {line!r}") from None
    return dict(qrels)


def read_requests(path: Path) -> list[Request]:
    """Requests of every `*.json` file with hits; of several for one query the first file's is kept."""
    requests: dict[str, Request] = {}
    for file in sorted(path.glob("*.json")):
        for request in _requests(file):
            requests.setdefault(request.qid, request)
    if not requests:
        raise MissingFileError(f"{path}: has no .json file with requests")
    return list(requests.values())


def _requests(file: Path) -> Iterator[Request]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        found = (entry.get("hits") or entry.get("candidates")) if isinstance(entry, dict) else None
        if not found:
            continue
        try:
            query = entry["query"]
            text, qid = (query["text"], query["qid"]) if isinstance(query, dict) else (query, found[0]["qid"])
            hits = {hit.docid: hit for hit in map(_hit, found)}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: request {number}: lacks or misplaces {error}") from error
        yield Request(str(qid), str(text), tuple(sorted(hits.values(), key=lambda hit: -hit.score)))


def _hit(hit: Mapping[str, Any]) -> Hit:
    text = hit.get("content")
    if text is None:
        doc = hit["doc"]
        key = next((name for name in TEXT_KEYS if name in doc), "contents")
        text = f"{doc.get('title') or ''} {doc[key]}"
    return Hit(str(hit["docid"]), " ".join(str(text).split()), float(hit["score"]))


def _problems(
    request: Request, grades: Mapping[str, int], task: str, split: str, settings: _Settings
) -> Iterator[Problem]:
    if task == TOP_K:
        top = request.hits[: settings.top_k]
        texts = [hit.text for hit in top]
        yield _problem(request, request.qid, task, top, texts, grades, settings.relevant_at)
        return
    count = settings.pools_per_query if split == "train" else settings.eval_pools_per_query
    for number, hits in enumerate(_pools(request, grades, POOL_SIZES[task], count, settings)):
        qid = f"{request.qid}:{POOL_SIZES[task]}:{number}"
        inside = {hit.docid: grades[hit.docid] for hit in hits if hit.docid in grades}
        texts = cut_pool([hit.text for hit in hits], settings.max_chars)
        yield _problem(request, qid, task, hits, texts, inside, settings.relevant_at)


def _pools(
    request: Request, grades: Mapping[str, int], size: int, count: int, settings: _Settings
) -> Iterator[list[Hit]]:
    """Pools of one relevant passage, distinct ones first, and `size` - 1 that are not relevant."""
    rng = rng_for(settings.seed, request.qid, size)
    top = request.hits[: settings.top_k]
    positives = [hit for hit in top if grades.get(hit.docid, 0) >= settings.relevant_at]
    barred = {hit.text for hit in positives}
    # By text: the collection repeats passages, and a copy of the positive must not count as a negative.
    others = list({h.text: h for h in top if h.text not in barred}.values())
    if not positives or len(others) < size - 1:
        return
    rng.shuffle(positives)
    for number in range(count):
        pool = [positives[number % len(positives)], *rng.sample(others, size - 1)]
        rng.shuffle(pool)
        yield pool


def _problem(
    request: Request,
    qid: str,
    task: str,
    hits: Sequence[Hit],
    texts: Sequence[str],
    gains: Mapping[str, int],
    relevant_at: int,
) -> Problem:
    return Problem(
        qid=qid,
        task=task,
        scenario="passage",
        query=request.query,
        candidates=tuple(Candidate(hit.docid, text) for hit, text in zip(hits, texts, strict=True)),
        gains=dict(gains),
        relevant_at=relevant_at,
        prior={hit.docid: hit.score for hit in hits},
        group=request.qid,
    )


SOURCE = Source(
    load=load,
    description="passage-5, passage-7, passage-9, passage-bm25: first-stage results with TREC qrels",
    layout="*.json (rank_llm requests with text) and qrels* (four columns)",
    licence="MS MARCO: non-commercial research; rank_llm: Apache-2.0",
    citation="Craswell et al., TREC Deep Learning Track; Pradeep et al., RankZephyr, 2023",
    download="https://github.com/castorini/rank_llm and https://trec.nist.gov/data/deep.html",
)
