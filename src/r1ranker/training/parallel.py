"""Several processes, a copy of the model each, one global batch between them.

    torchrun --nproc-per-node 8 -m r1ranker train config.yaml

(`accelerate launch` does as well.) A batch is drawn whole by every process and dealt out in lanes; gradients, counts
and moments are added up. With the same batch, any number of processes computes the same update, up to rounding.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

Item = TypeVar("Item")

LANES = 8
"""A batch has this many lanes, or one for each process where there are more; what is in a lane stays together."""


@dataclass(frozen=True, slots=True)
class Crew:
    """This process among all; a crew of one needs no communication."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once: logs, models, checkpoints."""
        return self.rank == 0

    @property
    def lanes(self) -> int:
        """Lanes of a batch."""
        return max(LANES, self.size)

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of what all processes hold."""
        return list(items[self.rank :: self.size])

    def total(self, *numbers: float) -> list[float]:
        """Each number, added up over all processes."""
        if self.size == 1:
            return list(numbers)
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        summed = torch.tensor(numbers, dtype=torch.float64, device=device)
        distributed.all_reduce(summed)
        return summed.tolist()

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return max(self.gather(number))

    def gather(self, item: Item) -> list[Item]:
        """Every process's item, in the order of ranks, on every process."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        distributed.all_gather_object(items, item)
        return items

    def add_gradients(self, parameters: Iterable[Tensor], scale: float) -> None:
        """Sum the gradients of all processes, times `scale`; a process that had nothing to learn from adds zero.

        Those of sharded weights have been summed by the backward pass.
        """
        for parameter in parameters:
            if self.size > 1 and not isinstance(parameter, DTensor):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad)
            if parameter.grad is not None:
                parameter.grad *= scale

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            distributed.barrier()


def leave_crew() -> None:
    """Part from the others at exit, when the group's threads have let go of what was last sent.

    One that lets go of a tensor while the interpreter ends aborts the process (pytorch#190489). Destroying the group
    waits for them only where nothing else holds it, and DTensor's caches do.
    """
    time.sleep(0.2)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def join_crew() -> Crew:
    """The crew that a launcher started this process in, by its environment (RANK, WORLD_SIZE, LOCAL_RANK)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Crew()
    from accelerate import PartialState

    joins = not distributed.is_initialized()
    state = PartialState(cpu=not torch.cuda.is_available())
    if joins:
        atexit.register(leave_crew)
    return Crew(state.process_index, state.num_processes)
