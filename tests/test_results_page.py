"""One page about many runs, rendered from their saved files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1ranker.errors import DataError
from r1ranker.evaluation.results import Row, write_csv
from r1ranker.experiments.report import Table, page_of, save_tables, write_results

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.skipif(not DOCS.is_dir(), reason="needs a checkout")
def test_the_published_page_is_what_the_command_writes(tmp_path: Path) -> None:
    assert page_of(DOCS / "results") == DOCS / "results.md"
    write_results(DOCS / "results", tmp_path / "results.md")
    fresh = (tmp_path / "results.md").read_text()
    assert fresh == (DOCS / "results.md").read_text(), "run `r1ranker reproduce report --out docs/results`"


def test_several_runs_have_one_page_beside_their_folder_and_one_run_a_page_in_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    save_tables(runs / "first" / "main", [Table("Cost", ("system", "calls"), [("iranker", "11")])])
    write_csv(runs / "second" / "results.csv", [Row("t", "prior", "test", "MRR", 0.5, 9, 0.4, 0.6)])
    (runs / "third").mkdir()
    assert page_of(runs) == tmp_path / "runs.md" and page_of(runs / "first") == runs / "first" / "results.md"
    write_results(runs, page_of(runs))
    text = page_of(runs).read_text()
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("- ")] == ["- [first](#first)", "- [second](#second)"]
    headings = ["## first", "### main", "#### Cost", "## second", "#### second"]
    assert [line for line in lines if line.startswith("##")] == headings
    assert "0.500" in text and "prior" in text


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    save_tables(tmp_path / "main", [Table("Cost", ("system", "calls"), [("iranker", "11")])])
    whole = (tmp_path / "main" / "tables.json").read_bytes()
    (tmp_path / "main" / "tables.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"main/tables\.json: not JSON"):
        write_results(tmp_path, tmp_path / "results.md")
