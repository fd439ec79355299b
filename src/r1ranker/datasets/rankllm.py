"""rank_llm requests with TREC qrels: a directory with any number of `*.json`, `*.jsonl` and `qrels*` files.

    [{"query": "how long is life cycle of flea",
      "hits": [{"content": "...", "qid": 264014, "docid": "5611210", "rank": 1, "score": 15.78}, ...]}, ...]
    264014 Q0 5611210 2

The newer form `{"query": {"text", "qid"}, "candidates": [{"docid", "score", "doc": {"contents"}}]}` is read
too. A file holds one request, a list of them, or one a line. Only judged queries with a relevant passage and a hit
count; of a document that was found twice the best place does. Tasks: `passage-bm25` is a query's whole first stage
in its own order with all its qrels; `passage-5`, `-7`, `-9` are pools of one relevant passage and others of
the first stage that are not relevant, cut to `max_chars` in all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from r1ranker.datasets.common import SPLIT_NAMES, Source, check_sizes, cut_pool, limit_per_task, split_groups
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.documents import identifier_of, parse_json, read_json_lines, text_of
from r1ranker.io.qrels import Grades
from r1ranker.io.qrels import read_qrels as read_file
from r1ranker.io.text import MissingFileError, bare, finite, list_files, read_text
from r1ranker.problem import Candidate, Problem, Splits, rng_for

log = logging.getLogger(__name__)

POOL_SIZES = {"passage-5": 5, "passage-7": 7, "passage-9": 9}
TOP_K = "passage-bm25"
TEXT_KEYS = ("contents", "content", "text", "segment", "body", "passage")
TASKS = (*POOL_SIZES, TOP_K)


@dataclass(frozen=True, slots=True)
class Hit:
    docid: str
    body: str
    score: float
    title: str = ""

    @property
    def text(self) -> str:
        """What the model reads."""
        return f"{self.title} {self.body}".strip()


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
    check_sizes(top_k=top_k, max_chars=max_chars, relevant_at=relevant_at)
    settings = _Settings(seed, relevant_at, top_k, pools_per_query, eval_pools_per_query, max_chars)
    qrels = read_qrels(path)
    requests = read_requests(path)
    if not requests:
        raise MissingFileError(f"{path}: has no .json file with requests")
    log.info("%s: the first stage is that of the requests", path)
    judged = [r for r in requests if r.hits and max(qrels.get(r.qid, {}).values(), default=0) >= relevant_at]
    if len(judged) < len(requests):
        log.info("%d of %d queries have no relevant judgement or no hit", len(requests) - len(judged), len(requests))
    if not judged:
        raise DataError(f"{path}: no query is judged >= {relevant_at}; do the qrels belong to the requests?")
    side = split_groups((request.qid for request in judged), seed)
    splits: Splits = {split: [] for split in SPLIT_NAMES}
    for task in tasks:
        for request in judged:
            split = side[request.qid]
            splits[split] += _problems(request, qrels[request.qid], task, split, settings)
    return limit_per_task(splits, limit, seed)


def read_qrels(path: Path) -> Grades:
    """Grade by query and document from every `qrels*` file; negative grades (junk, spam) become 0."""
    files = list_files(path, "qrels*")
    if not files:
        raise MissingFileError(f"{path}: has no qrels* file")
    qrels: Grades = {}
    for file in files:
        for qid, grades in read_file(file).items():
            known = qrels.setdefault(qid, {})
            for docid, grade in grades.items():
                if known.setdefault(docid, max(0, grade)) != max(0, grade):
                    raise DataError(f"{file}: another file has another grade of document {docid!r} for query {qid!r}")
    return qrels


def read_requests(path: Path) -> list[Request]:
    """Requests of every JSON file of a folder; files that hold none are passed over."""
    return by_query({file: requests_of(file) for file in list_files(path, "*.json", "*.jsonl")})


def by_query(files: Mapping[Path, Sequence[Request]]) -> list[Request]:
    """The requests of several files. DataError: a query that two of them rank otherwise."""
    known: dict[str, tuple[Request, Path]] = {}
    for file, requests in files.items():
        for request in requests:
            before, other = known.setdefault(request.qid, (request, file))
            if before != request:
                raise DataError(f"{file}: query {request.qid!r} stands in {other.name} too; keep one first stage")
    return [request for request, _ in known.values()]


def requests_of(file: Path) -> list[Request]:
    """The requests of a JSON file: one, a list of them, or one a line. None where no entry has hits."""
    entries = list(_entries(file))
    if not any(map(_is_request, (entry for _, entry in entries))):
        return []
    found = [request for where, entry in entries if (request := _request(entry, where)) is not None]
    known: dict[str, Request] = {}
    for request in found:
        if known.setdefault(request.qid, request) != request:
            raise DataError(f"{file}: query {request.qid!r} stands twice, with unequal hits; keep one of them")
    return list(known.values())


def _entries(file: Path) -> Iterator[tuple[str, Any]]:
    """Each entry of a file with its place."""
    if bare(file.name).endswith(".jsonl"):
        yield from ((f"{file}:{number}", record) for number, record in read_json_lines(file))
        return
    text = read_text(file)
    if not text.strip():
        raise DataError(f"{file}: is empty; write it again, or remove it")
    try:
        document = parse_json(text)
    except ValueError as error:
        if not (isinstance(error, JSONDecodeError) and error.msg == "Extra data"):
            raise DataError(f"{file}: not JSON: {error}") from error
        yield from ((f"{file}:{number}", record) for number, record in read_json_lines(file))
        return
    entries = document if isinstance(document, list) else [document]
    yield from ((f"{file}: request {number}", entry) for number, entry in enumerate(entries))


def _is_request(entry: Any) -> bool:
    return isinstance(entry, dict) and ("hits" in entry or "candidates" in entry)


def _request(entry: Any, where: str) -> Request | None:
    if not _is_request(entry):
        raise DataError(f"{where}: lacks or misplaces 'hits'")
    found = entry.get("hits") or entry.get("candidates") or []
    try:
        query = entry["query"]
        if not found and not isinstance(query, dict):  # the older form names the query in its hits
            log.warning("%s: has no hit and is left out", where)
            return None
        text, qid = (query["text"], query["qid"]) if isinstance(query, dict) else (query, found[0]["qid"])
        hits = [_hit(hit, f"{where}, hit {place}") for place, hit in enumerate(found, start=1)]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: lacks or misplaces {error}") from error
    if not text_of(text, f"{where}: the query").strip():
        raise DataError(f"{where}: the query is empty")
    best: dict[str, Hit] = {}
    for hit in sorted(hits, key=lambda hit: -hit.score):
        best.setdefault(hit.docid, hit)  # of a document that was found twice the best place counts
    return Request(identifier_of(qid, f"{where}: qid"), text_of(text, where), tuple(best.values()))


def _hit(hit: Mapping[str, Any], where: str) -> Hit:
    title, body = "", hit.get("content")
    if "content" not in hit:
        doc = hit["doc"]
        key = next((name for name in TEXT_KEYS if name in doc), "contents")
        title, body = text_of(doc.get("title"), f"{where}: title"), doc[key]
    return Hit(
        identifier_of(hit["docid"], f"{where}: docid"),
        spaced(text_of(body, f"{where}: the text")),
        finite(hit["score"], f"{where}: score"),
        spaced(title),
    )


def spaced(text: str) -> str:
    """Text whose words are divided by single spaces."""
    return " ".join(text.split())


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
