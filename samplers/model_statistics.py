"""Empirical model statistics: what of a network is linear, pixel by pixel, for DPM-Solver-v3.

With eps = (x - alpha x0) / sigma and w = x / alpha, the solver works on f = (sigma eps - l x) /
alpha = (1 - l) w - x0. Along the probability flow dw / dlam = x0 - w, so that

    f' = df / dlam = -l' w + (1 - l) (x0 - w) - x0'

with x0' the total derivative. l, s and b make E|d eps / dx - l / sigma|, and then E|f' - s f - b|^2
least, each pixel for itself:

    l = E[diag(sigma d eps / dx)] = 1 - alpha E[v (d x0 / dx) v],   v = +-1 at random
    s = Cov(f, f') / Var(f),   b = E f' - s E f

(Zheng et al. 2023, "DPM-Solver-v3", section 3.1.) None of them depends on the form of the schedule,
alpha and sigma, given lam.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..schedules import Grid, Schedule
from ..schedules import files as schedules
from ..schedules.base import Float
from ..schedules.grid import Node
from ..storage import replacing
from .recall import Denoiser
from .streams import standard_normal, uniform

FORMAT = "fewstep.model-statistics"
# Of a run, in its folder.
STATISTICS = "statistics.safetensors"
# In lam, where levels and labels of a schedule are derived.
STEP = 1e-4
# A variance below this share of the terms that cancelled in it is their rounding.
DUST = 1e-10
NAMES = ("l", "s", "b")


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """l, s and b at half log-SNRs: `lams` float64 [N], rising; the others float64 [N, *shape].

    `schedule` is what they were estimated on, for the record. Raises ValueError for other shapes,
    lams that do not rise, and values that are not finite.
    """

    lams: Float
    l: Float
    s: Float
    b: Float
    schedule: Schedule | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("lams", *NAMES):
            value = np.array(getattr(self, name), dtype=np.float64)
            if not np.isfinite(value).all():
                raise ValueError(f"statistics: {name} is not finite")
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        if self.lams.ndim != 1 or not len(self.lams) or not (np.diff(self.lams) > 0).all():
            raise ValueError("statistics: lams must be a rising list")
        shapes = {name: getattr(self, name).shape for name in NAMES}
        if len(set(shapes.values())) > 1 or shapes["l"][:1] != self.lams.shape:
            raise ValueError(f"statistics: {len(self.lams)} lams, and shapes {shapes}")

    @property
    def shape(self) -> tuple[int, ...]:
        """That of a sample."""
        return self.l.shape[1:]

    def noted(self, **meta: Any) -> ModelStatistics:
        """The same with more said about them, as JSON values."""
        return replace(self, meta={**self.meta, **meta})

    def __repr__(self) -> str:
        low, high = self.lams[0], self.lams[-1]
        return f"ModelStatistics({len(self.lams)} lams, {low:.4g} to {high:.4g}, {self.shape})"

    def save(self, path: str | Path) -> None:
        """Write the statistics as safetensors, atomically; lams float64, the others float32."""
        arrays = {name: getattr(self, name).astype(np.float32) for name in NAMES}
        law = None if self.schedule is None else schedules.to_dict(self.schedule)
        said = {
            "format": FORMAT,
            "version": "1",
            "schedule": json.dumps(law),
            "shape": json.dumps(self.shape),
            "meta": json.dumps(dict(self.meta)),
        }
        with replacing(Path(path)) as partial:
            save_file({"lams": np.array(self.lams), **arrays}, partial, said)

    @classmethod
    def load(cls, path: str | Path) -> ModelStatistics:
        """Read what `save` wrote, or a folder that has it; ValueError names a file that is none.

        FileNotFoundError says how there will be one.
        """
        path = Path(path) / STATISTICS if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no statistics of a model at {path}: `fewstep search v3 --out {path}` leaves some"
            )
        try:
            with safe_open(str(path), "np") as file:
                said = file.metadata() or {}
                if said.get("format") != FORMAT or said.get("version") != "1":
                    raise ValueError(f"its format is {said.get('format')!r}")
                arrays = {name: file.get_tensor(name) for name in ("lams", *NAMES)}
            law = json.loads(said["schedule"])
            return cls(
                **arrays,
                schedule=None if law is None else schedules.from_dict(law),
                meta=json.loads(said["meta"]),
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: no statistics of a model ({error})") from error


class Batch(NamedTuple):
    """Clean samples [B, ...], a random stream for each, and the denoiser of these."""

    denoiser: Denoiser
    data: Tensor
    seeds: Sequence[int]


def estimate_statistics(
    batches: Sequence[Batch],
    schedule: Schedule,
    lams: int | ArrayLike = 120,
    *,
    difference: float | None = None,
    progress: Callable[[int, int, str], Any] = lambda done, total, what: None,
) -> ModelStatistics:
    """Estimate l, s and b at `lams`, or at so many evenly between the ends of the schedule.

    Samples are noised as x = alpha x0 + sigma eps, and eps and v of a sample are the same at all
    nodes, which makes the statistics smooth in lam. Derivatives are exact (forward mode) for any
    denoiser that computes with tensors of levels and labels; nodes are of `schedule`, which must be
    the network's own. For others `difference` is the step in lam of central differences instead
    (1e-2 in float32). A node costs two derivatives for each sample. Sums are float64, and l' is
    taken along the nodes, to second order.

    Raises ValueError for no data, and for a schedule without a finite end where a number of nodes
    is asked for.
    """
    if not sum(len(batch.data) for batch in batches):
        raise ValueError("statistics: no data to estimate from")
    ends = schedule.lam(np.array([schedule.t_max, schedule.t_min]))
    if np.ndim(lams) == 0:
        if not np.isfinite(ends).all():
            raise ValueError(f"statistics: {schedule!r} begins at lam {ends[0]}; name the lams")
        lams = np.linspace(ends[0], ends[1], int(np.asarray(lams)))
    lams = np.asarray(lams, dtype=np.float64)
    shape, count = tuple(batches[0].data.shape[1:]), sum(len(batch.data) for batch in batches)
    diagonal = torch.zeros(len(lams), *shape, dtype=torch.float64)
    first = torch.zeros(len(lams), 3, *shape, dtype=torch.float64)
    second = torch.zeros(len(lams), 3, 3, *shape, dtype=torch.float64)
    done = 0
    for denoiser, data, seeds in batches:
        eps = standard_normal(seeds, 0, data)
        v = torch.where(uniform(seeds, 1, data) < 0.5, -1.0, 1.0).to(data)
        for k, lam in enumerate(lams):
            at = Point(schedule, float(lam), ends)
            node = at.node
            x = node.alpha * data + node.sigma * eps
            with forward_mode():
                x0, moved, across = slopes(denoiser, at, x, v, difference)
            diagonal[k] += (node.alpha * v * across).double().sum(0).cpu()
            terms = torch.stack([x.double() / node.alpha, x0.double(), moved.double()])
            first[k] += terms.sum(1).cpu()
            second[k] += torch.einsum("ib...,jb...->ij...", terms, terms).cpu()
            done += 1
            progress(done, len(batches) * len(lams), "statistics")
    l = 1 - (diagonal / count).numpy()
    mean = (first / count).numpy()
    covariance = (second / count).numpy() - mean[:, :, None] * mean[:, None]
    s, b = regression(lams, l, mean, covariance)
    return ModelStatistics(lams, l, s, b, schedule, {"samples": count})


class Contiguous(TorchFunctionMode):
    """Copies what a group norm is given: derived forward, it needs one layout of both its parts."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.group_norm:
            args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
        return func(*args, **(kwargs or {}))


