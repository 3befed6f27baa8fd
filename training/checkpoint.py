"""Checkpoints: folders of safetensors and JSON that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..storage import replacing, write_json

PREFIX = "checkpoint-"
STATE = "trainer.json"
MODEL, EMA, OPTIMIZER, MEMORY, BEST = (
    f"{name}.safetensors" for name in ("model", "ema", "optimizer", "memory", "best")
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a training needs to go on as if it had never stopped, after `step` steps.

    `tensors` are by file name, `best` is the least validation so far and the step that had it, and
    `facts` are what the training depends on. Batches and dropout are functions of the seed and the
    step, so that no state of a random generator belongs to it. `scaler` is the state of what scales
    the loss in half precision, and `pending` are the numbers of the last step where its validation
    was interrupted.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any]
    best: tuple[float, int] | None = None
    scaler: Mapping[str, Any] | None = None
    pending: Mapping[str, Any] | None = None

    def save(self, folder: Path, limit: int | None = None) -> Path:
        """Write `folder`/checkpoint-STEP; older ones beyond `limit` are removed."""
        target = folder / f"{PREFIX}{self.step}"
        partial = folder / f".{target.name}.{os.getpid()}.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        for name, tensors in self.tensors.items():
            save_tensors(tensors, partial / name)
        state: dict[str, Any] = {"step": self.step, "best": self.best}
        state |= {"scaler": self.scaler, "pending": self.pending}
        write_json(partial / STATE, {**state, "facts": dict(self.facts)})
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        if limit is not None:
            for old in checkpoints(folder)[:-limit]:
                shutil.rmtree(old, ignore_errors=True)
        return target

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read what `save` wrote; ValueError for a folder that is none, or damaged."""
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            tensors = {file.name: load_file(file) for file in path.glob("*.safetensors")}
            best = None if state["best"] is None else (state["best"][0], state["best"][1])
            more = {key: state.get(key) for key in ("scaler", "pending")}
            return cls(state["step"], tensors, state["facts"], best, **more)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{path} is no checkpoint, or damaged: {error}") from error


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [
        path
        for path in folder.glob(f"{PREFIX}*")
        if path.name.removeprefix(PREFIX).isdecimal() and (path / STATE).is_file()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def forget(folder: Path) -> None:
    """Remove all checkpoints: a training that begins anew is not to go on from an older one."""
    for path in checkpoints(folder):
        shutil.rmtree(path)


def find(folder: Path, asked: str) -> Path | None:
    """The checkpoint to go on from: "latest" in a folder, "never" none, or a path.

    Raises ValueError for a path where there is none.
    """
    if asked == "never":
        return None
    if asked == "latest":
        return next(reversed(checkpoints(folder)), None)
    path = next((p for p in (Path(asked), folder / asked) if (p / STATE).is_file()), None)
    if path is None:
        there = ", ".join(each.name for each in checkpoints(folder)) or "none"
        raise ValueError(f"no checkpoint {asked}; in {folder} there is {there}")
    return path


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors, atomically."""
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with replacing(path) as partial:
        save_file(copies, partial)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer by "parameter.name"; numbers as tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, each in state.items() for k, v in each.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give a module its weights; ValueError if they are those of another."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ValueError(f"{where} is of another model: {str(error).splitlines()[-1]}") from error
