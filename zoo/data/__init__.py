"""Packaged image data.

`mnist10k.npz` holds 10,000 digits of MNIST (Y. LeCun, C. Cortes, C. J. C. Burges), about 1,000 per
class, redistributed under CC BY-SA 3.0; see `NOTICE.md` beside it.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Images(NamedTuple):
    """A labelled image set: `images` float32 [N, C, H, W] in [-1, 1] and `labels` int64 [N]."""

    images: Tensor
    labels: Tensor


def mnist() -> Images:
    """Return the 10,000 packaged digits as [10000, 1, 28, 28] in [-1, 1] (ink is +1)."""
    with files(__name__).joinpath("mnist10k.npz").open("rb") as file, np.load(file) as data:
        images = torch.from_numpy(data["images"]).float().div_(127.5).sub_(1.0)
        labels = torch.from_numpy(data["labels"]).long()
    return Images(images[:, None], labels)
