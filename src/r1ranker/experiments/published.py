"""Published results: one folder an experiment. In: what runs and benchmarks wrote. Out: that folder, and its page.

    publish(Path("runs/quickstart"), Path("results/quickstart"), run="seed0", title="...", commands=["r1ranker ..."])
    write_pages(Path("results"), Path("docs/results"))           # a page for each experiment, and an index

A folder holds `expected.yaml` (title, commands, and what the rows say in short), and for each run `config.yaml`,
`provenance.json` (versions, settings) and packed rows: `results.json.gz` and `tables.json.gz` of an evaluation,
`*log.jsonl.gz` of a training, any other `*.json.gz` of a benchmark. Packed bytes depend on the content alone.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from r1ranker.errors import DataError
from r1ranker.evaluation.results import AVERAGE, Row, read_results
from r1ranker.evaluation.table import wrap
from r1ranker.experiments import EXPERIMENTS
from r1ranker.experiments.report import (
    PACKED,
    ROWS,
    TABLES,
    Table,
    markdown,
    origin_lines,
    parts_of,
    run_lines,
)
from r1ranker.io.documents import parse_yaml, read_json, read_json_lines
from r1ranker.io.files import replacing, write_whole
from r1ranker.io.text import read_text

EXPECTED = "expected.yaml"
PLAIN = ("config.yaml", "provenance.json", "run.json")
"""Small files that are kept as they are; all others are packed."""
COMPARISONS = "comparisons.json"
CURVES = "curves.json"
"""Points of routers; the pages have their tables."""
NOT_RESULTS = ("models", "base", "data", "runs")
"""Folders of a run that are not published."""
SCORES = ("MRR", "nDCG@10", "quality", "utility", "AIQ")
LONG = 20
"""Records of a benchmark above which a summary has their means instead of each."""


def publish(source: Path, experiment: Path, *, run: str = "", title: str = "", commands: Sequence[str] = ()) -> None:
    """Pack a run's folder, or one file that a benchmark wrote, into `experiment`, and bring its summary up to date.

    run: its name among several of the experiment. title: kept from the last time when left out. commands: needed the
    first time; later ones are added to those that are there. Raises DataError where nothing is there to publish.
    """
    known = _known(experiment)
    title, all_commands = title or known["title"], [*dict.fromkeys([*known["command"], *commands])]
    if not all_commands:
        raise DataError(f"{experiment}: the commands that made it are needed")
    for file, name in _published(source):
        target = experiment / run / name
        if file.name in PLAIN:
            write_whole(target, read_text(file))
        else:
            pack(file, target.with_name(f"{target.name}{PACKED}"))
    write_expected(experiment, title, all_commands)


def pack(file: Path, target: Path) -> None:
    """The same bytes compressed; the same content gives the same file."""
    with replacing(target) as fresh:
        fresh.write_bytes(gzip.compress(file.read_bytes(), mtime=0))


def read_expected(experiment: Path) -> dict[str, Any]:
    """What `expected.yaml` says. Raises DataError where it lacks a title or a command."""
    path = experiment / EXPECTED
    try:
        found = parse_yaml(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not YAML: {error}") from error
    if not isinstance(found, dict) or not found.get("title") or not found.get("command"):
        raise DataError(f"{path}: `title` and `command` are needed")
    return found


def write_expected(experiment: Path, title: str, commands: Sequence[str]) -> None:
    """Write `expected.yaml` from the rows that are there."""
    made = {"title": title, "command": list(commands)}
    parts = [(made, False, 1000), (summary(experiment), None, 116)]  # a command a line; the innermost figures in one
    texts = [
        yaml.safe_dump(part, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width)
        for part, flow, width in parts
    ]
    write_whole(experiment / EXPECTED, "".join(texts))


def summary(experiment: Path) -> dict[str, Any]:
    """What an experiment's rows say in short, by run or file.

    scores: mean and the ends of its 95 % interval, averages over tasks. tokens, seconds: a query. training: of each
    log the tokens, the steps, and dev MRR at the start and at its best. figures: the numbers of a benchmark's records.
    """
    found: dict[str, dict[str, Any]] = {"scores": {}, "tokens": {}, "seconds": {}, "training": {}, "figures": {}}
    for path in sorted(experiment.rglob(f"{ROWS}{PACKED}")):
        rows, name = read_results(path), _name(path.parent, experiment)
        shown = {measure: {key: _interval(row) for key, row in _of(rows, measure)} for measure in SCORES}
        found["scores"][name] = {measure: values for measure, values in shown.items() if values}
        written = {key: row.value for key, row in _of(rows, "generated_tokens")}
        tokens = {key: round(row.value + written[key]) for key, row in _of(rows, "prompt_tokens") if row.value}
        found["tokens"][name] = tokens
        found["seconds"][name] = {key: _short(row.value) for key, row in _of(rows, "seconds") if key in tokens}
    for path in _others(experiment):
        name = _name(path, experiment)
        if name.endswith(".jsonl"):
            found["training"][name] = _training(path)
        else:
            found["figures"][name] = {key: _figures(records) for key, records in _lists(read_json(path))}
    return {key: {name: one for name, one in values.items() if one} for key, values in found.items() if any(values)}


def write_pages(out: Path, pages: Path) -> Path:
    """Write a page for each folder of `out` that holds results, and `index.md`, which it returns.

    Raises DataError where no folder does.
    """
    folders = [folder for folder in sorted(out.iterdir()) if folder.is_dir()] if out.is_dir() else []
    index = [f"# Results in `{out.name}`", "", "Rendered by `r1ranker reproduce report`; a page an experiment.", ""]
    for folder in folders:
        within = [run for run in sorted(folder.iterdir()) if run.is_dir() and run.name not in EXPERIMENTS]
        runs = [(run, parts) for run in (folder, *within) if (parts := parts_of(run))]
        others = _others(folder)
        if runs or others:
            target = pages / f"{folder.name}.md"
            known = _known(folder)
            lines = [f"# {known['title']}", "", f"Rows, settings and versions: `{out.name}/{folder.name}`.", ""]
            shell = (line for command in known["command"] for line in _shell(command))
            lines += ["```sh", *shell, "```", ""] if known["command"] else []
            lines += [*_runs(folder, runs, target), *_rest(folder, others)]
            write_whole(target, "\n".join(lines).rstrip() + "\n")
            index.append(f"- [{known['title']}]({folder.name}.md)")
    if len(index) == 4:
        raise DataError(f"{out} holds no results yet; run an experiment, such as `r1ranker reproduce main`")
    write_whole(pages / "index.md", "\n".join(index) + "\n")
    return pages / "index.md"


def _runs(folder: Path, runs: Sequence[tuple[Path, list[tuple[str, Path]]]], target: Path) -> list[str]:
    """The tables of each run of an experiment."""
    lines: list[str] = []
    for run, parts in runs:
        lines += [] if run == folder else [f"## {run.name}", ""]
        lines += run_lines(parts, folder.parent, target, "##" if run == folder else "###")
    return lines


def _rest(folder: Path, others: Sequence[Path]) -> list[str]:
    """What benchmarks and trainings wrote."""
    lines: list[str] = []
    logs = [path for path in others if ".jsonl" in path.name]
    for path in others:
        lines += [] if path in logs else _benchmark(path, folder)
    if logs:
        trained = {_name(path, folder): _training(path) for path in logs}
        columns = tuple(next(iter(trained.values())))
        rows = [(name, *map(_cell, values.values())) for name, values in trained.items()]
        note = "Dev MRR before training, at its best, and the step of the best."
        lines += markdown(Table("Training logs", ("log", *columns), rows, note), "##")
    return lines


def _benchmark(path: Path, experiment: Path) -> list[str]:
    """The tables of a file that a benchmark wrote, each list of records one."""
    content, name = read_json(path), _name(path, experiment)
    lines: list[str] = []
    for key, records in _lists(content):
        flat = [_flat(record) for record in records]
        columns = list(dict.fromkeys(column for record in flat for column in record))
        cells = [[_cell(record.get(column, "")) for column in columns] for record in flat]
        title = name if key == "rows" else f"{name}: {key}"
        lines += markdown(Table(title, columns, cells), "##")
    origin = content.get("provenance", content if "versions" in content else {}) if isinstance(content, dict) else {}
    return [*lines, *origin_lines(origin, f"File `{path.relative_to(experiment.parent)}`", experiment), ""]


def _shell(command: str) -> list[str]:
    """A command as it is pasted; a remark among commands, `# ...`, in lines that can be read."""
    return [f"# {line}" for line in wrap(command.removeprefix("# "))] if command.startswith("# ") else [command]


def _known(experiment: Path) -> dict[str, Any]:
    """What `expected.yaml` says, or a title and no command where it is not there."""
    known = (experiment / EXPECTED).is_file()
    return read_expected(experiment) if known else {"title": experiment.name, "command": []}


def _published(source: Path) -> Iterator[tuple[Path, Path]]:
    """The files of a run that are published, each with its place; a benchmark's one file."""
    if source.is_file():
        yield source, Path(source.name)
        return
    names = (*PLAIN, ROWS, TABLES, COMPARISONS, CURVES)
    files = [file for file in sorted(source.rglob("*.*")) if file.name in names or file.name.endswith("log.jsonl")]
    files = [file for file in files if file.relative_to(source).parts[0] not in NOT_RESULTS]
    if not any(file.name not in PLAIN for file in files):
        raise DataError(f"{source} holds no results to publish: no {ROWS}, no {TABLES} and no log.jsonl")
    yield from ((file, file.relative_to(source)) for file in files)


