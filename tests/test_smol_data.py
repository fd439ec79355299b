"""Sets made from others to train `smol` on: the right candidate is there and alone, and names give nothing away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r1ranker.io.problems import read_jsonl
from r1ranker.problem import Problem

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "smol_data.py"
WORDS = ("owl", "tractor", "violin", "glacier", "harbour", "lantern", "meadow", "pepper")
TOOLS = [f"{word.title()}Tool: Tells all about the {word}." for word in WORDS]


def record(task: str, number: int, texts: list[str], relevant: int, **fields: Any) -> dict[str, Any]:
    """A problem whose docids are section and place, as SelQA's are."""
    docids = [f"{task}{number}-{k}" for k in range(len(texts))]
    candidates = [{"docid": docid, "text": text} for docid, text in zip(docids, texts, strict=True)]
    shape = {"qid": f"{task}-{number}", "task": task, "scenario": "passage", "candidates": candidates}
    return shape | {"query": f"which {WORDS[number]} is it", "gains": {docids[relevant]: 1}} | fields


def sentences(word: str) -> list[str]:
    """A section of 100 words in ten sentences."""
    return [f"The {word} of part {k} has {' '.join(f'{word}{k}{n}' for n in range(6))} here." for k in range(10)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Problem]]:
    data = tmp_path_factory.mktemp("data")
    sets = {
        **{name: [record(name, k, TOOLS, k) for k in range(8)] for name in ("metatool", "nl2bash", "medquad")},
        "selqa": [record("selqa", k, sentences(word), k) for k, word in enumerate(WORDS)],
        "route": [
            record(
                "route-performance",
                k,
                [f"llm-{n} | {n}B | $0.{n} in, $0.{n} out per million tokens | A model" for n in range(1, 9)],
                k,
                scenario="routing",
                prior={f"route-performance{k}-{n}": float(n) for n in range(8)},
            )
            for k in range(8)
        ],
    }
    for name, records in sets.items():
        (data / name).mkdir()
        (data / name / "train.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records), encoding="utf-8")
    out = data / "made"
    packages = ["--packages", "r1ranker"]
    subprocess.run([sys.executable, str(SCRIPT), "--data", str(data), "--out", str(out), *packages], check=True)
    return {folder.name: read_jsonl(folder / "train.jsonl") for folder in sorted(out.iterdir())}


def test_every_set_is_made_and_its_problems_are_valid(made: dict[str, list[Problem]]) -> None:
    assert made.keys() == {"functions", "routes-unnamed", "sections", "shown", "tools-unnamed"}
    assert all(made.values())
    qids = [problem.qid for problems in made.values() for problem in problems]
    assert len(qids) == len(set(qids))


def test_a_tool_without_its_name_is_what_it_does(made: dict[str, list[Problem]]) -> None:
    texts = {candidate.text for problem in made["tools-unnamed"] for candidate in problem.candidates}
    assert texts == {f"Tells all about the {word}." for word in WORDS}


def test_mined_pools_hold_one_right_passage_and_none_that_holds_the_query(made: dict[str, list[Problem]]) -> None:
    for problem in [*made["sections"], *made["functions"]]:
        assert sum(problem.gains.values()) == 1
        assert not any(problem.query in candidate.text for candidate in problem.candidates)
        assert len({candidate.text for candidate in problem.candidates}) == len(problem.candidates)


def test_a_section_answers_the_question_whose_sentence_it_holds(made: dict[str, list[Problem]]) -> None:
    asked = {problem.query: problem for problem in made["sections"] if problem.query.startswith("which")}
    for k, word in enumerate(WORDS):
        problem = asked[f"which {word} is it"]
        (right,) = [c.text for c in problem.candidates if problem.gains.get(c.docid)]
        assert f"The {word} of part {k} " in right


def test_an_unnamed_llm_keeps_its_worth_and_its_place_among_those_left(made: dict[str, list[Problem]]) -> None:
    for problem in made["routes-unnamed"]:
        assert 4 <= len(problem.candidates) <= 8
        assert not any("llm-" in candidate.text or "A model" in candidate.text for candidate in problem.candidates)
        by_prior = sorted(problem.candidates, key=lambda c: -problem.prior[c.docid])
        assert [c.note for c in by_prior] == [f"average {k}" for k in range(1, len(by_prior) + 1)]
        assert all(c.docid in problem.gains for c in problem.candidates)


def test_places_of_bm25_stand_behind_what_is_shown(made: dict[str, list[Problem]]) -> None:
    for problem in made["shown"]:
        places = sorted(int(c.note.removeprefix("bm25 ")) for c in problem.candidates)
        assert places == list(range(1, len(problem.candidates) + 1))
