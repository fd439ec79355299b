"""Problems of several sources as one set of splits, and their statistics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import small_problem
from r1ranker.baselines.notes import load_splits
from r1ranker.datasets import mini
from r1ranker.datasets.data import stats
from r1ranker.errors import ConfigError, DataError
from r1ranker.evaluation.systems import evaluate_systems
from r1ranker.io.config import DataConfig
from r1ranker.io.problems import write_jsonl
from r1ranker.problem import Problem
from r1ranker.prompts import build_prompt

MakeProblem = Callable[..., Problem]


@pytest.fixture
def own(tmp_path: Path, make_problem: MakeProblem) -> DataConfig:
    for split, n in (("train", 3), ("dev", 1), ("test", 2)):
        write_jsonl([make_problem(4, qid=f"{split}{i}") for i in range(n)], tmp_path / f"{split}.jsonl")
    return DataConfig(source="jsonl", path=tmp_path)


def test_sources_are_joined_split_by_split(own: DataConfig) -> None:
    splits = load_splits([own, DataConfig(source="mini", limit=1)])
    assert {split: len(problems) for split, problems in splits.items()} == {"train": 12, "dev": 10, "test": 11}
    assert {p.task for p in splits["test"]} == {"toy", *mini.TASKS}


def test_two_sources_may_not_name_a_task_alike(own: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"data.0 and data.1 both hold a task 'toy'"):
        load_splits([own, own])


def source(path: Path, problems_of: dict[str, list[Problem]], **settings: Any) -> DataConfig:
    path.mkdir()
    for split, problems in problems_of.items():
        write_jsonl(problems, path / f"{split}.jsonl")
    return DataConfig(source="jsonl", path=path, **settings)


def asking(task: str, *queries: str, **fields: Any) -> list[Problem]:
    named = {"_".join((task, *query.split(), *fields.get("history", ()))): query for query in queries}
    return [small_problem(4, qid=qid, task=task, query=query, **fields) for qid, query in named.items()]


def test_a_test_query_that_another_source_trains_on_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = source(
        tmp_path / "a", {"train": asking("a", "what is it"), "dev": asking("a", "who"), "test": asking("a", "why")}
    )
    two = source(tmp_path / "b", {"test": asking("b", "When", "What  IS it", "WHO", "where")}, splits=["test"])
    with caplog.at_level(logging.WARNING):
        splits = load_splits([one, two])
    assert [p.query for p in splits["test"]] == ["why", "When", "where"]
    assert "b: 2 of 4 test problems are left out: their queries stand in train or dev of data.0\n" in caplog.text
    held_out = one.model_copy(update={"splits": ("test",)})
    assert len(load_splits([held_out, two])["test"]) == 5, "what is not trained on may be tested on"


def test_a_task_of_which_every_test_query_is_trained_on_is_refused(tmp_path: Path) -> None:
    one = source(tmp_path / "a", {"train": asking("a", "what is it"), "test": asking("a", "why")})
    two = source(tmp_path / "b", {"test": asking("b", "what is it")})
    with pytest.raises(DataError, match=r"data\.1: every test query of task 'b' stands in train or dev of data\.0; .*"):
        load_splits([one, two])


def test_queries_that_say_nothing_of_the_problem_are_no_other_problem_again(tmp_path: Path) -> None:
    def next_item(task: str, query: str, *history: str) -> list[Problem]:
        return asking(task, query, history=history, scenario="recommendation", group="u1")

    one = source(tmp_path / "a", {"train": next_item("a", "next?", "Heat"), "test": asking("a", "next?")})
    two = source(tmp_path / "b", {"test": next_item("b", "next?", "Alien") + next_item("b", "", "Heat")})
    queries = [(p.task, p.query, p.history) for p in load_splits([one, two])["test"]]
    assert queries == [("a", "next?", ()), ("b", "next?", ("Alien",)), ("b", "", ("Heat",))]


def test_qids_of_sources_that_name_a_query_alike_begin_with_the_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def numbered(task: str, split: str) -> list[Problem]:
        words = f"{task} {split}"
        return [small_problem(4, qid=str(n), task=task, query=f"{words} {n}", group=f"{words} {n}") for n in (1, 2)]

    made = {"owls": ("train", "test"), "two words": ("dev", "test"), "foxes": ("dev",)}
    sources = [source(tmp_path / t, {split: numbered(t, split) for split in of}) for t, of in made.items()]
    with caplog.at_level(logging.INFO):
        splits = load_splits(sources)
    assert {split: [p.qid for p in problems] for split, problems in splits.items()} == {
        "train": ["1", "2"],
        "dev": ["two_words:1", "two_words:2", "foxes:1", "foxes:2"],
        "test": ["owls:1", "owls:2", "two_words:1", "two_words:2"],
    }
    assert [p.group for p in splits["test"]] == [p.query for p in splits["test"]], "groups are as they were"
    assert "data.1 names '2' in test as data.0 does: its qids begin with the task" in caplog.text
    for one in sources:
        assert [p.qid for p in load_splits([one])["test"]] in ([], ["1", "2"]), "alone as they are"
    evaluate_systems(["random", "oracle"], splits["test"], out=tmp_path / "out", baseline="random")


def test_the_options_of_a_source_are_passed_on(own: DataConfig) -> None:
    with pytest.raises(ConfigError, match="has no option 'size'"):
        load_splits([DataConfig(source="mini", options={"size": 3})])
    assert len(load_splits([own.model_copy(update={"limit": 1})])["train"]) == 1


def test_data_without_a_problem_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(DataError, match=r"test\.jsonl: is empty"):
        load_splits([DataConfig(source="jsonl", path=tmp_path)])
    with pytest.raises(DataError, match="holds no problem"):
        load_splits([])


def test_stats_count_pools_ties_groups_and_words(make_problem: MakeProblem) -> None:
    problems = [
        make_problem(4, qid="a", group="u1"),
        make_problem(2, qid="b", group="u1", gains={"d1": 1, "d2": 1}),
        make_problem(3, qid="c", gains={}),
    ]
    other = make_problem(5, qid="d", task="other")
    first, second = stats({"train": [*problems, other], "dev": [], "test": []})
    words = [len(build_prompt(p, p.identifiers, "iranker").text.split()) for p in problems]
    assert first == {
        "task": "toy",
        "split": "train",
        "problems": 3,
        "groups": 2,
        "pool": 3,
        "none relevant": 1,
        "several relevant": 1,
        "words in prompt": pytest.approx(sum(words) / 3),
    }
    assert (second["task"], second["problems"], second["pool"]) == ("other", 1, 5)


def test_only_a_source_that_asks_for_it_shows_its_prior() -> None:
    (shown,) = load_splits([DataConfig(limit=1, show=("prior",))])["dev"][:1]
    (plain,) = load_splits([DataConfig(limit=1)])["dev"][:1]
    assert sorted(candidate.note for candidate in shown.candidates) == sorted(f"popularity {k}" for k in range(1, 21))
    assert not any(candidate.note for candidate in plain.candidates)
    assert [c.text for c in shown.candidates] == [c.text for c in plain.candidates], "baselines read no notes"
