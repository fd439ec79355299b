"""BRIGHT's files as the hub has them, generated: what is relevant, what is excluded, and one domain beside another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1ranker.datasets import load
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Problem

DOCUMENTS = [
    {"id": "owls/lifespan_0.txt", "content": "barn owls  live\nfour years"},
    {"id": "owls/lifespan_1.txt", "content": "owls eat mice, and so do cats"},
    {"id": "the post itself.txt", "content": "why do owls live four years"},
    {"id": "bees/honey_0.txt", "content": "bees make honey of nectar"},
]
EXAMPLES = [
    {"id": "0", "query": "why do owls live\nfour years", "gold_ids": ["owls/lifespan_0.txt"],
     "excluded_ids": ["the post itself.txt"]},
    {"id": "1", "query": "what do bees make", "gold_ids": ["bees/honey_0.txt", "not/there.txt"],
     "excluded_ids": ["N/A"]},
]  # fmt: skip
FIELDS = {"reasoning": "a step", "gold_ids_long": ["N/A"], "gold_answer": "written at the end"}


def written(folder: Path, domain: str, suffix: str = "-00000-of-00001.parquet") -> Path:
    """The files of a domain under the names that they have on the hub; JSON Lines where the suffix says so."""
    tables: dict[str, Sequence[dict[str, Any]]] = {
        "documents": DOCUMENTS,
        "examples": [row | FIELDS for row in EXAMPLES],
    }
    for kind, rows in tables.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        file = folder / kind / f"{domain}{suffix}"
        if suffix.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(list(rows)), file)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def pools(problems: Sequence[Problem]) -> dict[str, set[str]]:
    return {problem.qid: {candidate.docid for candidate in problem.candidates} for problem in problems}


@pytest.mark.parametrize("suffix", ["-00000-of-00001.parquet", ".jsonl"])
def test_what_is_excluded_for_a_query_is_no_candidate_and_not_judged(tmp_path: Path, suffix: str) -> None:
    splits = load("bright", written(tmp_path, "biology", suffix))
    assert (splits["train"], splits["dev"]) == ([], [])
    owls, bees = splits["test"]
    assert pools(splits["test"]) == {
        "biology-0": {"owls/lifespan_0.txt", "owls/lifespan_1.txt"},
        "biology-1": {"bees/honey_0.txt", "owls/lifespan_1.txt", "the_post_itself.txt"},  # "do" stands in all three
    }
    assert owls.gains == {"owls/lifespan_0.txt": 1}
    assert bees.gains == {"bees/honey_0.txt": 1, "not/there.txt": 1}, "what was not retrieved is in the ideal"
    assert (owls.task, owls.scenario, owls.query) == ("bright-biology", "passage", "why do owls live four years")
    assert owls.candidates[0].text == "barn owls live four years"
    assert not any("step" in problem.query for problem in splits["test"]), "the reasoning knows the answer"


def test_domains_are_tasks_whose_queries_are_told_apart(tmp_path: Path) -> None:
    folder = written(written(tmp_path, "earth_science"), "pony")
    every = load("bright", folder)["test"]
    assert [p.qid for p in every] == ["earth_science-0", "earth_science-1", "pony-0", "pony-1"]
    assert {p.task for p in load("bright", folder, domains=["pony"])["test"]} == {"bright-pony"}
    with pytest.raises(DataError, match=r"no examples/robotics-\*; there are earth_science, pony; expected: doc"):
        load("bright", folder, domains=["robotics"])


def test_a_run_of_ones_own_is_the_first_stage_and_an_instruction_the_question(tmp_path: Path) -> None:
    folder, run = written(tmp_path / "b", "biology"), tmp_path / "gpt4.trec"
    order = ["the_post_itself.txt", "bees/honey_0.txt", "owls/lifespan_0.txt"]
    run.write_text("".join(f"0 Q0 {docid} {k} {9 - k} x\n" for k, docid in enumerate(order, 1)))
    (owls, bees) = load("bright", folder, run=str(run), top_k=2, instruction="Which passage helps?")["test"]
    assert [c.docid for c in owls.candidates] == order[1:], "the place of what is excluded is filled"
    assert bees.nothing_found and owls.instruction == "Which passage helps?"
    with pytest.raises(ConfigError, match="a first stage for one domain"):
        load("bright", written(folder, "pony"), run=str(run))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path, "biology")
    (folder / "documents" / "biology-00000-of-00001.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match=r"biology-00000-of-00001\.parquet: not a readable parquet file"):
        load("bright", folder)
    pq.write_table(pa.table({"id": ["a"]}), folder / "documents" / "biology-00000-of-00001.parquet")
    with pytest.raises(DataError, match="has no column 'content', but id"):
        load("bright", folder)
    twice = [*DOCUMENTS, {"id": DOCUMENTS[0]["id"], "content": "another"}]
    pq.write_table(pa.Table.from_pylist(twice), folder / "documents" / "biology-00000-of-00001.parquet")
    with pytest.raises(DataError, match="stands twice, with unequal texts"):
        load("bright", folder)
