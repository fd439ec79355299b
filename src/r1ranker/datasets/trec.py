"""Test collections: queries, a first stage and judgements as passage problems, in the first stage's order.

    load(Path("scifact"))                                           # a folder with official files
    load(None, datasets="msmarco-passage/trec-dl-2019/judged")      # by its name in ir_datasets, which downloads it
    load(Path("run.bm25.txt"), datasets="beir/scifact/test")        # by name, with a first stage of your own
    from_files(Path("corpus.jsonl"), Path("queries.jsonl"))         # files named one by one, as `r1ranker rerank` does

A folder holds one of

- BEIR's files: `corpus.jsonl` {"_id", "title", "text"}, `queries.jsonl` {"_id", "text"}, `qrels/test.tsv`
  (header; query, document, grade), and train and dev beside it where there are such judgements;
- TREC's: `collection.tsv` and `queries.tsv` (identifier, text), `qrels*` (four columns);
- rank_llm requests with `qrels*` (see `rankllm`), which hold their first stage.

The first stage is a TREC run file in the folder: `run*`, `*.run`, `*.trec`, or any file whose first line is one of a
run; what this package ranked is passed over. Without one, and where ir_datasets has none, it is BM25 over the whole
corpus. Without qrels every query that the first stage answers is a problem to rank, in test, without gains.
Files may be compressed; where their names do not say what they are, the options run, qrels, topics and corpus
do, and a file that could be anything is refused. Each qrels file is a task, named by its name; `qrels/train.tsv` and
`dev.tsv` give those splits, everything else is test. All judgements of a query are its gains, retrieved or not, so
nDCG is that of trec_eval. A judged query for which the first stage found nothing has an empty pool and counts 0, as
with `trec_eval -c`; training has no use for it. Left out are judged queries without a relevant document or a text
(their numbers are logged), documents that a benchmark excludes for a query (grade -100, BRIGHT), and a document that is
the query itself, by its identifier and its text (ArguAna, Quora).
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1ranker.datasets.collection import Collection, Document, collection, read_documents
from r1ranker.datasets.common import SPLIT_NAMES, Source, check_sizes, limit_per_task
from r1ranker.datasets.first_stage import EXCLUDED, Scored, Texts, allowed, bm25, collected, scores_of, texts_of
from r1ranker.datasets.rankllm import Request, by_query, spaced
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.extras import library
from r1ranker.io.qrels import Grades, read_qrels
from r1ranker.io.text import MissingFileError, bare, cut
from r1ranker.problem import Candidate, Problem, Splits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Named:
    """Files of the folder that the user names, by role."""

    run: str | None
    qrels: Sequence[str]
    topics: str | None
    corpus: str | None


@dataclass(frozen=True, slots=True)
class Judged:
    """One qrels file; or the queries of a collection that has none, without grades."""

    task: str
    split: str
    grades: Grades

    def counts(self, qid: str) -> bool:
        """Whether a query is of use: a document is relevant to it, or nobody has judged any."""
        return max(self.grades[qid].values(), default=1) > 0


def load(
    path: Path | None = None,
    *,
    seed: int = 0,
    limit: int | None = None,
    datasets: str | Sequence[str] = (),
    top_k: int = 100,
    relevant_at: int = 1,
    max_chars: int | None = None,
    run: str | None = None,
    qrels: str | Sequence[str] = (),
    topics: str | None = None,
    corpus: str | None = None,
) -> Splits:
    """One problem for each judged query, or each one: the best `top_k` of its first stage, texts cut to `max_chars`.

    path: a folder; or with `datasets`, names of ir_datasets, a run file over all of them, or nothing.
    relevant_at: the lowest grade that binary measures count; TREC-DL's own is 2.
    run, qrels, topics, corpus: files of the folder, where their names do not say what they are.
    """
    check_sizes(top_k=top_k, max_chars=max_chars, relevant_at=relevant_at)
    names = _list(datasets)
    named = _Named(run, _list(qrels), topics, corpus)
    if names and named != _Named(None, [], None, None):
        raise ConfigError("run, qrels, topics and corpus name files of a folder: with datasets give a run as the path")
    parts = [_by_name(name, path, top_k) for name in names] or _from_folder(path, top_k, named)
    splits: Splits = {split: [] for split in SPLIT_NAMES}
    _check_distinct([judged for judged, _ in parts])
    for judged, requests in parts:
        splits[judged.split] += [problem_of(r, judged, top_k, relevant_at, max_chars) for r in ready(judged, requests)]
    _need_any((problem for problems in splits.values() for problem in problems), str(path or names))
    return limit_per_task(splits, limit, seed)


def from_files(
    corpus: Path, queries: Path, run: Path | None = None, qrels: Path | None = None, *, depth: int = 100
) -> list[Problem]:
    """Problems of files that are named one by one: of the judged queries, or of all where there are no qrels.

    run: the first stage, all of which stands in the pools; without it the best `depth` of BM25 over the corpus.
    """
    files = Collection([qrels] if qrels else [], corpus, queries, run, {})
    top_k = depth if run is None else sys.maxsize
    folder = corpus.absolute().parent
    log.info("the first stage is %s", run or f"the first {depth} of BM25 over {corpus}")
    ((judged, requests),) = _of_collection(folder, files, top_k)
    judged = replace(judged, split="test")  # whatever its name says: nothing is trained on
    problems = [problem_of(r, judged, top_k, 1, None) for r in ready(judged, requests)]
    _need_any(problems, str(run or queries))
    return problems


def _check_distinct(parts: Sequence[Judged]) -> None:
    """DataError where two tasks of a split have a query of one name: results name queries, not tasks."""
    whose: dict[tuple[str, str], str] = {}
    for judged in parts:
        for qid in judged.grades:
            before = whose.setdefault((judged.split, qid), judged.task)
            if before != judged.task:
                raise DataError(
                    f"query {qid!r} stands in {before} and in {judged.task}, two tasks, and a qid names one problem: "
                    "load them one by one, by the option qrels or datasets"
                )


def ready(judged: Judged, requests: Sequence[Request]) -> list[Request]:
    """The requests that are of use. What is left out, and what will count 0, is told."""
    ready = [r for r in requests if judged.counts(r.qid) and (r.hits or judged.split != "train")]
    asked, counting = {request.qid for request in requests}, [qid for qid in judged.grades if judged.counts(qid)]
    useless = sum(judged.counts(request.qid) for request in requests) - len(ready)
    reasons = {
        "without a relevant document": len(judged.grades) - len(counting),
        "without a text": sum(qid not in asked for qid in counting),
        "without a hit to train on": useless,
    }
    if told := ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number):
        log.warning("%s: judged queries left out: %s", judged.task, told)
    if empty := sum(not r.hits for r in ready):
        counted = ", which count 0" if any(judged.grades.values()) else ""
        log.warning("%s: the first stage found nothing for %d queries%s", judged.task, empty, counted)
    return ready


def _need_any(problems: Iterable[Problem], where: str) -> None:
    if not any(problem.candidates for problem in problems):
        raise DataError(
            f"{where}: no query has a candidate of a first stage (and, with qrels, a relevant judgement); do the files "
            "belong together, and do queries and texts have words in common?"
        )


def _list(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def problem_of(request: Request, judged: Judged, top_k: int, relevant_at: int, max_chars: int | None) -> Problem:
    """A request with its judgements as a problem of its `top_k`; texts are cut to `max_chars`."""
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


def _from_folder(path: Path | None, top_k: int, named: _Named) -> list[tuple[Judged, list[Request]]]:
    if path is None or not path.is_dir():
        raise MissingFileError(f"{path or 'no path'}: give a folder, or names of ir_datasets by the option datasets")
    files = collection(path, run=named.run, qrels=named.qrels, topics=named.topics, corpus=named.corpus)
    return _of_collection(path, files, top_k)


def _of_collection(path: Path, files: Collection, top_k: int) -> list[tuple[Judged, list[Request]]]:
    qrels = [_judged(file, path) for file in files.qrels]
    requests = _from_requests(files, qrels) if files.requests else _from_corpus(path, files, qrels, top_k)
    if not qrels:
        log.info("without qrels the queries can be ranked, but not trained on or evaluated")
        return [(Judged(_name(path), "test", {request.qid: {} for request in requests}), requests)]
    return [(one, [request for request in requests if request.qid in one.grades]) for one in qrels]


def _from_requests(files: Collection, qrels: Sequence[Judged]) -> list[Request]:
    """The requests of judged queries, or all. A judged query without one was asked, and found nothing."""
    requests = by_query(files.requests)
    if not qrels:
        return allowed(requests, {request.qid: {} for request in requests})
    grades = _all_grades(qrels)
    answered = {request.qid for request in requests}
    _tell_unjudged(answered, grades)
    lacking = grades.keys() - answered
    queries = read_documents(files.topics, lacking) if lacking and files.topics else {}
    unanswered = [Request(qid, queries[qid].text, ()) for qid in grades if qid in queries and queries[qid].text]
    return allowed([request for request in requests if request.qid in grades] + unanswered, grades)


def _from_corpus(path: Path, files: Collection, qrels: Sequence[Judged], top_k: int) -> list[Request]:
    corpus = files.corpus
    if files.topics is None or corpus is None:
        raise MissingFileError(f"{path}: has no queries.jsonl or queries.tsv")

    def texts(ids: set[str]) -> Mapping[str, Document]:
        return read_documents(corpus, ids or None)

    first = scores_of(files.run) if files.run else None
    grades = _all_grades(qrels)
    queries = {qid: query.text for qid, query in read_documents(files.topics, set(grades) if qrels else None).items()}
    if qrels:
        _tell_unjudged(set(queries if first is None else first), grades)
    else:
        grades = {qid: {} for qid in first or queries}
        if first is not None and (unasked := queries.keys() - first):
            log.warning("%s: %d queries are not in the run, and left out", files.topics, len(unasked))
        if lost := sum(not queries.get(qid) for qid in grades):
            log.warning("%s: %d queries are not there, or have no text, and are left out", files.topics, lost)
    return collected(grades, queries, first, texts, top_k)


def _tell_unjudged(queries: set[str], grades: Grades) -> None:
    if unjudged := queries - grades.keys():
        log.info("%d of %d queries are not judged, and left out", len(unjudged), len(queries))


def _all_grades(qrels: Sequence[Judged]) -> Grades:
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for one in qrels:
        for qid, of_query in one.grades.items():
            grades[qid] |= of_query
    return grades


def _judged(file: Path, folder: Path) -> Judged:
    """The judgements of a file, and the task and split that its name says."""
    name, grades = bare(file.name), read_qrels(file)
    if file.parent.name == "qrels":
        stem = Path(name).stem
        return Judged(_name(folder), stem if stem in SPLIT_NAMES else "test", grades)
    task = name.removesuffix(".txt").removesuffix(".tsv").replace("qrels", "", 1).strip(".-_")
    return Judged(task or _name(folder), "test", grades)


def _name(folder: Path) -> str:
    """Of `.` too."""
    return folder.absolute().name


def _by_name(name: str, run: Path | None, top_k: int) -> tuple[Judged, list[Request]]:
    """A dataset of ir_datasets, with the run file given, its own first stage, or BM25."""
    dataset = _ir_dataset(name)
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for qrel in dataset.qrels_iter():
        grades[qrel.query_id][qrel.doc_id] = qrel.relevance
    task, split = _task_and_split(name)
    judged = Judged(task, split, dict(grades))
    queries = {query.query_id: spaced(_default_text(query)) for query in dataset.queries_iter()}

    def texts(ids: set[str]) -> Mapping[str, Document]:
        docs = dataset.docs_store().get_many_iter(sorted(ids)) if ids else dataset.docs_iter()
        return {doc.doc_id: _document(doc) for doc in docs}

    asked = {qid: queries[qid] for qid in grades if qid in queries}
    first = scores_of(run) if run is not None else _own_first_stage(dataset, asked, texts)
    told = run or ("BM25 over the whole corpus" if first is None else "the benchmark's own")
    log.info("%s: the first stage is %s", name, told)
    return judged, collected(grades, asked, first, texts, top_k)


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
    ordered = bm25(queries, texts_of(pool), keep=len(pool), stem=True)
    return {qid: {d: s for d, s in ordered[qid].items() if d in scores} for qid, scores in given.items()}


def _ir_dataset(name: str) -> Any:
    try:
        return library("ir_datasets", "ir", f"datasets={name}").load(name)
    except KeyError as error:
        raise ConfigError(f"ir_datasets has no dataset {name!r}; see https://ir-datasets.com for the names") from error


def _task_and_split(name: str) -> tuple[str, str]:
    """`beir/scifact/train` is task beir-scifact, split train; what names no split is test."""
    *parents, last = name.split("/")
    known = bool(parents) and last in SPLIT_NAMES
    return "-".join(parents if known else [*parents, last]), last if known else "test"


def _document(record: Any) -> Document:
    """A document of ir_datasets; its title stands apart where the rest is what would be indexed."""
    text, title = spaced(_default_text(record)), spaced(getattr(record, "title", None) or "")
    return Document(title, text.removeprefix(title).strip()) if text.startswith(title) else Document("", text)


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
