"""What `fewstep train` can train: a task is a kind of config and the function that runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from .. import configs
from ..guides.labels import label_minority, label_parts
from ..guides.learn import train_classifier
from ..guides.settings import ClassifierConfig, MinorityConfig, PartsConfig
from ..zoo.classifier import ClassifierConfig as DigitsConfig
from ..zoo.classifier import train_classifier as train_digits
from ..zoo.text import TextConfig
from ..zoo.train import TrainConfig, train_denoiser
from ..zoo.train_text import train_text
from .console import network_of

Progress = Callable[[int, int, str], None]


class Task(NamedTuple):
    """`run(config, out, progress)` trains and returns the path of the result."""

    config: type[BaseModel]
    run: Callable[..., Path]


def minority(config: MinorityConfig, out: Path, progress: Progress) -> Path:
    """Label images by how rare they are, and train a classifier of these levels."""
    model = network_of(config.model, "auto")
    labels = label_minority(config, model, out, progress)
    return train_classifier(config, model, out, progress, labels)


def parts(config: PartsConfig, out: Path, progress: Progress) -> Path:
    """Cut a data set into parts."""
    label_parts(config, out, progress)
    return out


def noisy_classifier(config: ClassifierConfig, out: Path, progress: Progress) -> Path:
    """Train a classifier of noisy states."""
    return train_classifier(config, network_of(config.model, "auto"), out, progress)


TASKS: dict[str, Task] = {
    "classifier": Task(DigitsConfig, train_digits),
    "denoiser": Task(TrainConfig, train_denoiser),
    "text": Task(TextConfig, train_text),
    "minority": Task(MinorityConfig, minority),
    "parts": Task(PartsConfig, parts),
    "noisy-classifier": Task(ClassifierConfig, noisy_classifier),
}


def train(
    name: str,
    out: Path,
    overrides: dict[str, Any],
    progress: Progress = lambda done, total, text: None,
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
