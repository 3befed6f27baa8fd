"""Rewards by name: how good images are, for the drivers of `steering`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import zoo

# "-30*brightness".
FACTOR = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\*(.+)$")
# [B] of images [B, C, H, W] in [-1, 1].
ImageReward = Callable[[Tensor], Tensor]


def brightness(images: Tensor) -> Tensor:
    """The mean of all numbers of an image."""
    return images.flatten(1).mean(1)


def contrast(images: Tensor) -> Tensor:
    """The standard deviation of all numbers of an image."""
    return images.flatten(1).std(1)


def sharpness(images: Tensor) -> Tensor:
    """The mean absolute difference of neighbours, across and down."""
    across, down = (images.diff(dim=d).abs().flatten(1).mean(1) for d in (-1, -2))
    return across + down


STATISTICS: dict[str, ImageReward] = {
    "brightness": brightness,
    "contrast": contrast,
    "sharpness": sharpness,
}


def class_log_prob(images: Tensor, classifier: zoo.Classifier, label: int) -> Tensor:
    """log p(label | image) of a digit classifier; ValueError for other images than digits."""
    if images.shape[1:] != (1, 28, 28):
        raise ValueError(f"class: a digit is [1, 28, 28], not {list(images.shape[1:])}")
    return functional.log_softmax(classifier(images.float().clamp(-1, 1)), 1)[:, label]


def reward_of(spec: str, device: torch.device | str = "cpu") -> ImageReward:
    """The reward that a text names, with a factor before it if wanted: "-30*brightness".

    - brightness, contrast, sharpness: see `STATISTICS`;
    - class:3, the log-probability of a digit under the bundled classifier; class:3@FOLDER under one
      that `fewstep train mnist-classifier` made;
    - package.module:function, any function of images [B, C, H, W] in [-1, 1] that returns [B].

    Raises ValueError for anything else, FileNotFoundError for a classifier that is not there.
    """
    found = FACTOR.match(spec)
    if found:
        return scaled(reward_of(found[2], device), float(found[1]))
    if spec in STATISTICS:
        return STATISTICS[spec]
    kind, colon, rest = spec.partition(":")
    if kind == "class" and colon:
        label, _, folder = rest.partition("@")
        judge = zoo.load_classifier(Path(folder)) if folder else zoo.mnist_classifier()
        if not (label.isdecimal() and int(label) < judge.head.out_features):
            raise ValueError(f"{spec}: a class is 0 to {judge.head.out_features - 1}")
        return partial(class_log_prob, classifier=judge.to(device), label=int(label))
    if colon:
        return imported(spec, kind, rest)
    raise ValueError(
        f"no reward {spec!r}: there is {', '.join(STATISTICS)}, class:3, class:3@FOLDER, or "
        "package.module:function"
    )


def total_reward(specs: Sequence[str], device: torch.device | str = "cpu") -> ImageReward:
    """The sum of several rewards."""
    parts = [reward_of(spec, device) for spec in specs]

    def total(images: Tensor) -> Tensor:
        return torch.stack([part(images) for part in parts]).sum(0)

    return total


def scaled(reward: ImageReward, factor: float) -> ImageReward:
    """A reward times a number."""
    return lambda images: factor * reward(images)


def imported(spec: str, module: str, name: str) -> ImageReward:
    """A function by its dotted path."""
    try:
        found: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{spec}: no such function: {error}") from error
    if not callable(found):
        raise ValueError(f"{spec} is no function")
    reward: ImageReward = found
    return reward
