"""Test collections: queries, a first stage and judgements as passage problems, in the first stage's order.

    load(Path("scifact"))                                           # a folder with official files
    load(None, datasets="msmarco-passage/trec-dl-2019/judged")      # by its name in ir_datasets, which downloads it
    load(Path("run.bm25.txt"), datasets="beir/scifact/test")        # by name, with a first stage of your own

A folder holds one of

- BEIR's files: `corpus.jsonl` {"_id", "title", "text"}, `queries.jsonl` {"_id", "text"}, `qrels/test.tsv`
  (header; query, document, grade), and train and dev beside it where there are such judgements;
- TREC's: `collection.tsv` and `queries.tsv` (identifier, text), `qrels*` (four columns);
- rank_llm requests with `qrels*` (see `rankllm`), which hold their first stage.

The first stage is a TREC run file in the folder, `run*` or `*.trec`. Without one, and where ir_datasets has none,
it is BM25 over the whole corpus. Each qrels file is a task, named by its name; `qrels/train.tsv` and `dev.tsv`
give those splits, everything else is test. All judgements of a query are its gains, whether retrieved or not, so
nDCG is that of trec_eval. A judged query for which the first stage found nothing has an empty pool and counts 0, as
with `trec_eval -c`; training has no use for it. Left out are judged queries without a relevant document (their number
is logged), documents that a benchmark excludes for a query (grade -100, BRIGHT), and a document that is
the query itself (ArguAna, Quora).
"""

from __future__ import annotations

import gzip
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from r1ranker.datasets.common import SPLIT_NAMES, MissingFileError, Source, cut, limit_per_task
from r1ranker.datasets.rankllm import TEXT_KEYS, Hit, Request, read_requests
from r1ranker.errors import ConfigError, DataError
from r1ranker.evaluation.runs import read_run
from r1ranker.problem import Candidate, Problem, Splits

log = logging.getLogger(__name__)

ID_KEYS = ("_id", "id", "docid", "pid", "qid")
EXCLUDED = -100
"""The grade by which ir_datasets marks a document that must not be ranked for a query."""
K1, B = 0.9, 0.4
"""Of BM25, as in Anserini's baselines; stop words are English, words are not stemmed."""

Grades = Mapping[str, Mapping[str, int]]
"""Grade by query and document."""
Scored = Mapping[str, Mapping[str, float]]
"""A first stage: score by query and document."""
Texts = Callable[[set[str]], Mapping[str, str]]
"""Texts of the documents named, or of all where none is."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One qrels file."""

    task: str
    split: str
    grades: Grades


def load(
    path: Path | None = None,
    *,
    seed: int = 0,
    limit: int | None = None,
    datasets: str | Sequence[str] = (),
    top_k: int = 100,
    relevant_at: int = 1,
    max_chars: int | None = None,
) -> Splits:
    """One problem for each judged query: the best `top_k` of its first stage, texts cut to `max_chars` each.

    path: a folder; or with `datasets`, names of ir_datasets, a run file over all of them, or nothing.
    relevant_at: the lowest grade that binary measures count; TREC-DL's own is 2.
    """
    if top_k < 1 or (max_chars is not None and max_chars < 1):
        raise ConfigError("top_k and max_chars must be at least 1")
    names = [datasets] if isinstance(datasets, str) else list(datasets)
    parts = [_by_name(name, path, top_k) for name in names] or _from_folder(path, top_k)
    splits: Splits = {split: [] for split in SPLIT_NAMES}
    for judged, requests in parts:
        relevant = [r for r in requests if max(judged.grades[r.qid].values()) > 0]
        ready = [r for r in relevant if r.hits or judged.split != "train"]
        if len(ready) < len(judged.grades):
            lost = len(judged.grades) - len(ready)
            log.warning("%s: %d judged queries have no relevant document or no text", judged.task, lost)
        if empty := sum(not r.hits for r in ready):
            log.warning("%s: the first stage found nothing for %d queries, which count 0", judged.task, empty)
        splits[judged.split] += [_problem(r, judged, top_k, relevant_at, max_chars) for r in ready]
    if not any(problem.candidates for problems in splits.values() for problem in problems):
        raise DataError(
            f"{path or names}: no query has a first stage and a relevant judgement; do they belong together?"
        )
    return limit_per_task(splits, limit, seed)


def _problem(request: Request, judged: Judged, top_k: int, relevant_at: int, max_chars: int | None) -> Problem:
    grades = judged.grades[request.qid]
    top = request.hits[:top_k]
    texts = [hit.text if max_chars is None else cut(hit.text, max_chars) for hit in top]
    return Problem(
        qid=request.qid,
        task=judged.task,
        scenario="passage",
        query=request.query,
        candidates=tuple(Candidate(hit.docid, text) for hit, text in zip(top, texts, strict=True)),
        gains={docid: max(0, grade) for docid, grade in grades.items() if grade != EXCLUDED},
        relevant_at=relevant_at,
        prior={hit.docid: hit.score for hit in top},
        nothing_found=not top,
    )


