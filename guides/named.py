"""Guidance by name, for a model and a batch of its samples: "apg,scale=6,norm=10"."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..eval.models import Draw, NetworkModel, load_model
from ..eval.models.model import counting
from ..samplers import Denoiser, Tableau, guidance
from ..samplers.denoiser import NetworkDenoiser


class Batch(NamedTuple):
    """What guidance is made for: a model, the draw of its samples, and their denoiser so far."""

    model: NetworkModel
    draw: Draw
    denoiser: Denoiser

    @property
    def own(self) -> Denoiser:
        """The bare denoiser of these samples."""
        return self.model.denoiser_of(replace(self.draw, guidance=1.0))

    @property
    def free(self) -> Denoiser:
        """That of no class in particular; ValueError where there is no class."""
        if self.model.classes is None:
            raise ValueError(f"{self.model.name} has no classes to guide by")
        if self.draw.labels is None:
            raise ValueError("this guidance is towards a class: give a label")
        return self.model.denoiser(None, len(self.draw.seeds))


def cfg(batch: Batch, scale: float = 2.0) -> Denoiser:
    """Away from the model without a class."""
    return batch.denoiser if scale == 1 else guidance.cfg(batch.denoiser, batch.free, scale)


def interval(batch: Batch, scale: float = 3.0, low: float = 0.3, high: float = 5.0) -> Denoiser:
    """Cfg where low < sigma / alpha <= high, a call less elsewhere."""
    return guidance.cfg(batch.denoiser, batch.free, guidance.interval(scale, low, high))


def plus_plus(batch: Batch, strength: float = 0.6) -> Denoiser:
    """CFG++: noised again by what is not guided."""
    return guidance.cfg(batch.denoiser, batch.free, guidance.plus_plus(strength))


def rescaled(batch: Batch, scale: float = 3.0, rescale: float = 0.7) -> Denoiser:
    """Cfg with the deviation of what is not guided."""
    own = batch.own
    prediction = own.prediction if isinstance(own, NetworkDenoiser) else "v"
    return guidance.rescaled(
        batch.denoiser, batch.free, scale, rescale, "v" if prediction == "edm" else prediction
    )


def zero_star(batch: Batch, scale: float = 3.0, zero_steps: int = 1) -> Denoiser:
    """CFG-Zero*, for flows."""
    return guidance.zero_star(batch.denoiser, batch.free, scale, zero_steps)


def apg(
    batch: Batch,
    scale: float = 4.0,
    momentum: float = 0.0,
    norm: float = math.inf,
    parallel: float = 0.0,
    name: str = "apg",
) -> Denoiser:
    """Cfg without what is parallel to the prediction, or too long."""
    return guidance.apg(
        batch.denoiser,
        batch.free,
        scale,
        momentum=momentum,
        norm=norm,
        parallel=parallel,
        name=name,
    )


def auto(batch: Batch, model: str, scale: float = 2.0) -> Denoiser:
    """Away from a worse model with the same condition."""
    other = worse(model, batch.model.device)
    if other.shape != batch.model.shape:
        raise ValueError(f"auto: {model} is no network for samples like {batch.model.name}'s")
    return guidance.autoguidance(batch.denoiser, batch._replace(model=other).own, scale)


@lru_cache(maxsize=4)
def worse(name: str, device: torch.device) -> NetworkModel:
    """Another model, loaded once."""
    found = load_model(name, device)
    if not isinstance(found, NetworkModel):
        raise ValueError(f"auto: {name} is a whole pipeline, and not a network alone")
    return found


def pag(
    batch: Batch,
    layers: str = "mid_block",
    scale: float = 2.0,
    kind: str = "identity",
    blur: float = math.inf,
) -> Denoiser:
    """Away from perturbed layers: kind identity (PAG), blurred (SEG) or skipped (SLG)."""
    # Here, because it takes seconds.
    from ..integrations import perturbed

    own = batch.own
    if not isinstance(own, NetworkDenoiser):
        raise ValueError(f"pag: {batch.model.name} is no network of diffusers")
    kinds: Any = kind
    weak = replace(own, network=perturbed(batch.model.network, layers, kinds, blur))
    return guidance.autoguidance(batch.denoiser, weak, scale)


def minority(batch: Batch, folder: str, scale: float = 3.5, level: int = -1) -> Denoiser:
    """Towards a level of rarity (-1: the last), by `fewstep train minority`."""
    found = levels_of(folder, batch.model.device)
    levels = found.head.out_features
    if not -levels <= level < levels:
        raise ValueError(f"minority: level {level} is not one of 0 to {levels - 1}")
    return guidance.classifier(batch.denoiser, found.towards(level % levels), scale)


@lru_cache(maxsize=4)
def levels_of(folder: str, device: torch.device) -> Any:
    """The classifier in a folder, loaded once."""
    # Here, because it takes seconds.
    from .classifier import load_noisy_classifier

    return load_noisy_classifier(folder).to(device)


def self_guided(batch: Batch, scale: float = 0.2, time: float = 0.8, every: int = 1) -> Denoiser:
    """Towards what is reconstructed badly from the noise of a time: rare samples, no classifier."""
    schedule = batch.model.schedule
    node = guidance.node_at(schedule, time * schedule.t_max)
    return guidance.self_guided(batch.denoiser, node, scale, batch.draw.seeds, every=every)


def threshold(batch: Batch, quantile: float = 0.995, most: float = 1.0) -> Denoiser:
    """X0 kept within the range of the data."""
    return guidance.thresholded(batch.denoiser, quantile, most)


GUIDANCE: dict[str, Callable[..., Denoiser]] = {
    "cfg": cfg,
    "interval": interval,
    "cfg++": plus_plus,
    "rescaled": rescaled,
    "zero-star": zero_star,
    "apg": apg,
    "auto": auto,
    "pag": pag,
    "minority": minority,
    "self": self_guided,
    "threshold": threshold,
}


class Asked(NamedTuple):
    """A guidance and its options."""

    name: str
    options: dict[str, Any]


def parsed(text: str) -> Asked:
    """What "apg,scale=6,norm=10" says; a number alone is the scale of cfg.

    ValueError for an unknown name or option, an option without a value or of another kind, and for
    one that is missing.
    """
    head, *rest = [part.strip() for part in text.split(",")]
    try:
        scale = float(head)
    except ValueError:
        return named(head, rest)
    return named("cfg", [f"scale={scale}", *rest])


def named(head: str, rest: Sequence[str]) -> Asked:
    """The guidance of a name with its options."""
    if head not in GUIDANCE:
        raise ValueError(f"no guidance {head!r}: a number, or {', '.join(GUIDANCE)}")
    known = {k: p for k, p in signature(GUIDANCE[head]).parameters.items() if k != "batch"}
    options: dict[str, Any] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            raise ValueError(f"{head}: {part!r} is no option; there is {described(head)}")
        options[key] = typed(head, key, known[key].annotation, value)
    missing = [k for k, p in known.items() if p.default is p.empty and k not in options]
    if missing:
        raise ValueError(f"{head} needs {missing[0]}: {described(head)}")
    return Asked(head, options)


def typed(head: str, key: str, kind: str, text: str) -> Any:
    """The value of an option, a number where it is one."""
    if kind not in ("float", "int"):
        return text
    try:
        value = int(text) if kind == "int" else float(text)
    except ValueError:
        sort = "whole number" if kind == "int" else "number"
        raise ValueError(f"{head}: {key} is a {sort}, not {text}") from None
    if not (math.isfinite(value) or key in UNBOUNDED):
        raise ValueError(f"{head}: {key} is a finite number, not {text}")
    return value


# Of which infinity means something.
UNBOUNDED = ("norm", "blur", "high", "most")


def described(name: str) -> str:
    """A guidance's options with what they are by default."""
    known = signature(GUIDANCE[name]).parameters.values()
    return ",".join(
        f"{p.name}=.." if p.default is p.empty else f"{p.name}={p.default}"
        for p in known
        if p.name != "batch"
    )


