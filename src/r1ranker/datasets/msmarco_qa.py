"""MS MARCO QA v1.1 as on the Hugging Face hub: `train-*`, `validation-*`, `test-*` parquet files.

    {"query_id": 19699, "query": "what is rba",
     "passages": {"is_selected": [0, 1, ...], "passage_text": ["Since 2007, ...", ...], "url": [...]}}

A pool is one selected passage and others of the same query that are not selected, all of them whole, with
at most `max_chars` characters together, as in the paper; a query that gives no such pool is left out. The
source has no first-stage score, so `prior` is empty. The splits are those of the files (validation is dev)
where there is more than one; a query that also stands in a later split is dropped from the earlier one.
Tasks: `passage-5`, `passage-7`, `passage-9`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1ranker.datasets.common import SPLIT_NAMES, Source, check_sizes, limit_per_task, plain, split_groups
from r1ranker.datasets.rankllm import POOL_SIZES
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.documents import identifier_of
from r1ranker.io.parquet import read_rows
from r1ranker.io.text import MissingFileError, list_files
from r1ranker.problem import Candidate, Problem, Splits, rng_for

log = logging.getLogger(__name__)

FILES = {"train": "train-*.parquet", "dev": "validation-*.parquet", "test": "test-*.parquet"}


@dataclass(frozen=True, slots=True)
class Record:
    qid: str
    query: str
    selected: tuple[bool, ...]
    passages: tuple[str, ...]

    @property
    def group(self) -> str:
        """Queries that differ in case or spaces only are one query."""
        return plain(self.query)


def load(
    path: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    tasks: Sequence[str] = tuple(POOL_SIZES),
    max_chars: int = 2600,
) -> Splits:
    """Problems of the chosen `tasks`, one per query and task."""
    unknown = [task for task in tasks if task not in POOL_SIZES]
    if unknown:
        raise ConfigError(f"tasks: {unknown[0]!r} is not one of {', '.join(POOL_SIZES)}")
    check_sizes(max_chars=max_chars)
    files = {split: list_files(path, pattern) for split, pattern in FILES.items()}
    present = [split for split in SPLIT_NAMES if files[split]]
    if not present:
        raise MissingFileError(f"{path}: has no {', '.join(FILES.values())}")
    records = {split: [r for file in files[split] for r in _records(file)] for split in SPLIT_NAMES}
    records = _by_query(records[present[0]], seed) if len(present) == 1 else _disjoint(records)
    splits: Splits = {
        split: [
            problem
            for task in tasks
            for record in members
            if (problem := _problem(record, task, seed, max_chars)) is not None
        ]
        for split, members in records.items()
    }
    asked, made = (sum(map(len, of_splits.values())) for of_splits in (records, splits))
    if made < asked * len(tasks):
        log.info("%d queries times %d tasks give %d pools; the others have too few passages", asked, len(tasks), made)
    return limit_per_task(splits, limit, seed)


def _by_query(records: Sequence[Record], seed: int) -> dict[str, list[Record]]:
    side = split_groups((record.group for record in records), seed)
    return {split: [r for r in records if side[r.group] == split] for split in SPLIT_NAMES}


def _disjoint(records: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """The files' own splits, later ones unchanged, without the queries that stand in a later one."""
    later: set[str] = set()
    kept: dict[str, list[Record]] = {}
    for split in reversed(SPLIT_NAMES):
        kept[split] = [record for record in records[split] if record.group not in later]
        dropped = len(records[split]) - len(kept[split])
        if dropped:
            log.info("%s: %d queries that also stand in a later split are dropped", split, dropped)
        later |= {record.group for record in kept[split]}
    return {split: kept[split] for split in SPLIT_NAMES}


def _records(file: Path) -> Iterator[Record]:
    known: dict[str, Record] = {}
    for number, row in enumerate(read_rows(file, ("query_id", "query", "passages"))):
        try:
            passages = row["passages"]
            selected = tuple(bool(flag) for flag in passages["is_selected"])
            texts = tuple(" ".join(text.split()) for text in passages["passage_text"])
            qid = identifier_of(row["query_id"], f"{file}: row {number}: query_id")
            record = Record(qid, row["query"].strip(), selected, texts)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: row {number}: needs query, query_id and passages: {error!r}") from error
        if len(selected) != len(texts):
            raise DataError(f"{file}: row {number}: {len(texts)} passages, but {len(selected)} flags is_selected")
        if known.setdefault(qid, record) != record:
            raise DataError(f"{file}: row {number}: query_id {qid!r} stands twice, with unequal passages")
        if known[qid] is record:
            yield record


def _problem(record: Record, task: str, seed: int, max_chars: int) -> Problem | None:
    size = POOL_SIZES[task]
    qid = f"{record.qid}:{size}"
    rng = rng_for(seed, qid)
    positives = [index for index, flag in enumerate(record.selected) if flag and record.passages[index]]
    known = {record.passages[index] for index in positives}
    distinct = {text: i for i, text in enumerate(record.passages) if text and text not in known}
    if not record.query or not positives or len(distinct) < size - 1:
        return None
    positive = rng.choice(positives)
    pool = [positive, *rng.sample(list(distinct.values()), size - 1)]
    if sum(len(record.passages[index]) for index in pool) > max_chars:
        return None
    rng.shuffle(pool)
    return Problem(
        qid=qid,
        task=task,
        scenario="passage",
        query=record.query,
        candidates=tuple(Candidate(f"{record.qid}-{index}", record.passages[index]) for index in pool),
        gains={f"{record.qid}-{positive}": 1},
        group=record.group,
    )


SOURCE = Source(
    load=load,
    description="passage-5, passage-7, passage-9: the passage an annotator selected",
    layout="train-*.parquet, validation-*.parquet, test-*.parquet (version 1.1)",
    licence="MS MARCO: non-commercial research",
    citation="Nguyen et al., MS MARCO, 2016",
    download="https://huggingface.co/datasets/microsoft/ms_marco/tree/main/v1.1",
)
