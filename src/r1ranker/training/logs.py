"""What a run writes down while it trains: one JSON line and one TensorBoard point per logged step; a few rollouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from r1ranker.errors import DataError
from r1ranker.io.documents import read_json
from r1ranker.io.files import write_whole

LOG_NAME = "log.jsonl"
ROLLOUTS_NAME = "rollouts.jsonl"
KEPT_NAME = "kept.json"
"""Beside the model of a run: its step, and what it scored on dev."""
KEPT = "kept_step"
"""Of a validation: the step whose model is the best so far, and lies in `<out>/model`."""


class RunLog:
    """`<out>/log.jsonl`, `<out>/rollouts.jsonl` and `<out>/tensorboard/`.

    Lines from `first_step` on are dropped: a resumed run logs once.

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
        self._rollouts = out / ROLLOUTS_NAME
        shown = [row for row in _whole_rows(self._rollouts) if row["training_step"] < first_step]
        self._rollouts.unlink(missing_ok=True)
        self.show(shown)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log named values under a step."""
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rollouts down (`shown.rollouts`)."""
        if self._writes and rows:
            with self._rollouts.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._writes:
            self._board.close()


def read_log(out: Path) -> list[dict[str, float]]:
    """The logged lines of a run directory, without one that was cut when the run was killed; empty without a log.

    Raises DataError with the line where another one is damaged.
    """
    return _whole_rows(out / LOG_NAME)


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    # What stands behind the last line end was being written when the run was killed.
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [_row(line, f"{path}:{number}") for number, line in enumerate(whole, start=1)]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); remove the line, or train into another folder") from error
    return row


@dataclass(frozen=True, slots=True)
class Kept:
    """Which model a run has kept, of which step. Scores are dev MRR; None without dev problems."""

    step: int
    score: float | None
    start: float | None
    last_step: int
    last: float | None

    @property
    def improved(self) -> bool:
        """Whether training found a better model on dev than the one it began from."""
        return self.score is None or self.step > 0

    def __str__(self) -> str:
        begins = f"step {self.last_step}, kept step {self.step}"
        if self.score is None:
            return f"{begins}, the newest: there are no dev problems"
        start = f", {self.start:.3f} at the start" if self.start is not None and self.step else ""
        last = f", {self.last:.3f} at the end" if self.last is not None and self.step != self.last_step else ""
        return f"{begins}: dev MRR {self.score:.3f}{start}{last}"


def kept_of(out: Path) -> Kept | None:
    """What a run has kept; None where nothing was validated.

    The model may be of a step that the log no longer has: a run that was gone on from writes it anew from there.
    """
    rows = {int(row["step"]): row for row in read_log(out)}
    validated = [step for step, row in rows.items() if KEPT in row]
    if not validated:
        return None
    step, last = int(rows[validated[-1]][KEPT]), validated[-1]
    scores = {at: rows[at].get("dev_mrr") for at in validated}
    score = scores.get(step)
    if (out / KEPT_NAME).is_file() and scores[last] is not None:
        found = read_json(out / KEPT_NAME)
        step, score = found["step"], found["score"]
    return Kept(step, score, scores.get(0), last, scores[last])
