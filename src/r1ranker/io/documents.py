"""JSON and YAML, read so that nothing is lost. In: text or a path. Out: plain values.

Refused beside what is no JSON or YAML: a key that stands twice (the last one would win in silence), numbers that are
not finite, and half a surrogate pair, which no file can hold as UTF-8.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from r1ranker.errors import DataError
from r1ranker.io.text import read_lines, read_text

_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""How half a surrogate pair, or a whole one, begins in JSON."""


def parse_json(text: str) -> Any:
    """The value of one JSON document. ValueError says what is wrong with it."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_number, parse_float=_number)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half an emoji, or of another pair of surrogates: the text was cut inside it") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def read_json(path: Path) -> Any:
    """The value of a file that holds one JSON document. Raises DataError."""
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line with text. Raises DataError."""
    for number, line in read_lines(path):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); write one JSON object per line") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: a {type(record).__name__}, not an object; write one object per line")
        yield number, record


def parse_yaml(text: str) -> Any:
    """The value of one YAML document. ValueError says what is wrong with it, and on which line."""
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None


def text_of(value: object, where: str) -> str:
    """A text field: what is null or left out is empty, a number is its digits. `where` begins the DataError."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where} is a {type(value).__name__}, not a text")
    return str(value)


def identifier_of(value: object, where: str) -> str:
    """An identifier: a text that is not empty, or a whole number as its digits. `where` begins the DataError."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"{where} is {value!r}, not an identifier; write it as a text")
    return str(value).strip()


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise ValueError(f"line {line}: key {key.value!r} already stands on line {lines[key.value]}")
                lines[key.value] = line
        return node


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise ValueError(f"key {next(key for key in times if times[key] > 1)!r} stands twice in one object")
    return record


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
