"""Predictions that are kept within the range of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..recall import Denoiser
from .guided import Ask, Guided


def thresholded(denoiser: Denoiser, quantile: float = 0.995, most: float = 1.0) -> Denoiser:
    """x0 bounded by a quantile of its own entries; see `dynamic_threshold`."""

    def rule(ask: Ask) -> Tensor:
        return dynamic_threshold(ask(denoiser), quantile, most)

    return Guided(rule)


def dynamic_threshold(x0: Tensor, quantile: float = 0.995, most: float = 1.0) -> Tensor:
    """Clip the entries of each sample to [-s, s] and divide them by s.

    s is the quantile of their absolute values, at least 1 and at most `most`; with `most` 1 it is
    plain clipping (Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with Deep
    Language Understanding", section 2.3, where `most` is infinite).
    """
    flat = x0.flatten(1)
    bound = torch.quantile(flat.abs(), quantile, dim=1, keepdim=True).clamp(1.0, most)
    return (flat.clamp(-bound, bound) / bound).reshape(x0.shape)
