"""Several processes of one run: who I am, and where we meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

# Cells of other processes may take days; a barrier is not to give up before.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """Process `rank` of `count`; `wait` returns when all have called it."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], object] = lambda: None

    @property
    def first(self) -> bool:
        """Whether this one writes what all share."""
        return self.rank == 0


ALONE = Processes()


def launched(device: torch.device) -> Processes:
    """The processes that `accelerate launch` or `torchrun` started, else `ALONE`."""
    state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    if state.num_processes == 1:
        return ALONE
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


def check_shared(folder: Path, processes: Processes) -> None:
    """ValueError unless all processes see the same `folder`: they hand their work over in it."""
    if processes.count == 1:
        return
    token = [uuid4().hex]
    broadcast_object_list(token)
    mark = folder / f".{token[0]}"
    if processes.first:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    processes.wait()
    seen = mark.exists()
    processes.wait()
    if processes.first:
        mark.unlink()
    if not seen:
        raise ValueError(
            f"process {processes.rank} does not see {folder}: it must be shared by all"
        )
