"""Naming vLLM as the engine, and what is said where it or its server lacks something."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fault_server import FaultServer
from r1ranker.backends.openai_ import OpenAIBackend
from r1ranker.cli import app
from r1ranker.errors import BackendError, ConfigError
from r1ranker.io.problems import write_jsonl
from r1ranker.problem import Problem
from r1ranker.ranking.rankers import DRanker
from r1ranker.ranking.spec import RankerSpec, parse_spec

MakeProblem = Callable[..., Problem]


def test_an_engine_is_a_setting_like_others() -> None:
    assert parse_spec(RankerSpec(), ["engine=vllm"]).engine == "vllm"
    with pytest.raises(ConfigError, match="engine"):
        parse_spec(RankerSpec(), ["engine=tensorflow"])


@pytest.mark.parametrize("setting", [{"base_urls": ("http://localhost:8000/v1",)}, {"device": "cpu"}])
def test_vllm_takes_neither_endpoint_nor_device(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="no base URL or device"):
        RankerSpec(engine="vllm", **setting).build()  # type: ignore[arg-type]


def test_where_vllm_is_missing_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(BackendError, match=r"pip install 'r1-ranker\[vllm\]'"):
        RankerSpec(engine="vllm").build()


def test_rank_takes_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_problem: MakeProblem) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    given, out = tmp_path / "problems.jsonl", tmp_path / "run.trec"
    write_jsonl([make_problem(3)], given)
    result = CliRunner().invoke(app, ["rank", str(given), "--out", str(out), "--engine", "vllm"])
    assert result.exit_code == 1
    assert "r1-ranker[vllm]" in result.output
    assert not out.exists()


def test_a_server_whose_model_has_no_chat_template_gives_the_remedy(make_problem: MakeProblem) -> None:
    said = "default chat template is no longer allowed, so you must provide a chat template"  # vLLM 0.32's words
    with FaultServer(refuse=400, message=said) as server:
        ranking = DRanker(OpenAIBackend("m", [server.base_url]), think=True).rank(make_problem(2))
    assert "start the server with the --chat-template that docs/ranking.md shows" in ranking.error
