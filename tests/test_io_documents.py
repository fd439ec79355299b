"""JSON and YAML lose nothing: a key that stands twice, a number that is not finite, half a character are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r1ranker.errors import DataError
from r1ranker.io.documents import identifier_of, parse_json, parse_yaml, read_json, read_json_lines, text_of


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"b": 1, "b": 2}}', "key 'b' stands twice"),
        ("[NaN]", "NaN is not a finite number"),
        ("[-Infinity]", "-Infinity is not a finite number"),
        ("[1e999]", "1e999 is not a finite number"),
        ('["cut \\ud83d off"]', "half an emoji"),
        ('["\\udc00"]', "half an emoji"),
        ("[" * 100_000, "nested too deeply"),
        ("[1" + "0" * 5000 + "]", "integer"),
        ("{", "Expecting"),
    ],
)
def test_json_that_would_lose_something_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)
    (tmp_path / "x").write_text(f"{{}}\n{text}\n")
    with pytest.raises(DataError, match=r"x:2: not JSON \("):
        list(read_json_lines(tmp_path / "x"))
    (tmp_path / "x").write_text(text)
    with pytest.raises(DataError, match="x: not JSON: "):
        read_json(tmp_path / "x")


def test_json_that_is_whole_is_read() -> None:
    assert parse_json('{"a": ["\\ud83d\\ude00", "\\\\ud83d", 1.5, null]}') == {"a": ["😀", "\\ud83d", 1.5, None]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5: key 'c' already stands on line 3"),
        ("{a: 1, 'a': 2}", "line 1: key 'a' already stands on line 1"),
        ("a: [", "while parsing"),
        ("a: 2001-99-99", "month"),
        ("{[a]: b, {c: d}: e}", "unhashable"),
        ("[" * 5000, "nested too deeply|while parsing"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_yaml_that_would_lose_something_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


def test_yaml_may_merge_and_override_what_another_mapping_holds() -> None:
    assert parse_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\nz: {a: 1}\n")["y"] == {"a": 3, "b": 2}


@pytest.mark.parametrize(("value", "text"), [(None, ""), ("a", "a"), (7, "7"), (1.5, "1.5")])
def test_a_text_that_is_null_is_empty(value: Any, text: str) -> None:
    assert text_of(value, "x:1: the text") == text


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"x:1: the text is a .*, not a text"):
        text_of(value, "x:1: the text")


def test_identifiers_are_text_whatever_they_look_like() -> None:
    assert [identifier_of(value, "id") for value in ("007", 7, " a b ")] == ["007", "7", "a b"]
    for value in (None, True, 1.0, "", " ", ["a"]):
        with pytest.raises(DataError, match=r"id is .*, not an identifier"):
            identifier_of(value, "id")
