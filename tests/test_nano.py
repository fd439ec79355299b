"""The embedded model as it is shipped."""

from __future__ import annotations

from importlib.resources import files

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from r1ranker import DRanker, IRanker, TransformersBackend
from r1ranker.datasets import load
from r1ranker.problem import by_task


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


def test_everyone_who_loads_nano_reads_with_the_tokenizer_it_was_taught_with() -> None:
    directory = files("r1ranker") / "nano"
    described = Tokenizer.from_file(str(directory / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(str(directory))
    for text in ("The Iron Galaxy (1995)\n[3] A short\tone", "Äußerst 2020-03, naïve"):
        assert loaded(text, add_special_tokens=False)["input_ids"] == described.encode(text).ids
    assert loaded.tokenize("The Galaxy") == loaded.tokenize("the galaxy")