def _others(experiment: Path) -> list[Path]:
    """Packed rows that no evaluation wrote: of benchmarks and of training."""
    known = [f"{name}{PACKED}" for name in (ROWS, TABLES, COMPARISONS, CURVES)]
    return sorted(path for path in experiment.rglob(f"*.json*{PACKED}") if path.name not in known)


def _lists(content: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    """The lists of records in a benchmark's file, by key."""
    named = content.items() if isinstance(content, dict) else [("rows", content)]
    return [(key, value) for key, value in named if isinstance(value, list) and value and isinstance(value[0], dict)]


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Values of a record by column; those of an object in it one by one, longer ones left out."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        inner = {f"{key}: {name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        found |= {name: one for name, one in inner.items() if not isinstance(one, dict | list)}
    return found


def _figures(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    flat = [_flat(record) for record in records]
    numbers = [{key: value for key, value in one.items() if _is_number(value)} for one in flat]
    if len(flat) > LONG:
        columns = dict.fromkeys(key for one in numbers for key in one)
        known = {column: [one[column] for one in numbers if column in one] for column in columns}
        return {f"mean of {len(flat)}": {column: _short(sum(of) / len(of)) for column, of in known.items()}}
    labels = [
        " ".join([str(n), *(one[key] for key in one if isinstance(one[key], str))]) for n, one in enumerate(flat, 1)
    ]
    return {
        label.strip(): {key: _short(value) for key, value in one.items()}
        for label, one in zip(labels, numbers, strict=True)
    }


def _training(path: Path) -> dict[str, float]:
    lines = [line for _, line in read_json_lines(path)]
    dev = [(line["dev_mrr"], line["step"]) for line in lines if "dev_mrr" in line]
    found = {"steps": lines[-1]["step"], "tokens": max((line.get("tokens", 0) for line in lines), default=0)}
    if dev:
        best, step = max(dev, key=lambda one: one[0])
        found |= {"dev before": round(dev[0][0], 4), "dev best": round(best, 4), "at step": step}
    return found


def _of(rows: Sequence[Row], measure: str) -> Iterator[tuple[str, Row]]:
    """Rows of one measure by system: averages over tasks, or by task where none has one."""
    rows = [row for row in rows if row.measure == measure]
    averages = [row for row in rows if row.task == AVERAGE]
    several = len({row.task for row in rows}) > 1
    for row in averages or rows:
        yield row.system if averages or not several else f"{row.task}, {row.system}", row


def _interval(row: Row) -> list[float]:
    return [round(value, 4) for value in (row.value, row.ci_low, row.ci_high)]


def _short(value: float) -> float:
    """Four digits; a whole number as it is."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if not _is_number(value):
        return str(value)
    return f"{value:,.0f}".replace(",", " ") if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def _name(path: Path, experiment: Path) -> str:
    """A run's folder, or a file without its end `.gz`, as it is named within an experiment."""
    name = str(path.relative_to(experiment)).removesuffix(PACKED)
    return "all" if name == "." else name
