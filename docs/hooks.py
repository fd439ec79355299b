"""What makes a site of these files: README is its first page, links that lead out of the docs are plain text, and
formulas are MathML, which browsers show without a script."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

NOT_DOCS = re.compile(r"\[([^\]]+)\]\((?!docs/|https?:|#)[^)]*\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """README, with links as they are from here."""
    readme = Path(config["config_file_path"]).with_name("README.md").read_text(encoding="utf-8")
    text = re.sub(r'(\]\(|src=")docs/', r"\1", NOT_DOCS.sub(r"\1", readme))
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page without links to what is no part of the site: those that go up past the docs."""
    up = page.file.src_uri.count("/") + 1
    return re.sub(rf"\[([^\]]+)\]\((?:\.\./){{{up}}}[^)]*\)", r"\1", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """A page with its formulas as MathML."""
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    return convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline")
