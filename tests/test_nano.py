"""The embedded model as it is shipped."""

from __future__ import annotations

from importlib.resources import files

from r1ranker import DRanker, IRanker, TransformersBackend
from r1ranker.datasets import load
from r1ranker.evaluation.measures import by_task


def test_nano_ranks_one_problem_of_each_embedded_task_in_both_designs() -> None:
    backend = TransformersBackend.load("nano")
    problems = [of_task[0] for of_task in by_task(load("mini", limit=1)["test"]).values()]
    assert len(problems) == 9
    for ranker in (IRanker(backend, think=False), DRanker(backend, think=False)):
        for problem, ranking in zip(problems, ranker.rank_many(problems), strict=True):
            assert sorted(ranking.docids) == sorted(candidate.docid for candidate in problem.candidates)


def test_nano_is_a_few_megabytes() -> None:
    weights = files("r1ranker") / "nano" / "model.safetensors"
    assert len(weights.read_bytes()) < 10_000_000
