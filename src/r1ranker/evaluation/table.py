"""Results as a table of tasks by systems, for a terminal and for Markdown. In: `Row`s and `Comparison`s.

    Console().print(results_table(rows, comparisons))

A cell is the mean, half the width of its 95 % interval, and stars of the paired test against the baseline. A system
whose figures are not what they seem is marked, and the lines below say why (`warnings_of`).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import HEAVY_HEAD
from rich.table import Table
from rich.text import Text

from r1ranker.errors import DataError
from r1ranker.evaluation.results import AVERAGE, UNASKED, Comparison, Row

SYSTEMS = ("random", "prior", "bm25", "oracle", "base-direct", "base-iterative", "dranker", "iranker")
"""Known systems in the order of columns; others follow as they come."""
CEILING = "oracle"
SHOWN = ("MRR", "nDCG@10")
MARK = "†"
"""Behind the name of a system that `warnings_of` has something to say about."""
MANY_BROKEN = 0.1
"""From this share of broken answers on, a ranking is more what the parser made of them than what the model said."""
WIDTH = 118
"""Of a paragraph's lines in a page."""
_OPENS = re.compile(r" (?=(?:[-+*>]|#+|\d+[.)]) )")
"""The space before what would open a list, a quotation or a heading at the beginning of a line."""


@dataclass(frozen=True, slots=True)
class Cell:
    """`text` without emphasis; `best` of its line, the oracle aside."""

    text: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One task and measure; a cell for each system."""

    task: str
    measure: str
    cells: tuple[Cell, ...]


def results_table(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison] = (),
    measures: Sequence[str] = SHOWN,
    *,
    intervals: bool = True,
) -> Table:
    """A rich table; the best system of each line is bold. Without intervals it fits a terminal of 80 columns."""
    box, padding = (HEAVY_HEAD, (0, 1)) if intervals else (None, (0, 1, 0, 0))
    warned = warnings_of(rows)
    below = [caption(comparisons, intervals=intervals), *(text for of_system in warned.values() for text in of_system)]
    legend = "\n".join(below)
    table = Table(caption=Text(legend), caption_justify="left", box=box, padding=padding)
    table.add_column("task", no_wrap=True)
    table.add_column("measure", no_wrap=True)
    for system in systems_of(rows):
        heading = system.replace("-", " ") + f" {MARK}" * (system in warned)
        table.add_column(Text(heading), justify="right", no_wrap=intervals)
    previous = ""
    for line in lines_of(rows, comparisons, measures, intervals=intervals):
        if previous and line.task != previous:
            table.add_section()
        cells = [Text(cell.text, style="bold" if cell.best else "") for cell in line.cells]
        table.add_row(Text("" if line.task == previous else line.task), line.measure, *cells)
        previous = line.task
    return table


def markdown_table(rows: Sequence[Row], comparisons: Sequence[Comparison] = (), measures: Sequence[str] = SHOWN) -> str:
    """The same table in Markdown, its legend below."""
    warned = warnings_of(rows)
    systems = [system + f" {MARK}" * (system in warned) for system in systems_of(rows)]
    header = ["task", "measure", *map(_escaped, systems)]
    lines = [_pipes(header), _pipes(["---", "---", *["---:"] * (len(header) - 2)])]
    for line in lines_of(rows, comparisons, measures):
        cells = [f"**{_escaped(c.text)}**" if c.best else _escaped(c.text) for c in line.cells]
        lines.append(_pipes([_escaped(line.task), line.measure, *cells]))
    below = [caption(comparisons), *(text for of_system in warned.values() for text in of_system)]
    return "\n".join([*lines, *(part for text in below for part in ("", *wrap(_escaped(text)))), ""])


def wrap(text: str) -> list[str]:
    """Lines of a paragraph, none of which begins as a list or a heading would."""
    held = _OPENS.sub("\0", text)
    lines = textwrap.wrap(held, WIDTH, break_on_hyphens=False, break_long_words=False)
    return [line.replace("\0", " ") for line in lines]


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A rich table of differences to a baseline; the last two columns are p-values, before and after Holm."""
    names = ("task", "system", "measure", "difference", "relative", "n", "p", "p (Holm)")
    table = Table(*names, caption="; ".join(_stars_mean(comparisons)), caption_justify="left")
    for one in comparisons:
        difference = f"{one.difference:+.3f} {stars(one)}".rstrip()
        relative = "" if one.relative is None else f"{one.relative:+.1%}"
        numbers = (difference, relative, str(one.n), f"{one.p:.4f}", f"{one.p_holm:.4f}")
        table.add_row(one.task, f"{one.system} - {one.baseline}", one.measure, *numbers)
    return table


