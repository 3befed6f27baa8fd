"""Labels of a data set that are not its own: the parts that experts know, levels of rarity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...storage import replacing

FILE = "labels.safetensors"
FACTS = "facts"


@dataclass(frozen=True, eq=False)
class Labels:
    """One of `classes` labels, from 0, for each image of a data set: int64 [N].

    `data` is the digest of the images, `facts` what the labels say and how they were found (JSON).
    """

    labels: Tensor
    classes: int
    data: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = self.labels
        if found.ndim != 1 or not len(found) or not 0 <= found.min() <= found.max() < self.classes:
            raise ValueError(
                f"labels are [N], each 0 to {self.classes - 1}, not {list(found.shape)} from "
                f"{found.min().item() if len(found) else None} on"
            )

    @property
    def shares(self) -> Tensor:
        """The share of each label, float64 [classes]."""
        return torch.bincount(self.labels, minlength=self.classes).double() / len(self.labels)

    def save(self, folder: Path) -> Path:
        """Write `folder`/labels.safetensors, whole or not at all."""
        facts = {"classes": self.classes, "data": self.data, FACTS: dict(self.facts)}
        with replacing(folder / FILE) as partial:
            save_file({"labels": self.labels}, partial, {FACTS: json.dumps(facts)})
        return folder / FILE


def load_labels(path: str | Path, data: str | None = None) -> Labels:
    """The labels in a folder or file of `Labels.save`.

    ValueError if it is none, or one for other images than those with the digest `data`.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"no labels at {path}: `fewstep train parts` or `fewstep train minority` makes some"
        )
    try:
        with safe_open(str(file), framework="pt") as opened:
            facts = json.loads(opened.metadata()[FACTS])
            found = Labels(
                opened.get_tensor("labels"), facts["classes"], facts["data"], facts[FACTS]
            )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds no labels, or is damaged: {error}") from error
    if data not in (None, found.data):
        raise ValueError(f"{file} labels other images than those of this training")
    return found
