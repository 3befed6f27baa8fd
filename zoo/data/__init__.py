"""Packaged image data, and files of images and labels like it.

`mnist10k.npz` holds 10,000 digits of MNIST (Y. LeCun, C. Cortes, C. J. C. Burges), about 1,000 per
class, redistributed under CC BY-SA 3.0; see `NOTICE.md` beside it.
"""

from __future__ import annotations

import zlib
from importlib.resources import files
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ...storage import digest


class Images(NamedTuple):
    """A labelled image set: `images` float32 [N, C, H, W] in [-1, 1] and `labels` int64 [N]."""

    images: Tensor
    labels: Tensor


def mnist() -> Images:
    """Return the 10,000 packaged digits as [10000, 1, 28, 28] in [-1, 1] (ink is +1)."""
    with files(__name__).joinpath("mnist10k.npz").open("rb") as file:
        return unpacked(file)


def load_images(source: str) -> Images:
    """The images of a training: "mnist", or an .npz with uint8 `images` and integer `labels`.

    `images` are [N, H, W], [N, H, W, C] or [N, C, H, W]. ValueError for anything else.
    """
    if source == "mnist":
        return mnist()
    try:
        with Path(source).open("rb") as file:
            return unpacked(file)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{source} is neither mnist nor an .npz of uint8 images and labels: {error}"
        ) from error


def unpacked(file: IO[bytes]) -> Images:
    """The images and labels in an .npz."""
    with np.load(file, allow_pickle=False) as data:
        pixels = data["images"] if data["images"].ndim == 4 else data["images"][..., None]
        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            raise ValueError(f"images are {data['images'].dtype} {data['images'].shape}")
        if pixels.shape[3] in (1, 3) or pixels.shape[1] not in (1, 3):
            pixels = pixels.transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.ascontiguousarray(pixels)).float().div_(127.5).sub_(1.0)
        if data["labels"].dtype.kind not in "iu" or data["labels"].min(initial=0) < 0:
            raise ValueError(f"labels are whole numbers from 0, not {data['labels'].dtype}")
        labels = torch.from_numpy(data["labels"].astype(np.int64))
    if labels.shape != (len(images),):
        raise ValueError(f"{list(labels.shape)} labels for {len(images)} images")
    return Images(images, labels)


def identity(images: Images) -> str:
    """A digest of the pixels, uint8 [N, C, H, W], without their labels."""
    pixels = images.images.add(1).mul_(127.5).round_().to(torch.uint8)
    return digest(pixels.numpy())
