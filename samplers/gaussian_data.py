"""Normal laws of a data set: with what they are of, in files, and as others published them."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..schedules.base import Float
from ..schedules.grid import Node
from ..storage import digest, write_atomically
from .exact import Mixture
from .executor import StateHook
from .teleport import teleport

FORMAT = "fewstep.gaussian"
VERSION = 1
SUFFIX = ".safetensors"
PARTS = ("means", "log_weights", "vectors", "values", "tail")
# Entries of the PCA files of Wang and Vastola 2024 (data set binxu/image_datasets_PCAs).
PCA = ("eigval", "eigvec", "imgmean")
# What the components of a mixture are: one law of all, one of each label, or clusters.
By = Literal["all", "class", "cluster"]


@dataclass(frozen=True, eq=False)
class GaussianData:
    """Normal laws of the data of a network, in its units ([-1, 1] for pixels).

    `law` has J components on the flattened samples of `shape` (C, H, W), D = C H W. `by` says what
    they are: "all" (J = 1), "class" (component j is the law of label j), or "cluster". `origin`
    says of what data they are. Raises ValueError for a law that is none of the shape.
    """

    law: Mixture
    shape: tuple[int, ...]
    by: By = "all"
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, dim, rank = self.law.vectors.shape if self.law.vectors.ndim == 3 else (0, 0, 0)
        wanted = ((count, dim), (count,), (count, dim, rank), (count, rank), (count,))
        for name, shape in zip(PARTS, wanted, strict=True):
            part = getattr(self.law, name)
            if tuple(part.shape) != shape or part.dtype != torch.float64 or not count:
                raise ValueError(f"{name} {list(part.shape)} {part.dtype} is no part of a law")
            if not part.isfinite().all():
                raise ValueError(f"{name} is not finite")
        if min(float(self.law.values.min()) if rank else 0.0, float(self.law.tail.min())) < 0:
            raise ValueError("a variance is below zero")
        if math.prod(self.shape) != dim or (self.by == "all" and count > 1):
            raise ValueError(
                f"{count} laws in {dim} dimensions are not those by {self.by} of samples of shape "
                f"{self.shape}"
            )

    @property
    def explained(self) -> Float:
        """The share of its variance that each law has in its own directions, [J]."""
        inside, tail = self.law.values.sum(1).numpy(), self.law.tail.numpy()
        total = inside + tail * (self.law.means.shape[1] - self.law.values.shape[1])
        # Of data that never vary nothing is left unexplained.
        return (inside + (total == 0)) / (total + (total == 0))

    @cached_property
    def key(self) -> str:
        """Digest of all that decides where a state is taken."""
        return digest(self.by, *(getattr(self.law, name).numpy() for name in PARTS))

    def start(self, source: Node, labels: Tensor | None = None) -> StateHook:
        """The `start` of `sample` for states that are noise at `source`; see `teleport`.

        Laws by class need the `labels` [B], which say nothing to others. ValueError without.
        """
        if self.by != "class":
            return teleport(self.law, source)
        count = len(self.law.means)
        if labels is None or not 0 <= int(labels.min()) <= int(labels.max()) < count:
            raise ValueError(f"teleport: laws of {count} classes need a label below {count} each")
        return teleport(self.law, source, labels.cpu())

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file (schema `fewstep.gaussian`, version 1), atomically.

        float64, so that it is read back bit by bit. ValueError for another suffix.
        """
        path = Path(path)
        check_suffix(path)
        parts = {name: getattr(self.law, name).contiguous() for name in PARTS}
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "shape": list(self.shape),
            "by": self.by,
            "units": "of the network",
            "origin": dict(self.origin),
        }
        write_atomically(path, save(parts, {"fewstep": json.dumps(meta)}))

    @classmethod
    def load(cls, path: str | Path) -> GaussianData:
        """The laws in a file of `save`; ValueError says what is wrong with another."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no normal laws at {path}: there is no such file")
        try:
            with safe_open(path, "pt") as file:
                meta = json.loads((file.metadata() or {}).get("fewstep", "{}"))
                parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is no .safetensors file, or damaged: {error}") from error
        if meta.get("format") != FORMAT or set(parts) != set(PARTS):
            raise ValueError(
                f"{path} holds {', '.join(parts) or 'nothing'}, not the normal laws that "
                "`fewstep stats DATA --gaussian` writes"
            )
        if meta.get("version") != VERSION or meta.get("by") not in get_args(By):
            raise ValueError(
                f"{path}: schema {meta.get('version')!r}; this fewstep reads {VERSION}"
            )
        try:
            return cls(Mixture(**parts), tuple(meta["shape"]), meta["by"], meta["origin"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def check_suffix(path: Path) -> None:
    """ValueError for a file that would not be found again."""
    if path.suffix != SUFFIX:
        raise ValueError(f"normal laws are written as {SUFFIX}, not {path.name!r}")


def load_pca(path: str | Path, rank: int | None = None) -> GaussianData:
    """The normal law in a PCA file as published (Wang and Vastola 2024), in [-1, 1].

    The file is torch's, of a dictionary: `eigval` [D] and `eigvec` [D, D] (in columns) of the
    covariance and `imgmean` of pixels in [0, 1], flattened from [C, H, W]. With x = 2 p - 1 the
    mean is 2 imgmean - 1 and variances are four times those. `rank` keeps that many of the largest,
    and the mean of the others as the tail. Nothing but tensors is read. Raises ValueError that says
    what was found in another file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no PCA at {path}: there is no such file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no file of tensors, or damaged: {said}") from error
    held = found if isinstance(found, Mapping) else {}
    tensors = [held.get(name) for name in PCA]
    if not all(isinstance(each, Tensor) for each in tensors):
        what = ", ".join(map(str, held)) or type(found).__name__
        raise ValueError(f"{path} holds {what}, not the tensors {', '.join(PCA)} of a PCA")
    values, vectors, mean = (each.double() for each in tensors if each is not None)
    dim = mean.numel()
    if values.shape != (dim,) or vectors.shape != (dim, dim):
        raise ValueError(
            f"{path}: eigval {list(values.shape)}, eigvec {list(vectors.shape)} and imgmean "
            f"{list(mean.shape)} are no PCA in {dim} dimensions"
        )
    if not 0 <= float(mean.min()) <= float(mean.max()) <= 1:
        raise ValueError(
            f"{path}: imgmean runs from {float(mean.min()):g} to {float(mean.max()):g}; published "
            "files are of pixels in [0, 1]"
        )
    law = truncated(2 * mean.reshape(-1) - 1, 4 * values.clamp_min(0), vectors, rank)
    return GaussianData(law, image_shape(mean, path), origin={"data": path.name, "pca": True})


def truncated(mean: Tensor, values: Tensor, vectors: Tensor, rank: int | None) -> Mixture:
    """A normal law of its `rank` largest variances, and the mean of the others for the rest."""
    order = values.argsort(descending=True)
    kept, left = order.tensor_split([len(order) if rank is None else min(rank, len(order))])
    tail = values[left].mean() if len(left) else values.new_zeros(())
    return Mixture(
        mean[None], values.new_zeros(1), vectors[:, kept][None], values[kept][None], tail[None]
    )


def image_shape(mean: Tensor, path: Path) -> tuple[int, ...]:
    """[C, H, W] of a mean: its own, or that of a square image in color, or else in gray."""
    if mean.ndim == 3:
        return tuple(mean.shape)
    for channels in (3, 1):
        side = math.isqrt(mean.numel() // channels)
        if channels * side * side == mean.numel():
            return channels, side, side
    raise ValueError(f"{path}: an imgmean of {mean.numel()} numbers is no square image")
