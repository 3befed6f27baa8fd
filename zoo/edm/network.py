"""A published denoiser: a U-Net and its preconditioning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .preconditioning import EDM, preconditioning
from .unet import UNet, unet_config


class EDMNetwork(nn.Module):
    """D(x, sigma, class_labels) -> x0 = c_skip x + c_out F(c_in x, label), x = x0 + sigma eps.

    Karras et al. 2022, eq. 7. `config` is plain data: {"preconditioning": {"kind": "edm" | "vp" |
    "ve" | "iddpm", ..}, "unet": {..}}, the fields of the classes in `preconditioning` and of
    `UNetConfig`; ValueError for what they refuse. Everything is computed in float32.

    Attributes: `img_resolution`, `img_channels`, `label_dim` (0: unconditional), `sigma_min`,
    `sigma_max` (the range of noise levels that the network is for, perhaps 0 to infinity) and
    `sigma_data` (None where the preconditioning has none).
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        # A copy, with lists for tuples as a file would have them.
        self.config: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))
        unet = unet_config(self.config["unet"])
        self.preconditioning = preconditioning(**self.config["preconditioning"])
        self.model = UNet(unet)
        self.img_resolution, self.img_channels = unet.resolution, unet.in_channels
        self.label_dim, self.augment_dim = unet.label_dim, unet.augment_dim
        self.sigma_min: float = self.preconditioning.sigma_min
        limit = self.preconditioning.sigma_max
        self.sigma_max: float = math.inf if limit is None else limit
        own = self.preconditioning
        self.sigma_data = own.sigma_data if isinstance(own, EDM) else None

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x0 [N, C, R, R] in float32.

        x [N, C, R, R] of any float dtype; sigma > 0, [N] or one for all; class_labels [N] integers
        or [N, label_dim] weights, None for no class; augment_labels [N, augment_dim] of the
        training, None for no augmentation. Raises ValueError for other shapes, labels for a
        network without, and, where it can be seen without waiting for a device, numbers out of
        range.
        """
        size = (self.img_channels, self.img_resolution, self.img_resolution)
        if x.ndim != 4 or x.shape[1:] != size:
            raise ValueError(f"x must be [N, {', '.join(map(str, size))}], got {list(x.shape)}")
        levels = self.levels(sigma, len(x)).to(x.device)
        x = x.float()
        c_skip, c_out, c_in, label = self.preconditioning(levels)
        classes = self.classes(class_labels, len(x), x.device)
        augment = None if augment_labels is None else augment_labels.float()
        out = self.model(column(c_in) * x, label, classes, augment)
        return column(c_skip) * x + column(c_out) * out[:, : self.img_channels]

    def levels(self, sigma: Tensor, count: int) -> Tensor:
        """`sigma` as float32 [count]; ValueError unless positive."""
        if sigma.numel() not in (1, count) or sigma.ndim > 1:
            raise ValueError(f"sigma must be one number or [{count}], got {list(sigma.shape)}")
        levels = sigma.float().expand(count)
        if levels.device.type == "cpu" and not bool(((levels > 0) & levels.isfinite()).all()):
            raise ValueError(f"sigma must be positive and finite, got {sigma.tolist()}")
        return levels

    def classes(self, labels: Tensor | None, count: int, device: torch.device) -> Tensor | None:
        """Weights of the classes [count, label_dim]; None for an unconditional network."""
        if not self.label_dim:
            if labels is not None:
                raise ValueError("class_labels were given to a network without classes: leave them")
            return None
        if labels is None:
            return torch.zeros(count, self.label_dim, device=device)
        if labels.shape == (count, self.label_dim):
            return labels.to(device, torch.float32)
        if labels.shape != (count,) or labels.is_floating_point():
            raise ValueError(
                f"class_labels must be integers [{count}] or weights [{count}, {self.label_dim}], "
                f"got {labels.dtype} {list(labels.shape)}"
            )
        if labels.device.type == "cpu" and not bool(
            ((labels >= 0) & (labels < self.label_dim)).all()
        ):
            raise ValueError(
                f"class_labels must lie in 0..{self.label_dim - 1}, got {labels.tolist()}"
            )
        return functional.one_hot(labels.to(device).long(), self.label_dim).float()


def column(numbers: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, 1]."""
    return numbers[:, None, None, None]
