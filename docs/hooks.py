"""What makes a site of these files: README is its first page, and links that lead out of the docs are plain text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:results|src|configs|benchmarks|tests)[^)]*\)")


def on_files(files: Files, config: Any) -> Files:
    """README, with links as they are from here."""
    readme = Path(config["config_file_path"]).with_name("README.md").read_text(encoding="utf-8")
    text = re.sub(r'(\]\(|src=")docs/', r"\1", readme)
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page without links to what is no part of the site."""
    return OUTSIDE.sub(r"\1", markdown)