@contextmanager
def forward_mode() -> Iterator[None]:
    """What networks are made of, in forms that can be derived forward; no other gradients."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Contiguous():
        yield


@dataclass(frozen=True)
class Point:
    """A half log-SNR on a schedule, whose `ends` are the least and the largest."""

    schedule: Schedule
    lam: float
    ends: Float

    @property
    def node(self) -> Node:
        """The node there."""
        return self.at(self.lam)

    def at(self, lam: float) -> Node:
        """The node at another lam."""
        # A grid has at least two nodes, and only the first is of interest.
        after = self.schedule.lam(self.schedule.t_zero)
        return Grid.from_lams(self.schedule, [lam, float(after)]).nodes[0]

    def around(self, step: float) -> tuple[Node, Node, float]:
        """The nodes a step before and behind, within the ends, and how far apart they are."""
        low, high = max(self.lam - step, self.ends[0]), min(self.lam + step, self.ends[1])
        return self.at(low), self.at(high), high - low


# What of a node a denoiser may read.
LEVELS = ("time", "alpha", "sigma", "lam", "label")


def slopes(
    denoiser: Denoiser, at: Point, x: Tensor, v: Tensor, difference: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """x0, its total derivative in lam along the probability flow, and that along v in x."""
    node = at.node
    if difference is not None:
        x0 = denoiser(x, node)
        low, high, gap = at.around(difference)
        # dx / dlam; x' is divided by alpha, w is not.
        w, change = x / node.alpha, x0 - x / node.alpha
        moved = (
            denoiser(high.alpha * (w + (high.lam - node.lam) * change), high)
            - denoiser(low.alpha * (w + (low.lam - node.lam) * change), low)
        ) / gap
        # v moves x by about its own scale.
        step = difference * float(x.std())
        across = (denoiser(x + step * v, node) - denoiser(x - step * v, node)) / (2 * step)
        return x0, moved, across
    low, high, gap = at.around(STEP)

    def tensors(values: Sequence[float]) -> tuple[Tensor, ...]:
        return torch.tensor(values, dtype=torch.float64, device=x.device).unbind()

    levels = tensors([getattr(node, name) for name in LEVELS])
    rates = tensors([(getattr(high, name) - getattr(low, name)) / gap for name in LEVELS])

    def of_x(x: Tensor) -> Tensor:
        return denoiser(x, node)

    def of_all(x: Tensor, *values: Tensor) -> Tensor:
        known: dict[str, Any] = dict(zip(LEVELS, values, strict=True))
        return denoiser(x, replace(node, **known))

    x0, across = torch.func.jvp(of_x, (x,), (v,))[:2]
    eps = (x - node.alpha * x0) / node.sigma
    dx = float(rates[1]) / node.alpha * x - node.sigma * eps
    moved = torch.func.jvp(of_all, (x, *levels), (dx, *rates))[1]
    return x0, moved, across


def regression(lams: Float, l: Float, mean: Float, covariance: Float) -> tuple[Float, Float]:
    """s and b from the moments of (w, x0, x0'), [N, 3, ..] and [N, 3, 3, ..]."""
    slope = np.zeros_like(l)
    if len(lams) > 1:
        slope[:] = np.gradient(l, lams, axis=0, edge_order=2 if len(lams) > 2 else 1)
    one, zero = np.ones_like(l), np.zeros_like(l)
    f = np.stack([1 - l, -one, zero], 1)
    after = np.stack([l - 1 - slope, 1 - l, -one], 1)
    variance = np.einsum("ni...,nij...,nj...->n...", f, covariance, f)
    shared = np.einsum("ni...,nij...,nj...->n...", f, covariance, after)
    bound = np.einsum("ni...,nij...,nj...->n...", abs(f), abs(covariance), abs(f))
    known = variance > DUST * bound
    s = np.where(known, shared / np.where(known, variance, 1), 0)
    b = np.einsum("ni...,ni...->n...", after, mean) - s * np.einsum("ni...,ni...->n...", f, mean)
    return s, b
