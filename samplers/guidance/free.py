"""Guidance by the difference of two denoisers: classifier-free guidance and its kin.

All are written in x0, where c is the prediction that is wanted (with a condition, of the better
network), u the one to go away from, and w the scale: u + w (c - u).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...schedules.grid import Node
from ..basis import Basis, affine
from ..recall import Denoiser
from ..sums import mix
from .guided import Ask, Guided

# A number, or one for each node.
Scale = float | Callable[[Node], float]


def cfg(cond: Denoiser, uncond: Denoiser, scale: Scale = 7.5) -> Denoiser:
    """Classifier-free guidance: u + scale (c - u), two network calls a node.

    Written in x0, it is the same for every prediction type, which are affine in x0. scale 1 is off:
    then `cond` itself is returned and the second call is never made (Ho and Salimans 2022,
    "Classifier-Free Diffusion Guidance", eq. 6, whose w is scale - 1). A function of the node, such
    as `interval` or `plus_plus`, is a scale of its own at each node, and the second call is made
    where that is not 1.
    """
    if scale == 1:
        return cond

    def rule(ask: Ask) -> Tensor:
        w = scale_at(ask, scale)
        return ask(cond) if w == 1 else ask(uncond).lerp(ask(cond), w)

    return Guided(rule)


def autoguidance(good: Denoiser, bad: Denoiser, scale: Scale = 2.0) -> Denoiser:
    """Guidance away from a worse network: bad + scale (good - bad), both with the same condition.

    `bad` is a smaller network, or one that was trained for less long, with the same kind of errors;
    it costs what it costs (Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of
    Itself", eq. 3). In form it is `cfg`.
    """
    return cfg(good, bad, scale)


def interval(scale: float, low: float, high: float) -> Callable[[Node], float]:
    """A scale that is 1, off, but where low < sigma / alpha <= high.

    Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and
    Distribution Quality in Diffusion Models", eq. 4. Noise levels decide, not steps, so that it
    means the same on every grid and for every number of evaluations. Raises ValueError for an
    interval that is empty.
    """
    if not 0 <= low < high:
        raise ValueError(f"interval: low must be 0 or more and below high, not {low} and {high}")

    def at(node: Node) -> float:
        inside = low * node.alpha < node.sigma <= high * node.alpha
        return scale if inside or (node.alpha == 0 and math.isinf(high)) else 1.0

    return at


def anew(denoiser: Denoiser, phase: Callable[[Node], float], name: str = "phase") -> Denoiser:
    """`denoiser`, whose earlier outputs count no more where `phase` changes from node to node.

    Between a node that is guided and one that is not, as at the ends of an `interval`, x0 jumps,
    and a multistep solver takes the jump for a slope. With the scale as `phase` it begins again
    there, with a step of first order. `phase` is remembered with the samples, under `name`: two in
    one denoiser need two names. It helps where guidance is strong and steps are few, and costs an
    order at that step elsewhere.
    """

    def rule(ask: Ask) -> Tensor:
        ask.one_level("a phase by node")
        now = torch.full((len(ask.x),), float(phase(ask.node)), device=ask.x.device)
        before = ask.memory.get(name)
        if before is not None:
            ask.forget(now != before)
        ask.remember(name, now)
        return ask(denoiser)

    return Guided(rule)


def plus_plus(strength: float) -> Callable[[Node], float]:
    """The scale of CFG++: strength / (1 - e^-h), where h is the step in lam from this node.

    With it DDIM's step is alpha' (u + strength (c - u)) + sigma' eps_u: the guided x0 is noised
    again by the noise that is not guided. `strength` is between 0 and 1 (Chung et al. 2024,
    "CFG++: Manifold-constrained Classifier Free Guidance", algorithm 2; the equality is exact). For
    solvers that take a step from every node. Raises ValueError at a last node.
    """

    def at(node: Node) -> float:
        if node.next is None:
            raise ValueError("plus_plus: the last node takes no step")
        return strength / -math.expm1(node.lam - node.next.lam)

    return at


def rescaled(
    cond: Denoiser,
    uncond: Denoiser,
    scale: Scale = 7.5,
    rescale: float = 0.7,
    prediction: Basis = "v",
) -> Denoiser:
    """`cfg` whose prediction has, by the share `rescale`, the deviation of that of `cond`.

        m = rescale std(m_c) / std(m_w) m_w + (1 - rescale) m_w

    in the network's own `prediction`, where std is that of all entries of a sample. Against the
    over-exposure of large scales (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample
    Steps are Flawed", eq. 15 and 16). 0 is `cfg`.
    """

    def rule(ask: Ask) -> Tensor:
        w = scale_at(ask, scale)
        c = ask(cond)
        if w == 1:
            return c
        m_c, m = (predicted(ask, x0, prediction) for x0 in (c, ask(uncond).lerp(c, w)))
        ratio = per_sample(m_c.flatten(1).std(1) / m.flatten(1).std(1), m)
        return clean(ask, m * (rescale * ratio + (1 - rescale)), prediction)

    return Guided(rule)


def zero_star(
    cond: Denoiser,
    uncond: Denoiser,
    scale: Scale = 4.0,
    zero_steps: int = 1,
    prediction: Basis = "flow",
) -> Denoiser:
    """CFG-Zero*: u is first scaled to be nearest to c, and the first steps stand still.

        m = s m_u + scale (m_c - s m_u),   s = <m_c, m_u> / |m_u|^2 of each sample

    in the velocity `prediction`, which is 0 at the first `zero_steps` nodes, stages inside steps
    included; multistep solvers begin after them (Fan et al. 2025, "CFG-Zero*: Improved
    Classifier-Free Guidance for Flow Matching Models", eq. 8 and 9).
    """

    def rule(ask: Ask) -> Tensor:
        if ask.node.index < zero_steps:
            return clean(ask, ask.x * 0, prediction)
        if ask.node.index == zero_steps:
            # Standing still says nothing about what comes.
            ask.forget()
        w = scale_at(ask, scale)
        c = ask(cond)
        if w == 1:
            return c
        m_c, m_u = (predicted(ask, x0, prediction) for x0 in (c, ask(uncond)))
        m_u = m_u * (dot(m_c, m_u) / dot(m_u, m_u))
        return clean(ask, m_u.lerp(m_c, w), prediction)

    return Guided(rule)


def apg(
    cond: Denoiser,
    uncond: Denoiser,
    scale: Scale = 7.5,
    *,
    momentum: float = 0.0,
    norm: float = math.inf,
    parallel: float = 0.0,
    name: str = "apg",
) -> Denoiser:
    """Adaptive projected guidance: of c - u what is parallel to c, and too long, is left out.

        d[n] = c - u + momentum d[n-1];   cut to length `norm`;   d = across + parallel along c,
        x0 = c + (scale - 1) (across + `parallel` d_along)

    for each sample, lengths being those of all its entries. What saturates images lies along c
    (Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales in
    Diffusion Models", algorithm 1). Momentum 0, no norm and parallel 1 are `cfg`. The paper's
    momentum, -0.5, is for many steps; d is remembered with the samples then, under `name`: two in
    one denoiser need two names.
    """

    def rule(ask: Ask) -> Tensor:
        w = scale_at(ask, scale)
        c = ask(cond)
        if w == 1:
            return c
        d = c - ask(uncond)
        if momentum:
            before = ask.memory.get(name)
            d = d if before is None else d + momentum * before
            ask.remember(name, d)
        if math.isfinite(norm):
            d = d * (norm / dot(d, d).sqrt()).clamp(max=1)
        along = c * (dot(d, c) / dot(c, c))
        return c + (w - 1) * (d - along + parallel * along)

    return Guided(rule)


def scale_at(ask: Ask, scale: Scale) -> float:
    """The scale at the node."""
    if not callable(scale):
        return scale
    ask.one_level("a scale by node")
    return scale(ask.node)


def predicted(ask: Ask, x0: Tensor, prediction: Basis) -> Tensor:
    """A prediction of x0 as one of another kind."""
    p, q = affine(prediction, ask.node.alpha, ask.node.sigma)
    return mix(ask.x, p, x0, q)


def clean(ask: Ask, m: Tensor, prediction: Basis) -> Tensor:
    """The x0 of a prediction; ValueError where that says nothing about it."""
    p, q = affine(prediction, ask.node.alpha, ask.node.sigma)
    mute: Any = q == 0
    if mute if isinstance(mute, bool) else mute.any():
        raise ValueError(
            f"node {ask.node.index} is pure noise (alpha = 0), where a prediction of {prediction} "
            "says nothing about x0"
        )
    return mix(ask.x, -p / q, m, 1 / q)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, [B, 1, ..]."""
    return per_sample((a.flatten(1) * b.flatten(1)).sum(1), a)


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Numbers of samples, [B], as they broadcast against x."""
    return values.view(-1, *[1] * (x.ndim - 1))
