"""The user's own problems: round trip, and every fault told with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1ranker.datasets.common import check_disjoint
from r1ranker.datasets.jsonl import load, validate_jsonl
from r1ranker.errors import DataError
from r1ranker.io.problems import read_jsonl, write_jsonl
from r1ranker.problem import Candidate, Problem
from r1ranker.scenarios import SCENARIOS

GOOD: dict[str, Any] = {
    "qid": "q1",
    "task": "passage-2",
    "scenario": "passage",
    "query": "why",
    "candidates": [{"docid": "a", "text": "because"}, {"docid": "b", "text": "no"}],
    "gains": {"a": 1},
}

texts = st.text(st.characters(codec="utf-8"), max_size=8)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5).filter(lambda name: name.split() == [name])


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    docids = draw(st.lists(names, unique=True, min_size=1, max_size=4))
    relevant_at = draw(st.integers(1, 3))
    return Problem(
        qid=draw(names),
        task=f"t{relevant_at}",  # measures need one value within a task
        scenario=draw(st.sampled_from(list(SCENARIOS))),
        candidates=tuple(Candidate(docid, draw(texts)) for docid in docids),
        query=draw(names),
        history=tuple(draw(st.lists(texts, max_size=3))),
        objective=draw(texts),
        instruction=draw(texts),
        gains=draw(st.dictionaries(st.sampled_from(docids), st.integers(0, 5))),
        relevant_at=relevant_at,
        prior=draw(st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False))),
        group=draw(names),
    )


@settings(max_examples=60, deadline=None)
@given(made=st.lists(problems(), min_size=1, max_size=4, unique_by=lambda problem: problem.qid))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, made: list[Problem]) -> None:
    path = tmp_path_factory.mktemp("round") / "p.jsonl"
    write_jsonl(made, path)
    assert read_jsonl(path) == made


def write(path: Path, *records: Any) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def changed(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in {**GOOD, "qid": "q2", **fields}.items() if value is not None}


def test_a_good_file_has_no_messages(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", GOOD, "", changed())
    assert validate_jsonl(path) == []
    assert [p.group for p in read_jsonl(path)] == ["q1", "q2"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{not json", "not JSON (Expecting property name enclosed in double quotes"),
        ("[1]", "a list, not an object; write one JSON object per line"),
        (changed(qery="x"), "unknown key 'qery'; did you mean 'query'?"),
        (changed(zzzz=1), "unknown key 'zzzz'; remove it, or use one of qid, task"),
        (changed(task=None), "field 'task' is missing; write it as a string"),
        (changed(query=3), "field 'query' has a wrong type or form; write it as a string"),
        (changed(history="x"), "write it as a list of strings"),
        (changed(candidates=[{"docid": "a"}]), 'write it as a list of {"docid": string, "text": string}'),
        (changed(gains={"a": 1.5}), "write it as an object of whole numbers by docid"),
        (changed(gains={"a": True}), "write it as an object of whole numbers by docid"),
        (changed(prior={"a": float("nan")}), "NaN is not a finite number"),
        (changed(prior={"a": 10**400}), "write it as an object of finite numbers by docid"),
        (json.dumps(changed()).replace('"gains": {', '"prior": {"a": 1e999}, "gains": {'), "1e999 is not a finite"),
        (json.dumps(changed()).replace('"a": 1', '"a": 1, "a": 2'), "key 'a' stands twice in one object"),
        (json.dumps(changed(query="cut \ud83d off")), "half an emoji"),
        ("[" * 100_000, "nested too deeply"),
        (changed(task="average"), "a task cannot be named 'average'"),
        (changed(relevant_at=2, gains={"a": 2}), "relevant_at is 2, but 1 on line 1"),
        (changed(relevant_at=0), "relevant_at must be at least 1"),
        (changed(relevant_at=2**40), "relevant_at must be <= 1000000"),
        (changed(gains={"a": 2**33}), "gains must be <= 1000000"),
        (changed(qid="q 2"), "qid or docid 'q 2' of query 'q 2' is empty or has whitespace"),
        (changed(candidates=[{"docid": "GPT 4", "text": "x"}]), "'GPT 4' of query 'q2' is empty or has whitespace"),
        (changed(relevant_at="2"), "write it as a whole number"),
        (changed(qid=""), "field 'qid' is empty"),
        (changed(qid="q1"), "qid 'q1' already stands on line 1; give each"),
        (changed(qid="q1", task="other"), "qid 'q1' already stands on line 1; give each"),
        (changed(scenario="shop"), "scenario 'shop' is not one of recommendation, routing, passage"),
        (changed(candidates=[]), "has no candidates"),
        (changed(query=None), "has no query; give the model a context"),
        (changed(gains={"a": -1}), "gains must be >= 0"),
        (changed(candidates=[{"docid": "a", "text": "x"}] * 2), "docid 'a' occurs more than once"),
    ],
)
def test_faults_are_told_with_file_line_and_remedy(tmp_path: Path, second: Any, message: str) -> None:
    path = write(tmp_path / "p.jsonl", GOOD, second)
    (found,) = validate_jsonl(path)
    assert found.startswith(f"{path}:2: ")
    assert message in found
    with pytest.raises(DataError) as error:
        read_jsonl(path)
    assert str(error.value) == found


def test_an_empty_pool_has_to_be_meant(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    empty = Problem("q1", "t", "passage", (), query="why", gains={"a": 1}, nothing_found=True)
    write_jsonl([empty], path)
    assert read_jsonl(path) == [empty]
    with pytest.raises(DataError, match="nothing_found is for an empty pool"):
        read_jsonl(write(path, changed(nothing_found=True)))


def test_notes_do_not_stop_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", changed(gains={"a": 1, "far": 2}), changed(qid="q3", gains={"b": 0}))
    outside, unlabelled = validate_jsonl(path)
    assert outside.startswith(f"{path}:1: note: gains name 1 docids outside the pool, such as 'far'")
    assert unlabelled.startswith(f"{path}:2: note: no candidate in the pool has a gain >= relevant_at (1)")
    assert len(read_jsonl(path)) == 2


def test_all_faults_are_listed_and_reading_counts_them(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", changed(task=None, qery="x"), "{")
    assert len(validate_jsonl(path)) == 3
    with pytest.raises(DataError, match=r":1: unknown key .* \(and 2 more; `r1ranker data validate` lists them\)"):
        read_jsonl(path)


def test_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n{\xff}\n")
    (found,) = validate_jsonl(path)
    assert found.startswith(f"{path}:2: not UTF-8")


def test_a_group_in_two_files_is_a_fault_of_the_directory(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {**GOOD, "group": "u1"})
    write(tmp_path / "test.jsonl", GOOD, changed(group="u1"))
    (found,) = validate_jsonl(tmp_path)
    assert found.startswith(f"{tmp_path / 'test.jsonl'}:2: group 'u1' also stands in train.jsonl; keep all")
    with pytest.raises(DataError, match=r"group 'u1'"):
        load(tmp_path)


def test_load_a_directory_or_split_one_file_by_group(tmp_path: Path) -> None:
    records = [changed(qid=f"q{n}", group=f"g{n // 2}") for n in range(40)]
    splits = load(write(tmp_path / "all.jsonl", *records), limit=20)
    check_disjoint(splits)
    assert [len(splits[split]) for split in ("train", "dev", "test")] == [20, 4, 8]
    with pytest.raises(DataError, match=r"has no train\.jsonl, dev\.jsonl or test\.jsonl"):
        load(tmp_path)
    write(tmp_path / "test.jsonl", *records)
    assert {split: len(found) for split, found in load(tmp_path).items()} == {
        "train": 0,
        "dev": 0,
        "test": 40,
    }


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.jsonl"])
def test_compressed_problems_are_read_and_damaged_ones_are_a_fault(tmp_path: Path, name: str) -> None:
    whole = gzip.compress((json.dumps(GOOD) + "\n" + json.dumps(changed()) + "\n").encode())
    (tmp_path / name).write_bytes(whole)
    assert [p.qid for p in read_jsonl(tmp_path / name)] == ["q1", "q2"]
    (tmp_path / "train.jsonl.gz").write_bytes(whole)
    assert [p.qid for p in load(tmp_path)["train"]] == ["q1", "q2"]
    (tmp_path / name).write_bytes(whole[:-9])
    (found,) = validate_jsonl(tmp_path / name)
    assert "damaged or cut off" in found


def test_an_empty_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("\n")
    for path in (tmp_path, tmp_path / "test.jsonl"):
        (found,) = validate_jsonl(path)
        assert found.startswith(f"{tmp_path / 'test.jsonl'}: is empty")
        with pytest.raises(DataError, match="is empty"):
            load(path)


def test_files_that_lie_beside_are_no_data_and_two_of_one_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", GOOD)
    for name in ("._test.jsonl", "test.jsonl~", "test.jsonl.bak"):
        (tmp_path / name).write_text("not data")
    assert len(load(tmp_path)["test"]) == 1
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match=r"has both test\.jsonl and test\.jsonl\.gz; keep the one to be read"):
        load(tmp_path)
