"""Problems of several sources as one set of splits, and their statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from r1ranker.baselines.notes import load_splits
from r1ranker.datasets import mini
from r1ranker.datasets.data import stats
from r1ranker.errors import ConfigError, DataError
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
