"""The docs as text: lines that fit, links that lead somewhere, a reference that is the code's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1ranker.cli.reference import commands_page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted(DOCS.rglob("*.md"))] if DOCS.is_dir() else []
WRITTEN = [page for page in PAGES if page.parent != DOCS / "results"]
"""By hand, or from short texts in the code."""
WIDTH = 120
LINK = re.compile(r"(?:\]\(|src=\")([^)\"\s]+)")
LOADED = re.compile(r'<(?:script|img|iframe)[^>]*\ssrc="https?:|<link(?![^>]*canonical)[^>]*\shref="https?:')
FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(rf"{FENCED.pattern}|`[^`\n]*`", FENCED.flags)

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="needs a checkout")


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_outside_tables_and_data_is_too_long_to_read(page: Path) -> None:
    lines = re.sub(r"^```json.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()
    long = [line for line in lines if len(line) > WIDTH and not line.lstrip().startswith("|")]
    assert not long, f"longer than {WIDTH} characters"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(CODE.sub("", page.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name} links {link}"


def _anchors(page: Path) -> Iterator[str]:
    """What the headings of a page are called in links."""
    for line in FENCED.sub("", page.read_text()).splitlines():
        if line.startswith("#"):
            yield re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")


def test_the_reference_is_made_from_the_commands() -> None:
    page = DOCS / "reference" / "commands.md"
    assert page.read_text() == commands_page(), "run `python -m r1ranker.cli.reference docs/reference/commands.md`"


def test_the_reference_has_every_command_and_what_it_takes() -> None:
    options = ("| `--model` | text | `nano` |", "`PROBLEMS`", "`--think`, `--no-think`", "whole number, at least 1")
    for text in ("## r1ranker data convert", "Example: `r1ranker train", *options):
        assert text in commands_page()


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for library in ("latex2mathml", "mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(library)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # what mkdocs-material says of mkdocs' next version
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    pages = {str(path.relative_to(tmp_path / "site")): path.read_text() for path in tmp_path.rglob("*.html")}
    assert "guides/search/index.html" in pages
    assert not [name for name, page in pages.items() if LOADED.search(page)]
    method = pages["algorithm/index.html"]
    assert "<mfrac>" in method and "\\frac" not in method, "formulas that a browser shows without a script"
