"""The price file: what is read, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1ranker.backends.openai_ import OpenAIBackend
from r1ranker.backends.prices import read_prices
from r1ranker.errors import ConfigError, DataError


def test_prices_are_read_from_json_and_cached_input_costs_the_same_by_default(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"m": {"input": 2, "output": 3}}')
    assert read_prices(path).cost("m", 1, 1, 1) == pytest.approx(7e-6)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("m: {input: 1}", "m.output"),
        ("m: {input: -1, output: 1}", "m.input"),
        ("m: {input: 1, output: 1, out: 2}", "m.out"),
        ("- m", "the whole file"),
        ("m: {", "neither YAML nor JSON"),
        ("m: {input: .nan, output: 1}", "m.input"),
        ("m: {input: 1, output: .inf}", "m.output"),
        ("m: {input: 1, output: 1}\nm: {input: 2, output: 2}", "line 2: key 'm' already stands on line 1"),
    ],
)
def test_a_wrong_price_file_is_named_with_its_key(content: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(content)
    with pytest.raises(DataError, match=r"prices\.yaml") as error:
        read_prices(path)
    assert key in str(error.value)


def test_a_missing_price_file_or_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.yaml"):
        read_prices(tmp_path / "none.yaml")
    path = tmp_path / "prices.yaml"
    path.write_text("a: {input: 1, output: 1}\nb: {input: 1, output: 1}\n")
    with pytest.raises(ConfigError, match=r"no price for 'm'.*a, b"):
        OpenAIBackend("m", ["http://localhost:8000/v1"], prices=read_prices(path))
