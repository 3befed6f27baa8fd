"""Guidance as denoiser wrappers: samplers never see it."""

from __future__ import annotations

from torch import Tensor

from ..schedules.grid import Node
from .executor import Denoiser


def cfg(cond: Denoiser, uncond: Denoiser, scale: float = 7.5) -> Denoiser:
    """Classifier-free guidance: uncond + scale (cond - uncond), two network calls a node.

    Written in x0, it is the same for every prediction type, which are affine in x0. scale 1 is off:
    then `cond` itself is returned and the second call is never made (Ho and Salimans 2022,
    "Classifier-Free Diffusion Guidance", eq. 6, whose w is scale - 1).
    """
    if scale == 1:
        return cond

    def guided(x: Tensor, node: Node) -> Tensor:
        return uncond(x, node).lerp(cond(x, node), scale)

    return guided
