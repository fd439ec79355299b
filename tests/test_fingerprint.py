"""Fingerprints: what changes them, what does not, and that what differs has a name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from r1ranker.backends.models import NANO, resolve
from r1ranker.io.fingerprint import differing, fingerprint_model, fingerprint_problems
from r1ranker.problem import Candidate, Problem

MakeProblem = Callable[..., Problem]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve(NANO), tmp_path / "model"))


def other_weight(model: Path) -> None:
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def other_setting(model: Path, key: str, value: object) -> None:
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": other_weight,
    "tokenizer": lambda model: other_setting(model, "model_max_length", 77),
    "chat template": lambda model: (model / "chat_template.jinja").write_text("{{ messages }}"),
    "network": lambda model: (model / "config.json").write_text("{}"),
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_changed_part_of_a_model_is_named(part: str, model: Path) -> None:
    was = fingerprint_model(str(model))
    CHANGES[part](model)
    assert differing(was, fingerprint_model(str(model))) == [part]


def test_a_template_in_the_tokenizers_settings_is_a_template(model: Path) -> None:
    was = fingerprint_model(str(model))
    other_setting(model, "chat_template", "{{ messages }}")
    assert differing(was, fingerprint_model(str(model))) == ["chat template"]


def test_a_copy_and_a_later_time_are_the_same_model(model: Path) -> None:
    os.utime(model / "model.safetensors", (1, 1))
    (model / "README.md").write_text("a card")
    assert fingerprint_model(str(model)) == fingerprint_model(resolve(NANO))


def test_a_model_that_is_not_here_has_no_fingerprint() -> None:
    assert fingerprint_model("nobody/nothing-of-this-name") == {} == fingerprint_model("gpt-9 (preview)")


def test_a_hub_model_is_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    repo = tmp_path / "models--org--name"
    for file, content in ((repo / "refs" / "main", commit), (repo / "snapshots" / commit / "config.json", "{}")):
        file.parent.mkdir(parents=True)
        file.write_text(content)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert fingerprint_model("org/name") == {"revision": commit}


def test_any_change_of_a_problem_or_their_order_changes_their_fingerprint(make_problem: MakeProblem) -> None:
    first, second = make_problem(3), make_problem(3, qid="q2")
    other = make_problem(3, candidates=(Candidate("d1", "another text"), *first.candidates[1:]))
    ways = [
        {"train": [first, second]},
        {"train": [second, first]},
        {"train": [first], "dev": [second]},
        {"train": [other, second]},
        {"train": [make_problem(3, gains={}), second]},
    ]
    assert len({fingerprint_problems(way) for way in ways}) == len(ways)
    assert fingerprint_problems(ways[0]) == fingerprint_problems(
        {"train": [make_problem(3), make_problem(3, qid="q2")]}
    )
