"""Configs in the package: by name, to begin with, and every key of them in one reference."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from pydantic import BaseModel
from typer.testing import CliRunner

from r1ranker.cli import app
from r1ranker.cli.config import pages
from r1ranker.datasets import SOURCES
from r1ranker.errors import ConfigError
from r1ranker.io import configs
from r1ranker.io.config import RunConfig, load_config
from r1ranker.io.config_reference import type_words, value_words

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "config.md"
ROW = re.compile(r"\| `([\w.-]+)` \|")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize("name", configs.names())
def test_every_config_is_valid_has_a_name_and_says_what_it_is(name: str) -> None:
    config = load_config(Path(name))
    config.check_training()
    assert len(configs.about(name)) > 20
    for data in config.data:
        assert data.options.keys() <= set(SOURCES[data.source].options), name


def test_a_file_goes_before_a_config_of_its_name_and_an_unknown_name_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smol").mkdir()  # a folder is no config
    assert load_config(Path("smol")).out == Path("runs/smol")
    (tmp_path / "mini").write_text("seed: 7\n")
    assert load_config(Path("mini")).seed == 7
    with pytest.raises(ConfigError, match=r"smoll: neither a file nor a config here; there are search, .*, smol"):
        load_config(Path("smoll"))
    with pytest.raises(ConfigError, match=r"cannot read the config smol\.yml"):
        load_config(Path("smol.yml"))


def test_init_writes_a_config_that_is_the_named_one_and_never_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in configs.START:
        done = run("config", "init", name, "--json", tmp_path / "r.json")
        assert done.exit_code == 0, done.output
        assert load_config(tmp_path / f"{name}.yaml") == load_config(Path(name))
        assert json.loads((tmp_path / "r.json").read_text()) == {"name": name, "config": f"{name}.yaml"}
        assert len(re.findall("#", (tmp_path / f"{name}.yaml").read_text())) > 8  # it is commented
    assert "give --overwrite to replace it" in run("config", "init", "smol").output
    assert run("config", "init", "smol", "--overwrite").exit_code == 0
    assert run("config", "init", "search", "--out", tmp_path / "deep" / "mine.yaml").exit_code == 0
    assert load_config(tmp_path / "deep" / "mine.yaml") == load_config(Path("search"))
    assert "there are search, recommendation, routing, smol" in run("config", "init", "serch").output
    assert all(name in run("config", "init").output for name in configs.names())


def test_a_config_to_begin_with_reads_what_it_is_for(tmp_path: Path) -> None:
    calls = [
        {"prompt": f"question {q}", "model": model, "score": (q + i) % 2, "cost": 0.1 * (i + 1)}
        for q in range(12)
        for i, model in enumerate("ab")
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    shop = tmp_path / "shop"
    shop.mkdir()
    rows = [f"u{user},{(user + place) % 40},{place}" for user in range(6) for place in range(8)]
    (shop / "interactions.csv").write_text("\n".join(["user,item,time", *rows]))
    (shop / "items.csv").write_text("\n".join(["item,title", *(f"{item},Book {item}" for item in range(40))]))
    trec = tmp_path / "trec"
    (trec / "qrels").mkdir(parents=True)
    (trec / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": f"owl {i}"}) + "\n" for i in range(9))
    )
    (trec / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": f"owl {i}"}) + "\n" for i in range(9))
    )
    for split, places in (("train", range(4)), ("dev", range(4, 6)), ("test", range(6, 9))):
        (trec / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in places)
        )
    for name, path in (("routing", tmp_path / "log.jsonl"), ("recommendation", shop), ("search", trec)):
        counts = tmp_path / f"{name}.json"
        settings = ["-s", f"data.0.path={path}"]
        if name == "recommendation":
            settings += ["-s", "data.0.options.pool_size=5"]
        done = run("data", "convert", tmp_path / name, "--config", name, *settings, "--json", counts)
        assert done.exit_code == 0, done.output
        assert all(json.loads(counts.read_text()).values()), name


def test_the_reference_in_the_docs_is_the_one_that_is_printed() -> None:
    assert REFERENCE.read_text() == pages() + "\n", "r1ranker config reference > docs/reference/config.md"


def test_the_reference_holds_every_key_with_its_default_and_bounds(tmp_path: Path) -> None:
    found = set(ROW.findall(pages()))

    def keys(values: Any, prefix: str = "") -> set[str]:
        if isinstance(values, BaseModel):
            parts = {f"{prefix}{name}": getattr(values, name) for name in type(values).model_fields}
            return set(parts).union(*(keys(value, f"{name}.") for name, value in parts.items()))
        if isinstance(values, tuple) and values and isinstance(values[0], BaseModel):
            return keys(values[0], f"{prefix}0.")
        return set()

    known = keys(load_config(None, ["warmstart.scratch={}"]))
    assert known <= found and "warmstart.scratch.vocab" in known and "data.0.limit" in known
    assert "| `ppo.clip` | number | `0.2` | > 0, < 1 |" in pages()
    assert "| `ppo.token_budget` | whole number, or null | `null` | >= 1 |" in pages()
    assert "| `csv` | `negatives` | `uniform`, `popularity` | `uniform` |" in pages()
    done = run("config", "reference", "--json", tmp_path / "schema.json")
    assert done.output.strip() == pages().strip()
    assert json.loads((tmp_path / "schema.json").read_text())["properties"].keys() == RunConfig.model_fields.keys()


@pytest.mark.parametrize("value", [None, True, False, 3, 0.25, 1e-6, "text", (), ("a", "b"), [1, 2]])
def test_a_default_is_written_as_yaml_reads_it(value: Any) -> None:
    read = yaml.safe_load(value_words(value))
    assert (float(read) if isinstance(value, float) else read) == (list(value) if isinstance(value, tuple) else value)


def test_types_are_told_in_words() -> None:
    assert type_words(int | None) == "whole number, or null"
    assert type_words(tuple[str, ...]) == "list of text"
    assert type_words(dict[str, Any]) == "keys and values"
    assert type_words(Path) == "path"


def test_a_config_that_was_not_written_out_says_how_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"mini.yaml: no such file; `r1ranker config init mini` writes it"):
        load_config(Path("mini.yaml"))
