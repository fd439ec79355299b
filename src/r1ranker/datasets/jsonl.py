"""Your own problems, in the format of `io.problems`: a folder with train.jsonl, dev.jsonl and test.jsonl, or one file.

`load` splits one file by group. `validate_jsonl` lists every fault with its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from r1ranker.datasets.common import SPLIT_NAMES, Source, check_disjoint, limit_per_task, split_groups
from r1ranker.datasets.tables import only_file
from r1ranker.io.files import at_home
from r1ranker.io.problems import NO_RECORDS, read_jsonl, read_with_faults
from r1ranker.io.text import MissingFileError
from r1ranker.problem import Splits
from r1ranker.scenarios import Scenario


def load(
    path: Path, *, seed: int = 0, limit: int | None = None, scenarios: Mapping[str, Scenario] = NO_RECORDS
) -> Splits:
    """Problems of a directory of train.jsonl, dev.jsonl, test.jsonl, or of one file split by group."""
    if at_home(path).is_dir():
        files = _split_files(path)
        splits: Splits = {split: read_jsonl(files[split], scenarios) if split in files else [] for split in SPLIT_NAMES}
        check_disjoint(splits)
    else:
        problems = read_jsonl(path, scenarios)
        side = split_groups((problem.group for problem in problems), seed)
        splits = {split: [p for p in problems if side[p.group] == split] for split in SPLIT_NAMES}
    return limit_per_task(splits, limit, seed)


def validate_jsonl(path: Path, scenarios: Mapping[str, Scenario] = NO_RECORDS) -> list[str]:
    """Messages "file:LINE: what is wrong; what to do" of a file, or of a directory with the splits' files."""
    messages: list[str] = []
    seen: dict[str, Path] = {}
    for file in _split_files(path).values() if at_home(path).is_dir() else [path]:
        numbered, found = read_with_faults(file, scenarios)
        messages += found
        for number, problem in numbered:
            first = seen.setdefault(problem.group, file)
            if first != file:
                messages.append(
                    f"{file}:{number}: group {problem.group!r} also stands in {first.name}; "
                    "keep all problems of a user or query in one file"
                )
    return messages


def _split_files(path: Path) -> dict[str, Path]:
    found = {split: only_file(path, f"{split}.jsonl") for split in SPLIT_NAMES}
    files = {split: file for split, file in found.items() if file}
    if not files:
        raise MissingFileError(f"{path}: has no train.jsonl, dev.jsonl or test.jsonl")
    return files


SOURCE = Source(
    load=load,
    description="your own problems; r1ranker.io.problems describes the format",
    layout="train.jsonl, dev.jsonl and test.jsonl in a directory, or one file",
    licence="yours",
    citation="yours",
    takes_scenarios=True,
)
