"""What other rankers say of each candidate: right places and problems, and nothing that it could not know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from r1ranker.baselines.notes import FOLDS, noted_by, with_notes
from r1ranker.errors import ConfigError
from r1ranker.io.problems import read_jsonl, write_jsonl
from r1ranker.problem import Candidate, Problem
from r1ranker.prompts import build_prompt


def choice(user: str, chosen: str, pool: str = "ABCDEFGH", task: str = "rec-movie") -> Problem:
    """A user who had one thing and chose another out of a pool of single letters."""
    candidates = tuple(Candidate(f"id{title}", title) for title in pool)
    prior = {f"id{title}": float(number) for number, title in enumerate(pool)}
    return Problem(f"{task}:{user}", task, "recommendation", candidates, history=("Z",), gains={f"id{chosen}": 1},
                   prior=prior, group=user)  # fmt: skip


def place(problem: Problem, title: str, ranker: str) -> int:
    note = next(c.note for c in problem.candidates if c.text == title)
    (found,) = (part for part in note.split(" | ") if part.startswith(f"{ranker} "))
    return int(found.rpartition(" ")[2])


def test_notes_are_places_in_the_pool_and_stand_behind_the_text() -> None:
    (noted,) = noted_by(["prior", "bm25"], [], [choice("u", "A", "ABC")])
    assert [place(noted, title, "popularity") for title in "ABC"] == [3, 2, 1]
    assert sorted(place(noted, title, "bm25") for title in "ABC") == [1, 2, 3]
    lines = build_prompt(noted, noted.identifiers, "iranker").text.split("\n")
    assert f"[1] A | popularity 3 | bm25 {place(noted, 'A', 'bm25')}" in lines
    assert [c.text for c in noted.candidates] == ["A", "B", "C"]


def test_a_ranker_may_be_called_otherwise() -> None:
    pool = choice("u", "A", "ABC")
    (plain,), (called,) = noted_by(["prior", "bm25"], [], [pool]), noted_by(["prior=first", "bm25=no. 2"], [], [pool])
    for one, other in zip(plain.candidates, called.candidates, strict=True):
        assert other.note == one.note.replace("popularity", "first").replace("bm25", "no. 2")
    with pytest.raises(ConfigError, match=r"'item-nn'.*item-knn"):
        with_notes({"train": [pool], "dev": [], "test": []}, ["item-nn=first"])


def test_a_specialist_knows_nothing_of_the_training_problem_that_it_ranks() -> None:
    pytest.importorskip("sklearn")
    # Everyone had Z. Each title is chosen by one user, so only a leak could put it first for that very user.
    titles = [chr(ord("A") + k) for k in range(24)]
    train = [choice(f"u{title}", title, "".join(titles)) for title in titles]
    noted = with_notes({"train": train, "dev": [], "test": []}, ["item-knn"])["train"]
    places = [place(problem, title, "item-knn") for problem, title in zip(noted, titles, strict=True)]
    assert min(places) > len(titles) // FOLDS, "unknown titles come last"
    assert [p.qid for p in noted] == [p.qid for p in train]


def test_dev_and_test_are_ranked_by_what_all_of_training_taught() -> None:
    pytest.importorskip("sklearn")
    train = [choice(f"u{k}", "C") for k in range(3)]
    noted = with_notes({"train": train, "dev": [choice("d", "A")], "test": [choice("t", "B")]}, ["item-knn"])
    assert [place(noted[split][0], "C", "item-knn") for split in ("dev", "test")] == [1, 1]


def test_a_ranker_of_another_scenario_is_left_out() -> None:
    question = replace(choice("u", "A", task="route"), scenario="routing", query="which?", history=())
    (noted,) = noted_by(["item-knn", "prior"], [], [question])
    assert {c.note.rpartition(" ")[0] for c in noted.candidates} == {"average"}


def test_an_unknown_ranker_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'item-nn'.*item-knn"):
        with_notes({"train": [], "dev": [], "test": []}, ["item-nn"])


def test_notes_survive_the_file(tmp_path: Path) -> None:
    (noted,) = noted_by(["prior"], [], [choice("u", "A")])
    file = tmp_path / "x.jsonl"
    write_jsonl([noted], file)
    assert read_jsonl(file) == [noted]
