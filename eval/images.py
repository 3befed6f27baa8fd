"""From samples to pictures: quantisation, tiling, PNG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..storage import write_atomically

Pixels = NDArray[np.uint8]


def quantise(x: Tensor) -> Tensor:
    """Samples in [-1, 1] as uint8: floor(127.5 x + 128), clipped to 0..255, as EDM's script.

    Raises ValueError naming the first sample that is not finite.
    """
    bad = ~x.isfinite().flatten(1).all(1)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(x)} samples are not finite, first: {int(bad.int().argmax())}"
        )
    return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def dequantise(pixels: Tensor) -> Tensor:
    """Inverse of `quantise` on its range: float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def tile(pixels: Tensor, columns: int = 10, gap: int = 2, paper: int = 128) -> Pixels:
    """Lay out uint8 images [N, C, H, W], row by row, as one picture [H', W'] or [H', W', 3]."""
    # Of latents, which have more, the first three.
    pixels = pixels[:, : 3 if pixels.shape[1] >= 3 else 1]
    n, channels, height, width = pixels.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    size = (rows * (height + gap) + gap, columns * (width + gap) + gap, channels)
    sheet = np.full(size, paper, dtype=np.uint8)
    for i, image in enumerate(pixels.cpu().numpy()):
        top, left = (
            gap + k * (s + gap) for k, s in zip(divmod(i, columns), (height, width), strict=True)
        )
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return sheet[..., 0] if channels == 1 else sheet


def save_image(pixels: Tensor, path: Path) -> None:
    """Write one uint8 image [C, H, W] as PNG, atomically."""
    values = pixels.cpu().numpy().transpose(1, 2, 0)
    buffer = io.BytesIO()
    picture = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
    picture.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def load_image(path: Path) -> Tensor:
    """Read one image of `save_image`, uint8 [C, H, W]; OSError if that cannot be done."""
    with Image.open(path) as picture:
        array = np.array(picture)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def thumbnails(pixels: Tensor, side: int = 128) -> Tensor:
    """The images [N, C, H, W] shrunk to at most `side` pixels, uint8; small ones as they are."""
    longest = max(pixels.shape[2:])
    if longest <= side:
        return pixels
    size = [max(1, round(length * side / longest)) for length in pixels.shape[2:]]
    small = functional.interpolate(pixels.float(), size, mode="area")
    return small.round().to(torch.uint8)


def save_grid(pixels: Tensor, path: Path, columns: int = 10, zoom: int = 2) -> None:
    """Write uint8 images as one PNG; every pixel becomes `zoom` x `zoom`, unsmoothed."""
    picture = Image.fromarray(tile(pixels, columns))
    big = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    big.save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())
