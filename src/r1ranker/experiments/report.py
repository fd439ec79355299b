"""From what the experiments saved to Markdown. In: the folder of a run, or of several. Out: a page, or a page for each.

    save_tables(study.out, [Table("Cost", ("system", "calls"), [("iranker", "11.3")])])     # an experiment
    write_results(Path("runs/reproduce/mini-seed0"), Path("runs/reproduce/mini-seed0/results.md"))

A folder shows the tables that its experiment saved (`tables.json`), else the usual one of its `results.json`; either
may be compressed. Nothing is measured here, and nothing is written by hand: each part names its folder and what it was
made with. Next: `published`, which packs a run into `results/` and renders what no experiment here wrote.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from r1ranker.errors import DataError
from r1ranker.evaluation.results import AVERAGE, Comparison, Row, read_results
from r1ranker.evaluation.table import caption, lines_of, markdown_table, systems_of, wrap
from r1ranker.experiments import EXPERIMENTS
from r1ranker.io.documents import read_json
from r1ranker.io.files import write_whole
from r1ranker.io.provenance import provenance

TABLES = "tables.json"
ROWS = "results.json"
PACKED = ".gz"
MEASURES = ("MRR", "nDCG@5", "nDCG@10", "nDCG@20")
"""Shown where they were measured."""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are text; the first column names the row. `**` makes a cell bold."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def save_tables(folder: Path, tables: Sequence[Table], settings: dict[str, Any] | None = None) -> None:
    """Write `tables.json`; with `settings` also `provenance.json`, for tables that no evaluation stands behind."""
    content = json.loads(json.dumps([asdict(table) for table in tables]))
    if settings is not None and content != read(folder / TABLES):
        _write(folder / "provenance.json", provenance() | {"settings": settings})
    _write(folder / TABLES, content)


def results_table(
    title: str,
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    note: str = "",
    measures: Sequence[str] = MEASURES,
) -> Table:
    """Tasks by systems, by those of the measures that are known."""
    known = [measure for measure in measures if any(row.measure == measure for row in rows)]
    several = len(known) > 1
    lines = []
    for line in lines_of(rows, comparisons, known):
        cells = (f"**{cell.text}**" if cell.best else cell.text for cell in line.cells)
        lines.append((line.task, *([line.measure] if several else []), *cells))
    columns = ("task", *(["measure"] if several else []), *systems_of(rows))
    return Table(title, columns, lines, f"{caption(comparisons)}. {note}".strip())


def by_system(rows: Sequence[Row], measure: str) -> dict[str, Row]:
    """Rows of one measure by system; of the only task where there is no average."""
    tasks = dict.fromkeys(row.task for row in rows)
    task = AVERAGE if AVERAGE in tasks else next(iter(tasks), "")
    return {row.system: row for row in rows if (row.task, row.measure) == (task, measure)}


def read_comparisons(folder: Path) -> list[Comparison]:
    """The tests that an evaluation saved."""
    return [Comparison(**one) for one in read(folder / "comparisons.json") or []]


def tests_by_system(folder: Path, measure: str) -> dict[str, Comparison]:
    """The saved tests of one measure by system: those of the average, or of the only task."""
    tests = [one for one in read_comparisons(folder) if one.measure == measure]
    tasks = dict.fromkeys(one.task for one in tests)
    task = AVERAGE if AVERAGE in tasks else next(iter(tasks), "")
    return {one.system: one for one in tests if one.task == task}


def write_results(out: Path, target: Path) -> None:
    """Write `target` from all that lies below `out`, the folder of one run's experiments.

    Raises DataError where nothing does.
    """
    parts = parts_of(out)
    if not parts:
        raise DataError(f"{out} holds no results yet; run an experiment, such as `r1ranker reproduce main`")
    lines = [f"# Results in `{out.name}`", "", "Rendered by `r1ranker reproduce report` from the files it names.", ""]
    write_whole(target, "\n".join([*lines, *run_lines(parts, out, target, "##")]).rstrip() + "\n")


def run_lines(parts: Sequence[tuple[str, Path]], out: Path, target: Path, heading: str) -> list[str]:
    """The lines about one run on the page `target`; `out` is what its folders are named from."""
    lines: list[str] = []
    for name, of_experiment in groupby(parts, key=lambda part: part[0]):
        lines += [f"{heading} {name}", ""] if name else []
        for _, folder in of_experiment:
            lines += [*_part(folder, out, target, f"{heading}#" if name else heading), ""]
    return lines


def parts_of(run: Path) -> list[tuple[str, Path]]:
    """(experiment, folder) of all that there is to show of a run; ("", run) where it is one evaluation."""
    parts = [(name, folder) for name in EXPERIMENTS for folder in _folders(run / name)]
    return parts or [("", run)] * (found(run / ROWS) is not None)


def _folders(experiment: Path) -> list[Path]:
    """Folders with something to show, those above first."""
    kinds = [f"{name}{end}" for name in (TABLES, ROWS) for end in ("", PACKED)]
    folders = {path.parent for kind in kinds for path in experiment.rglob(kind)}
    return sorted(folders, key=lambda folder: (len(folder.parts), folder))


def _part(folder: Path, out: Path, target: Path, heading: str) -> list[str]:
    tables, rows = found(folder / TABLES), found(folder / ROWS)
    shown: list[str] = []
    if tables:
        for saved in read_json(tables):
            shown += markdown(Table(**saved), heading)
    elif rows:
        table = markdown_table(read_results(rows), read_comparisons(folder))
        shown += [f"{heading} {folder.relative_to(out)}", "", table]
    page = folder / "report.html"
    links = [f"[page]({os.path.relpath(page, target.parent)})"] if page.is_file() else []
    origin = read(folder / "provenance.json") or {}
    return [*shown, *origin_lines(origin, f"Folder `{folder.relative_to(out)}`", out, links)]


def markdown(table: Table, heading: str) -> list[str]:
    """The lines of a table, below its title as a heading of that depth and above its note."""
    right = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [f"{heading} {table.title}", "", *map(_pipes, [table.columns, right, *table.rows]), ""]
    return [*lines, *wrap(table.note), ""] if table.note else lines


def origin_lines(origin: dict[str, Any], what: str, out: Path, links: Sequence[str] = ()) -> list[str]:
    """One paragraph: `what` the rows are, and what they were made with."""
    settings = origin.get("settings", {})
    chosen = {key: settings.get(key) for key in ("scale", "model", "design", "think", "layout", "seed", "limit")}
    chosen["token budget"] = settings.get("ppo", {}).get("token_budget")
    facts = [
        what,
        ", ".join(f"{key} {_relative(value, out)}" for key, value in chosen.items() if value is not None),
        f"data {_relative(json.dumps(settings['data']), out)}" if "data" in settings else "",
        ", ".join(f"{name} {number}" for name, number in origin.get("versions", {}).items() if number),
        f"revision {origin['revision']}" if origin.get("revision") else "",
        _machine(origin.get("machine", {})),
        str(origin.get("time", "")),
        *links,
    ]
    return wrap(f"<sub>{'; '.join(filter(None, facts))}.</sub>")


def _machine(machine: dict[str, Any]) -> str:
    return f"{machine['cores']} cores, {machine['gpu'] or 'no GPU'}" if machine else ""


def _relative(value: Any, out: Path) -> str:
    """Text of a setting; paths below the folder of all experiments without it."""
    return str(value).replace(f"{out.resolve()}/", "").replace(f"{out}/", "")


def found(path: Path) -> Path | None:
    """The file itself, or what it is called when it is packed; None where neither is there."""
    return next((one for one in (path, path.with_name(f"{path.name}{PACKED}")) if one.is_file()), None)


def read(path: Path) -> Any:
    """The JSON of a file, packed or not; None where it is not there."""
    there = found(path)
    return read_json(there) if there else None


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Stars of a test in a bold cell would end it."""
    bold = len(text) > 4 and text.startswith("**") and text.endswith("**")
    text = f"**{text[2:-2].replace('*', chr(92) + '*')}**" if bold else text
    return text.replace("|", r"\|")
