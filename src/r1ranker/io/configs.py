"""The configs in the package, by name. In: a name. Out: its file.

found(Path("smol"))     # .../r1ranker/configs/smol.yaml, where no file here is called `smol`
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from r1ranker.errors import ConfigError
from r1ranker.io.text import read_text

FOLDER = Path(str(files("r1ranker"))) / "configs"
START = ("search", "recommendation", "routing", "smol")
"""Those to begin with, in the order in which they are told."""


def names() -> list[str]:
    """The configs that runs may begin with: those in `START`, then the others by name."""
    others = {path.stem for path in FOLDER.glob("*.yaml")} - set(START)
    return [*START, *sorted(others)]


def found(path: Path) -> Path:
    """`path` itself; or the config of that name, where no such file exists.

    ConfigError for a name that is none, and for the file of one that has not been written out here.
    """
    if not path.exists() and str(path) in {f"{name}.yaml" for name in names()}:
        raise ConfigError(
            f"{path}: no such file; `r1ranker config init {path.stem}` writes it, and the name {path.stem} alone is "
            "the config in the package"
        )
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    return named(str(path))


def named(name: str) -> Path:
    """The config of a name. ConfigError names those there are."""
    if name not in names():
        raise ConfigError(f"{name}: neither a file nor a config here; there are {', '.join(names())}")
    return FOLDER / f"{name}.yaml"


def about(name: str) -> str:
    """The first sentence of its comment."""
    lines = read_text(named(name)).partition("\n#\n")[0].splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    return comment.partition(". ")[0].rstrip(".")
