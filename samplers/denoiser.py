"""From a network to a denoiser (x, node) -> x0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..schedules import Schedule
from ..schedules.grid import Node
from .basis import affine, preconditioning
from .sums import Coefficient, mix, scaled

# What the network returns: a basis of tableaux, or the F of Karras et al. 2022.
Prediction = Literal["x0", "eps", "v", "flow", "edm"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


class Call(NamedTuple):
    """One evaluation: out = network(scale_in x, label), x0 = x_factor x + out_factor out."""

    scale_in: Coefficient
    label: Coefficient
    x_factor: Coefficient
    out_factor: Coefficient


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A network as a denoiser; made by `denoiser`."""

    network: Callable[..., Any]
    schedule: Schedule
    prediction: Prediction = "eps"
    sigma_data: float = 0.5
    dtype: torch.dtype | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction must be one of {', '.join(PREDICTIONS)}, got {self.prediction!r}"
            )

    def take(self, rows: Tensor, size: int) -> NetworkDenoiser:
        """That of some samples of a batch of `size`: of `kwargs`, tensors as long are one each."""
        own = {
            name: each[rows.to(each.device)]
            if isinstance(each, Tensor) and each.ndim and len(each) == size
            else each
            for name, each in self.kwargs.items()
        }
        return replace(self, kwargs=own)

    def __call__(self, x: Tensor, node: Node) -> Tensor:
        """Predict clean data, in the dtype of x."""
        call = call_at(node, self.schedule, self.prediction, self.sigma_data)
        plain = isinstance(call.scale_in, float) and call.scale_in == 1
        inputs = x if plain else scaled(x, call.scale_in)
        if self.dtype is not None:
            inputs = inputs.to(self.dtype)
        out = self.network(inputs, per_sample(call.label, x), **self.kwargs)
        out = getattr(out, "sample", out)
        if out.shape[1:2] != x.shape[1:2]:
            out = without_variance(out, x)
        out = out.to(x.dtype)
        return mix(x, call.x_factor, out, call.out_factor)


def per_sample(value: float | Tensor, x: Tensor) -> Tensor:
    """A number, or one each, for the samples of x: float32 [B] where x is, never rounded."""
    if isinstance(value, Tensor):
        return value.to(x.device, torch.float32).flatten().expand(len(x))
    # Filled on the device: no copy, no synchronisation.
    return torch.full((len(x),), value, dtype=torch.float32, device=x.device)


def without_variance(out: Tensor, x: Tensor) -> Tensor:
    """The prediction of a network that learns its variance and returns it behind."""
    if out.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
        raise ValueError(
            f"the network returned shape {tuple(out.shape)} for an input {tuple(x.shape)}: it must "
            f"have as many channels, or twice as many when it learns its variance"
        )
    return out[:, : x.shape[1]]


def call_at(node: Node, schedule: Schedule, prediction: Prediction, sigma_data: float) -> Call:
    """The scalars of one network call at a node.

    The state alpha x0 + sigma eps of the node is first scaled to the network's own schedule at the
    same lam, so that a grid in any form can drive any network; a node of that very schedule keeps
    its own label. Then x0 solves out = p x + q x0 (see `affine`), or for "edm" is that of
    `preconditioning`.
    """
    own = node.schedule is schedule or is_own(node, schedule)
    level = node if own else level_of(node, schedule)
    alpha, sigma, label = level.alpha, level.sigma, level.label
    scale = 1.0 if level is node else sigma / node.sigma
    if prediction == "edm":
        # In x / alpha = x0 + nsr eps.
        c_in, c_skip, c_out = preconditioning(sigma / alpha, sigma_data)
        unit = scale / alpha
        return Call(c_in * unit, label, c_skip * unit, c_out)
    p, q = affine(prediction, alpha, sigma)
    mute: Any = q == 0
    if mute.any() if isinstance(mute, Tensor) else mute:
        raise ValueError(
            f"node {node.index} is pure noise (alpha = 0), where a network that predicts "
            f"{prediction} says nothing about x0: use a v or flow network, or start below it"
        )
    return Call(scale, label, -p / q * scale, 1 / q)


def several(nodes: Sequence[Node], x: Tensor) -> Node:
    """The node of a batch whose samples are each at one of their own: sample i at nodes[i].

    Its time, levels and label are float64 tensors [B, 1, ..] that broadcast against x, on the CPU;
    all else is that of the first, the node that follows too. ValueError for nodes of several
    schedules, or of one that is unknown.
    """
    first = nodes[0]
    laws = {id(node.schedule): node.schedule for node in nodes}.values()
    if first.schedule is None or any(law != first.schedule for law in laws):
        raise ValueError("the nodes of one batch must have one noise schedule, and know it")
    shape = (len(nodes), *[1] * (x.ndim - 1))
    levels: dict[str, Any] = {
        name: torch.tensor([getattr(node, name) for node in nodes], dtype=torch.float64).view(shape)
        for name in ("time", "alpha", "sigma", "lam", "label")
    }
    return replace(first, **levels)


def is_own(node: Node, schedule: Schedule) -> bool:
    """Whether a node is in the scale of the network's schedule, by law or, unknown, by numbers."""
    if node.schedule is not None:
        return same_law(node.schedule, schedule)
    there = level_at(schedule, node.lam)
    # Loose enough for levels that were written in float32.
    return abs(there.alpha - node.alpha) < 1e-5 and abs(there.sigma - node.sigma) < 1e-5


@lru_cache(maxsize=64)
def same_law(first: Schedule, second: Schedule) -> bool:
    """Equality, which compares tables of a thousand levels."""
    return first == second


class Level(NamedTuple):
    """A noise level as a schedule sees it."""

    alpha: float
    sigma: float
    label: float


def level_of(node: Node, schedule: Schedule) -> Level:
    """The level of `schedule` at the lam of a node, or at those of `several`."""
    lam: Any = node.lam
    if not isinstance(lam, Tensor):
        return level_at(schedule, lam)
    every = [level_at(schedule, each) for each in lam.flatten().tolist()]
    levels: Any = torch.tensor(every, dtype=torch.float64).T.reshape(3, *lam.shape)
    return Level(*levels)


@lru_cache(maxsize=4096)
def level_at(schedule: Schedule, lam: float) -> Level:
    """The level of `schedule` at lam; nodes are few and come back for every batch."""
    time = schedule.time(lam)
    return Level(
        float(schedule.alpha(time)), float(schedule.sigma(time)), float(schedule.label(time))
    )


def denoiser(
    network: Callable[..., Any],
    schedule: Schedule,
    prediction: Prediction = "eps",
    *,
    sigma_data: float = 0.5,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> NetworkDenoiser:
    """A denoiser (x, node) -> x0 from a network.

    `network(x, label, **kwargs)` gets x in the scale of its own `schedule`, a float32 label per
    sample, and `kwargs` (labels, text embeddings, ..); it returns a tensor or an object with
    `.sample`. `prediction` is what it returns: "eps", "x0", "v" (alpha eps - sigma x0), "flow"
    (eps - x0), or "edm" (the F of Karras et al. 2022, with `sigma_data`). `dtype` is that of the
    network's input; x0 comes back in the dtype of x.
    """
    return NetworkDenoiser(network, schedule, prediction, sigma_data, dtype, kwargs)


def checkpointed(
    denoiser: Callable[[Tensor, Node], Tensor],
) -> Callable[[Tensor, Node], Tensor]:
    """A denoiser that keeps only its input for the gradient, and is asked again for it."""

    def call(x: Tensor, node: Node) -> Tensor:
        found: Tensor = checkpoint(denoiser, x, node, use_reentrant=False)
        return found

    return call
