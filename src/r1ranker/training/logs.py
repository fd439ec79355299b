"""What a run writes down while it trains: one JSON line and one TensorBoard point per logged step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from r1ranker.files import write_whole

LOG_NAME = "log.jsonl"


class RunLog:
    """`<out>/log.jsonl` and `<out>/tensorboard/`. Lines from `first_step` on are dropped: a resumed run logs once.

    writes: False in all but one of several processes.
    """

    def __init__(self, out: Path, first_step: int = 0, *, writes: bool = True) -> None:
        self._writes = writes
        if not writes:
            return
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / LOG_NAME
        kept = [row for row in read_log(out) if row["step"] < first_step]
        write_whole(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log named values under a step."""
        if not self._writes:
            return
        with self._path.open("a") as lines:
            lines.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._writes:
            self._board.close()


def read_log(out: Path) -> list[dict[str, float]]:
    """The logged lines of a run directory, without one that was cut when the run was killed; empty without a log."""
    path = out / LOG_NAME
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