def lines_of(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    measures: Sequence[str] = SHOWN,
    *,
    intervals: bool = True,
) -> list[Line]:
    """Lines of tasks in order of appearance; the average last, where it is of more than one task."""
    splits = sorted({row.split for row in rows})
    if len(splits) > 1:
        raise DataError(f"a table shows one split, these rows are of {', '.join(splits)}; select one")
    known = {(row.task, row.measure, row.system): row for row in rows}
    tests = {(one.task, one.measure, one.system): one for one in comparisons}
    systems = systems_of(rows)
    lines: list[Line] = []
    for task in tasks_of(rows):
        for measure in measures:
            found = {system: known.get((task, measure, system)) for system in systems}
            best = max((row.value for row in found.values() if row and row.system != CEILING), default=None)
            cells = [
                Cell(_cell(row, tests.get((task, measure, system)), intervals), row.value == best and system != CEILING)
                if row
                else Cell()
                for system, row in found.items()
            ]
            lines.append(Line(task, measure, tuple(cells)))
    return lines


def warnings_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """By system, what a reader must know before its figures: broken answers, queries not ranked or not asked about."""
    found: dict[str, list[str]] = {}
    known = {(row.system, row.task, row.measure): row for row in rows}
    for system in systems_of(rows):
        of_measure = {
            measure: [row for task in tasks_of(rows) if task != AVERAGE and (row := known.get((system, task, measure)))]
            for measure in (UNASKED, "failed", "broken")
        }
        counts = {name: sum(round(row.value * row.n) for row in of_tasks) for name, of_tasks in of_measure.items()}
        totals = {name: sum(row.n for row in of_tasks) for name, of_tasks in of_measure.items()}
        broken = [row for row in of_measure["broken"] if row.value > MANY_BROKEN]
        told = []
        if counts[UNASKED]:
            told.append(
                f"asked nothing about {counts[UNASKED]} of {totals[UNASKED]} queries; there its order is random"
            )
        if counts["failed"]:
            told.append(f"has no ranking of {counts['failed']} of {totals['failed']} queries, which count 0")
        if broken:
            shares = ", ".join(f"{percent(row.value)} on {row.task}" for row in broken)
            told.append(f"gave many broken answers, whose order was filled in for it: {shares}")
        if told:
            found[system] = [f"{MARK} {system} {text}" for text in told]
    return found


def percent(share: float) -> str:
    """A share as a percentage that reads as one; what is not 0 or 100 % never reads so."""
    value = 100 * share
    if value and abs(value) < 0.1:
        return "<0.1 %"
    if 99.9 < value < 100:
        return ">99.9 %"
    return f"{value:.1f}".removesuffix(".0") + " %"


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """Tasks in order of appearance; the average last, where it is of more than one task."""
    tasks = list(dict.fromkeys(row.task for row in rows if row.task != AVERAGE))
    return [*tasks, AVERAGE] if len(tasks) > 1 and any(row.task == AVERAGE for row in rows) else tasks


def systems_of(rows: Sequence[Row]) -> list[str]:
    """Systems that have rows, the known ones first."""
    present = dict.fromkeys(row.system for row in rows)
    return [s for s in SYSTEMS if s in present] + [s for s in present if s not in SYSTEMS]


def stars(test: Comparison | None) -> str:
    """`**` p < 0.01, `*` p < 0.05 (Holm-adjusted), with `↓` before them for worse than the baseline."""
    if test is None or test.p_holm >= 0.05:
        return ""
    return ("↓" if test.difference < 0 else "") + ("**" if test.p_holm < 0.01 else "*")


def caption(comparisons: Sequence[Comparison], *, intervals: bool = True) -> str:
    """What a cell shows."""
    shown = "mean ± half of the 95 % bootstrap interval" if intervals else "means"
    return "; ".join([f"{shown}; best in bold, oracle aside", *_stars_mean(comparisons)])


def _stars_mean(comparisons: Sequence[Comparison]) -> list[str]:
    against = [f"* p < 0.05, ** p < 0.01 against {one.baseline}" for one in comparisons[:1]]
    return [f"{one} (paired randomisation, Holm), ↓ worse" for one in against]


def _cell(row: Row, test: Comparison | None, intervals: bool) -> str:
    mark = stars(test)
    if not intervals:
        return f"{row.value:.3f}{'↓' if mark.startswith('↓') else mark}"
    return f"{row.value:.3f} ±{(row.ci_high - row.ci_low) / 2:.3f} {mark}".rstrip()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("|", "\\|")


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
