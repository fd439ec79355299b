"""Reranking a first stage of a standard benchmark. In: a `Study`. Out: results for its top 20 and its top 100.

nDCG@10 is over all judged documents of a query, retrieved or not, as trec_eval computes it, and the first stage itself
stands in every table as `prior`. A list is ranked in windows as large as the largest pool of passages in training: a
small model that has seen nine identifiers makes less than chance of twenty. Where candidates are judged apart from each
other (layout `blocks`) it is read whole. One IRanker is trained with graded rewards
and one with the paper's, which only knows relevant or not, at equal training tokens.

The benchmark is what the study's data hold: a folder of test-collection files (sources `trec` and `rankllm`), or one
that is written here from the embedded passages, in BEIR's layout. Data without either are tested on TREC-DL by name.
Test queries that also stand in training or dev are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from r1ranker.baselines.notes import load_splits
from r1ranker.datasets import mini_passage
from r1ranker.datasets.common import plain
from r1ranker.datasets.mini_passage import Fact
from r1ranker.datasets.mini_words import words
from r1ranker.errors import DataError
from r1ranker.evaluation.results import Row
from r1ranker.evaluation.table import stars, systems_of
from r1ranker.experiments.report import Table, by_system, save_tables, tests_by_system
from r1ranker.experiments.study import Study
from r1ranker.io.config import DataConfig
from r1ranker.problem import Problem, first_by_task

TOP_KS = (20, 100)
WINDOW = 20
"""Largest window, and the usual one where no passages are trained on; it slides by half its size."""
MEASURE = "nDCG@10"
COSTS = ("calls", "prompt_tokens", "seconds")
GRADED = "ppo.reward=graded"
BENCHMARKS = (
    "msmarco-passage/trec-dl-2019/judged",
    "msmarco-passage/trec-dl-2020/judged",
    "msmarco-passage-v2/trec-dl-2021/judged",
    "msmarco-passage-v2/trec-dl-2022/judged",
    "msmarco-passage-v2/trec-dl-2023",
)
"""Names in ir_datasets, for data that hold no test collection."""
LONGEST = 520
"""Characters of a passage where the data do not say: a fifth of the paper's longest pool, which has five at least."""


def ir(study: Study) -> None:
    """Train by both rewards, rerank the top 20 and the top 100, save the table."""
    benchmarks = {top_k: benchmark(study, top_k) for top_k in TOP_KS}  # a file that lacks is told before hours of work
    models = study.trained_all([["design=dranker"], ["design=iranker", "ppo.reward=paper"], ["design=iranker", GRADED]])
    names = ("dranker", "iranker-binary", "iranker-graded")
    windows, note = _windows(study)
    found: dict[int, list[Row]] = {}
    notes = [note]
    for top_k, (problems, note) in benchmarks.items():
        systems = [study.system("base-iterative", "iranker", study.config.model, *windows)]
        for name, model in zip(names, models, strict=True):
            systems.append(study.system(name, name.partition("-")[0], str(model), *windows))
        title = f"R1-Ranker, the top {top_k} of a first stage ({study.scale})"
        found[top_k] = study.evaluate(["random", "prior", "oracle", *systems], problems, f"top{top_k}", title=title)
        notes.append(f"top {top_k}: {note}")
    save_tables(study.out, [_table(study, found, notes)], study.settings)


def _windows(study: Study) -> tuple[list[str], str]:
    """The settings by which a long list is ranked, and what to say of them."""
    if study.reads_pools_whole:
        return [], "each list whole"
    pools = [len(problem.candidates) for problem in study.problems("train") if problem.scenario == "passage"]
    window = min(WINDOW, max(pools, default=WINDOW))
    return [f"window={window}"], f"windows of {window} by {max(1, window // 2)}"


def benchmark(study: Study, top_k: int) -> tuple[list[Problem], str]:
    """The benchmark's problems that are no training or dev query, and how many of all those are."""
    everything = load_splits(_sources(study, top_k))["test"]
    seen = {plain(problem.query) for split in ("train", "dev") for problem in study.problems(split)}
    unseen = [problem for problem in everything if plain(problem.query) not in seen]
    limits = [study.limit, study.size.deep if top_k == max(TOP_KS) else None]
    kept = first_by_task(unseen, min((limit for limit in limits if limit is not None), default=None))
    if not kept:
        raise DataError("every query of the benchmark is a training or dev query of the data; test on another one")
    left_out = len(everything) - len(unseen)
    return kept, f"{len(kept)} of {len(everything)} judged queries, {left_out} are in training or dev"


