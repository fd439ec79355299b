"""The scripts of `examples/` that need one library each, as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "package"),
    [
        ("langchain_reranker.py", "langchain_core"),
        ("haystack_pipeline.py", "haystack"),
        ("pyterrier_pipeline.py", "pyterrier"),
    ],
)
def test_an_example_prints_the_two_best(script: str, package: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(package)
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    told = capsys.readouterr().out
    assert sum(text in told for text in ("tractor", "barn owl lives", "eat mice")) == 2