def sampled(
    model: NetworkModel,
    table: Tableau,
    draw: Draw,
    asked: Sequence[Asked],
    batch_size: int = 100,
    on_call: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """As `in_batches`, guided by all that is asked for; `on_call` hears of other networks, too."""
    found = []
    with ExitStack() as stack, torch.no_grad():
        for network in networks_of(model, asked):
            stack.enter_context(counting(network, on_call))
        for first in range(0, len(draw.seeds), batch_size):
            part = draw.part(slice(first, first + batch_size))
            found.append(model.sampled(table, part, guided(asked, model, part)).cpu())
    return torch.cat(found)


def summary(name: str) -> str:
    """How a guidance is written, and what it does."""
    return f"{name},{described(name)}: {inspect.getdoc(GUIDANCE[name])}"


def networks_of(model: NetworkModel, asked: Sequence[Asked]) -> list[torch.nn.Module]:
    """The networks that denoise: that of the model, and of worse ones to go away from."""
    others = [worse(e.options["model"], model.device) for e in asked if e.name == "auto"]
    return [model.network, *(each.network for each in others)]


def guided(
    asked: Sequence[Asked], model: NetworkModel, draw: Draw
) -> Callable[[Denoiser], Denoiser]:
    """What makes the denoiser of a draw into a guided one, the first first."""

    def wrap(denoiser: Denoiser) -> Denoiser:
        for each in asked:
            denoiser = GUIDANCE[each.name](Batch(model, draw, denoiser), **each.options)
        return denoiser

    return wrap
