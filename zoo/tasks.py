"""What `fewstep train` can train: a task is a kind of config and the function that runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from .. import configs
from .classifier import ClassifierConfig, train_classifier
from .text import TextConfig
from .train import TrainConfig, train_denoiser
from .train_text import train_text


class Task(NamedTuple):
    """`run(config, out, progress)` trains and returns the folder of the result."""

    config: type[BaseModel]
    run: Callable[..., Path]


TASKS: dict[str, Task] = {
    "classifier": Task(ClassifierConfig, train_classifier),
    "denoiser": Task(TrainConfig, train_denoiser),
    "text": Task(TextConfig, train_text),
}


def train(
    name: str,
    out: Path,
    overrides: dict[str, Any],
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Path:
    """Train what `configs/train/<name>.yaml` (or the file `name`) says, with `overrides`.

    The key `task` of the file chooses from `TASKS` ("denoiser" if absent). Raises ValueError for an
    unknown name or key, or a value out of range.
    """
    path = configs.find("train", name)
    values = {**configs.read(path), **overrides}
    task = TASKS.get(values.pop("task", "denoiser"))
    if task is None:
        raise ValueError(f"{path}: task must be one of {', '.join(TASKS)}")
    return task.run(configs.checked(task.config, values, str(path)), out, progress)