def _from_folder(path: Path | None, top_k: int) -> list[tuple[Judged, list[Request]]]:
    if path is None or not path.is_dir():
        raise MissingFileError(f"{path or 'no path'}: give a folder, or names of ir_datasets by the option datasets")
    qrels = [_judged(file, path) for file in _qrels_files(path)]
    corpus = _one(path, "corpus.*", "collection.*")
    requests = read_requests(path) if corpus is None else _from_corpus(path, corpus, qrels, top_k)
    return [(one, [request for request in requests if request.qid in one.grades]) for one in qrels]


def _from_corpus(path: Path, corpus: Path, qrels: Sequence[Judged], top_k: int) -> list[Request]:
    file, run = _one(path, "queries*", "topics*"), _one(path, "run*", "*.trec")
    if file is None:
        raise MissingFileError(f"{path}: has no queries.jsonl or queries.tsv")
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for one in qrels:
        for qid, of_query in one.grades.items():
            grades[qid] |= of_query

    def texts(ids: set[str]) -> Mapping[str, str]:
        return {docid: text for docid, text in _texts(corpus) if not ids or docid in ids}

    return _collected(grades, dict(_texts(file)), _run(run) if run else None, texts, top_k)


def _one(path: Path, *patterns: str) -> Path | None:
    """The file that matches; DataError when several do."""
    found = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
    if len(found) > 1:
        raise DataError(f"{path}: {', '.join(file.name for file in found)} match {patterns[0]!r}; keep one of them")
    return found[0] if found else None


def _qrels_files(path: Path) -> list[Path]:
    files = sorted(file for file in (*path.glob("qrels*"), *path.glob("qrels/*.tsv")) if file.is_file())
    if not files:
        raise MissingFileError(f"{path}: has neither qrels/*.tsv nor a qrels* file")
    return files


def _judged(file: Path, folder: Path) -> Judged:
    """The judgements of a file, and the task and split that its name says."""
    if file.parent != folder:
        return Judged(folder.name, file.stem if file.stem in SPLIT_NAMES else "test", _grades(file))
    task = file.name.removeprefix("qrels").removesuffix(".txt").removesuffix(".tsv").strip(".-_")
    return Judged(task or folder.name, "test", _grades(file))


def _grades(file: Path) -> Grades:
    """Grades of a file with four columns (TREC), or three and a header (BEIR)."""
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        fields = line.split("\t") if line.count("\t") == 2 else line.split()
        if not line.strip() or (number == 1 and len(fields) == 3 and not fields[2].strip().isdigit()):
            continue
        try:
            qid, *_, docid, grade = fields
            grades[qid][docid] = int(grade)
        except ValueError:
            raise DataError(f"{file}:{number}: expected 'qid 0 docid grade', found {line!r}") from None
    return dict(grades)


def _texts(file: Path) -> Iterator[tuple[str, str]]:
    """Identifier and text of each line of a .jsonl or .tsv file, which may be compressed (.gz)."""
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield _record(json.loads(line)) if ".jsonl" in file.suffixes else _pair(line)
            except (ValueError, KeyError, TypeError, StopIteration) as error:
                raise DataError(f"{file}:{number}: expected an identifier and a text, found {line[:80]!r}") from error


def _opened(file: Path) -> IO[str]:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8")
    return file.open(encoding="utf-8")


def _pair(line: str) -> tuple[str, str]:
    identifier, text = line.rstrip("\r\n").split("\t", 1)
    return identifier, _spaced(text)


def _record(record: Mapping[str, Any]) -> tuple[str, str]:
    identifier = next(record[key] for key in ID_KEYS if key in record)
    text = next(record[key] for key in TEXT_KEYS if key in record)
    return str(identifier), _spaced(f"{record.get('title') or ''} {text}")


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _run(file: Path) -> Scored:
    return {r.qid: dict(zip(r.docids, r.scores, strict=True)) for r in read_run(file)}


def _collected(
    grades: Grades, queries: Mapping[str, str], first: Scored | None, texts: Texts, top_k: int
) -> list[Request]:
    """Requests of the judged queries. One document more than `top_k` is read, since one may be the query itself."""
    asked = {qid: queries[qid] for qid in grades if queries.get(qid)}
    known: Mapping[str, str] = {}
    if first is None:
        known = texts(set())
        first = bm25(asked, known)
    top = {qid: _best(first.get(qid, {}), grades[qid], top_k + 1) for qid in asked}
    wanted = {docid for best in top.values() for docid, _ in best}
    if wanted and not known:
        known = texts(wanted)
    absent = sorted(wanted - known.keys())
    if absent:
        raise DataError(f"the corpus lacks document {absent[0]!r} of the first stage; do they belong together?")
    return [
        Request(qid, query, tuple(Hit(d, known[d], s) for d, s in top[qid] if d != qid or query not in known[d]))
        for qid, query in asked.items()
    ]