def _sources(study: Study, top_k: int) -> list[DataConfig]:
    """The study's test collections; TREC-DL by name where it has none."""
    found = [one for data in study.config.data if (one := _collection(study, data, top_k)) is not None]
    options = {"datasets": BENCHMARKS, "relevant_at": 2, "max_chars": LONGEST, "top_k": top_k}
    return found or [DataConfig(source="trec", options=options)]


def _collection(study: Study, data: DataConfig, top_k: int) -> DataConfig | None:
    options: dict[str, object] = {"top_k": top_k}
    if data.source == "trec":
        return data.model_copy(update={"options": data.options | options, "limit": None})
    if data.source == "rankllm":
        longest = data.options.get("max_chars", 5 * LONGEST) // 5
        options |= {"relevant_at": data.options.get("relevant_at", 2), "max_chars": longest}
        return DataConfig(source="trec", path=data.path, show=data.show, options=options)
    if data.source == "mini":
        passages = [problem for problem in study.problems("test") if problem.scenario == "passage"]
        path = write_collection(passages, study.out / "embedded-passages")
        return DataConfig(source="trec", path=path, show=data.show, options=options | {"relevant_at": 3})
    return None


def write_collection(problems: Sequence[Problem], folder: Path) -> Path:
    """The embedded passages as a collection in BEIR's layout; every passage is judged for every query.

    Grades are those of the problems: 3 what tells the fact asked for, 1 something else on the same entity.
    """
    texts = dict.fromkeys(candidate.text for problem in problems for candidate in problem.candidates)
    docids = {text: f"p{number}" for number, text in enumerate(texts)}
    queries = {problem.group: problem.query for problem in problems}
    facts = {fact.name: fact for fact in mini_passage.facts()}
    told = {text: told_by(text) for text in texts}
    rows = ["query-id\tcorpus-id\tscore"]
    for name in queries:
        for text, fact in told.items():
            if fact.entity == facts[name].entity:
                rows.append(f"{name}\t{docids[text]}\t{3 if fact == facts[name] else 1}")
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "corpus.jsonl", [json.dumps({"_id": docids[text], "text": text}) for text in texts])
    _write_lines(folder / "queries.jsonl", [json.dumps({"_id": q, "text": text}) for q, text in queries.items()])
    _write_lines(folder / "qrels" / "test.tsv", rows)
    return folder


def told_by(text: str) -> Fact:
    """The fact that an embedded passage tells: the one whose entity and wording it holds."""
    plain = text.lower()
    for stem, facts in _facts_by_entity().items():
        if stem in plain:
            for fact in facts:
                if any(all(part in plain for part in parts) for parts in _wordings(fact.kind, fact.attribute)):
                    return fact
    raise DataError(f"passage {text!r} tells no fact of the embedded data")


@cache
def _facts_by_entity() -> dict[str, list[Fact]]:
    """By what the singular and the plural of the entity have in common."""
    facts: dict[str, list[Fact]] = {}
    for fact in mini_passage.facts():
        facts.setdefault(fact.entity.lower().removesuffix("y"), []).append(fact)
    return facts


@cache
def _wordings(kind: str, attribute: str) -> list[list[str]]:
    """The fixed parts of every way to tell an attribute, between entity and value; articles left out ("a", "an")."""
    patterns = words()["passage"]["kinds"][kind]["attributes"][attribute]
    split = (re.split(r"\{\w\}", pattern.lower()) for pattern in (*patterns["echo"], *patterns["own"]))
    return [[re.sub(r"\ban? $", "", part).strip() for part in parts] for parts in split]


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _table(study: Study, found: Mapping[int, Sequence[Row]], notes: Sequence[str]) -> Table:
    """nDCG@10 of each system on both depths, with the test against the first stage, and what a query costs."""
    lines = []
    for system in systems_of(found[TOP_KS[0]]):
        cells = []
        for top_k, rows in found.items():
            row = by_system(rows, MEASURE)[system]
            test = tests_by_system(study.out / f"top{top_k}", MEASURE).get(system)
            cells.append(f"{row.value:.3f} ±{(row.ci_high - row.ci_low) / 2:.3f} {stars(test)}".rstrip())
            cells += [f"{by_system(rows, cost)[system].value:.3g}" for cost in COSTS]
        lines.append(("first stage" if system == "prior" else system, *cells))
    columns = ["system"]
    for top_k in found:
        columns += [f"top {top_k}: {name.replace('_', ' ')}" for name in (MEASURE, *COSTS)]
    note = (
        f"{MEASURE} over all judged documents, mean over tasks ± half of the 95 % interval; costs per query. "
        "* p < 0.05, ** p < 0.01 against the first stage (paired randomisation, Holm), ↓ worse. "
        f"{'; '.join(notes)}."
    )
    return Table("Reranking a first stage", columns, lines, note)
