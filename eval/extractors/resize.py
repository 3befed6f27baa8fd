"""Resizes of images, by the conventions that published numbers were made with.

On 32 x 32 images they differ by 3 levels on average, and an FID of 8 by 0.5: statistics of one say
nothing beside samples of another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

Resize = Callable[[Tensor, int], Tensor]


def tf1(images: Tensor, size: int) -> Tensor:
    """Bilinear as TensorFlow 1 does it: output pixel i looks at i in / out, its corner.

    No half pixel, no antialiasing. Used by the first FID code, ADM's evaluator, torch-fidelity; the
    affine grid of StyleGAN2, 3 and EDM is the same to 0.01 of a level.
    """
    height, width = images.shape[-2:]
    rows, columns = (
        corner_weights(length, size).float().to(images.device) for length in (height, width)
    )
    return rows @ (images.float() @ columns.T)


@lru_cache(maxsize=32)
def corner_weights(length: int, size: int) -> Tensor:
    """Float64 [size, length], rows that interpolate between the neighbours of i length / size."""
    position = torch.arange(size, dtype=torch.float64) * length / size
    low = position.long()
    high = (low + 1).clamp(max=length - 1)
    share = (position - low)[:, None]
    eye = torch.eye(length, dtype=torch.float64)
    return torch.lerp(eye[low], eye[high], share)


def interpolated(images: Tensor, size: int, mode: str, antialias: bool) -> Tensor:
    """What torch makes of it, clipped to 0..255, which bicubic weights leave at edges."""
    # In float64 because Pillow has such weights: float32 ones move a pixel by 0.004 of a level.
    resized = F.interpolate(
        images.double(), (size, size), mode=mode, align_corners=False, antialias=antialias
    )
    return resized.clamp(0, 255).float()


# [N, C, H, W] in 0..255, uint8 or float -> float32 [N, C, size, size].
RESIZES: dict[str, Resize] = {
    "tf1": tf1,
    # clean-fid's: Pillow's bicubic filter on each channel, not rounded (Parmar et al. 2022).
    "clean": partial(interpolated, mode="bicubic", antialias=True),
    # pytorch-fid's: bilinear between centres of pixels.
    "torch": partial(interpolated, mode="bilinear", antialias=False),
    # The default of torchmetrics.
    "torch-antialias": partial(interpolated, mode="bilinear", antialias=True),
}