def _best(scores: Mapping[str, float], grades: Mapping[str, int], count: int) -> list[tuple[str, float]]:
    """The best documents of a query, those left out that are excluded for it; equal scores in the order given."""
    allowed = [(docid, score) for docid, score in scores.items() if grades.get(docid) != EXCLUDED]
    return sorted(allowed, key=lambda pair: -pair[1])[:count]


def bm25(queries: Mapping[str, str], texts: Mapping[str, str], keep: int = 1000) -> Scored:
    """A first stage by bm25s over all `texts`: the best `keep` that share a word with the query."""
    from r1ranker.baselines.bm25 import scorer

    docids = list(texts)
    found = scorer(list(texts.values()), k1=K1, b=B)(list(queries.values()))
    scored: dict[str, dict[str, float]] = {}
    for qid, scores in zip(queries, found, strict=True):
        order = np.argsort(-scores, kind="stable")[:keep]
        scored[qid] = {docids[row]: float(scores[row]) for row in order if scores[row] > 0}
    return scored


def _by_name(name: str, run: Path | None, top_k: int) -> tuple[Judged, list[Request]]:
    """A dataset of ir_datasets, with the run file given, its own first stage, or BM25."""
    dataset = _ir_dataset(name)
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for qrel in dataset.qrels_iter():
        grades[qrel.query_id][qrel.doc_id] = qrel.relevance
    task, split = _task_and_split(name)
    judged = Judged(task, split, dict(grades))
    queries = {query.query_id: _spaced(_default_text(query)) for query in dataset.queries_iter()}

    def texts(ids: set[str]) -> Mapping[str, str]:
        docs = dataset.docs_store().get_many_iter(sorted(ids)) if ids else dataset.docs_iter()
        return {doc.doc_id: _spaced(_default_text(doc)) for doc in docs}

    asked = {qid: queries[qid] for qid in grades if qid in queries}
    first = _run(run) if run is not None else _own_first_stage(dataset, asked, texts)
    return judged, _collected(grades, asked, first, texts, top_k)


def _own_first_stage(dataset: Any, queries: Mapping[str, str], texts: Texts) -> Scored | None:
    """What the benchmark gives to rerank. Where it gives no scores (TREC-DL 2019, 2020), BM25 orders what it gives."""
    if not dataset.has_scoreddocs():
        return None
    given: dict[str, dict[str, float]] = defaultdict(dict)
    for scored in dataset.scoreddocs_iter():
        if scored.query_id in queries:
            given[scored.query_id][scored.doc_id] = scored.score
    if any(len(set(scores.values())) > 1 for scores in given.values()):
        return given
    pool = texts({docid for scores in given.values() for docid in scores})
    ordered = bm25(queries, pool, keep=len(pool))
    return {qid: {d: s for d, s in ordered[qid].items() if d in scores} for qid, scores in given.items()}


def _ir_dataset(name: str) -> Any:
    try:
        ir_datasets = import_module("ir_datasets")
    except ImportError as error:
        raise ConfigError(f"datasets={name}: needs ir_datasets; pip install 'r1-ranker[ir]'") from error
    try:
        return ir_datasets.load(name)
    except KeyError as error:
        raise ConfigError(f"ir_datasets has no dataset {name!r}; see https://ir-datasets.com for the names") from error


def _task_and_split(name: str) -> tuple[str, str]:
    """`beir/scifact/train` is task beir-scifact, split train; what names no split is test."""
    *parents, last = name.split("/")
    known = bool(parents) and last in SPLIT_NAMES
    return "-".join(parents if known else [*parents, last]), last if known else "test"


def _default_text(record: Any) -> str:
    """What ir_datasets would index; some of its records only have a field `text`."""
    return str(record.default_text() if hasattr(record, "default_text") else record.text)


SOURCE = Source(
    load=load,
    description="TREC-DL, BEIR, BRIGHT and other test collections: a first stage's results with all judgements",
    layout="corpus.jsonl, queries.jsonl, qrels/*.tsv (BEIR); or collection.tsv, queries.tsv, qrels*; and run*",
    licence="that of the collection",
    citation="Craswell et al., TREC Deep Learning Track; Thakur et al., BEIR, 2021; Su et al., BRIGHT, 2024",
    download="https://ir-datasets.com or https://github.com/beir-cellar/beir",
    needs_path=False,
)
