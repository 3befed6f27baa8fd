"""What an extractor of features is: a network, what it sees of an image, and what identifies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...storage import digest
from ..precision import full_precision


class Outputs(NamedTuple):
    """One pass over N images, float32: `features` [N, D], and what else the network has.

    `logits` [N, C] are those of a classifier, for Inception scores; `spatial` [N, E] is a flattened
    map of an early layer, for sFID. None where the network has none.
    """

    features: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network with its preprocessing: uint8 images [N, C, H, W] -> `Outputs`.

    Parameters
    ----------
    name
        Stands beside every number made from its features, such as "inception" or "dinov2".
    network
        Maps what `prepare` returns to features [N, D] or `Outputs`; in evaluation mode.
    prepare
        Maps uint8 [N, channels, H, W] on the network's device to the network's float32 input.
    facts
        All that decides the numbers besides the name, as text: sha256 of the weights, resize,
        normalisation, layer. Features of other facts are not comparable.
    channels
        How many the images must have; a gray image is repeated for a network of 3. None: any.
    """

    name: str
    network: nn.Module
    prepare: Callable[[Tensor], Tensor]
    facts: Mapping[str, str]
    channels: int | None = 3

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the name and all facts."""
        return digest(self.name, dict(self.facts))

    @property
    def device(self) -> torch.device | None:
        """Where the network is; None if it has no numbers."""
        numbers = chain(self.network.parameters(), self.network.buffers())
        return next((each.device for each in numbers), None)

    def to(self, device: torch.device | str) -> Extractor:
        """The same on another device."""
        return replace(self, network=self.network.to(device))

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Outputs:
        """Extract in full float32, whatever the caller's autocast or TF32 settings are.

        Raises ValueError for images that are not uint8 [N, C, H, W] with the right C.
        """
        device = self.device or pixels.device
        with full_precision(device.type):
            inputs = self.prepare(with_channels(pixels, self.channels).to(device))
            out = self.network(inputs)
        features, *more = out if isinstance(out, Outputs) else Outputs(out)
        return Outputs(features.float(), *(None if each is None else each.float() for each in more))


def unrounded(extractor: Extractor, images: Tensor) -> Tensor:
    """Features [N, D] of images [N, C, H, W] in [-1, 1] that are not rounded to uint8 before.

    For differences smaller than a step of uint8, and for gradients; for numbers to be reported call
    the extractor.
    """
    levels = (images.float().clamp(-1, 1) + 1) * 127.5
    if levels.shape[1] == 1 and extractor.channels:
        levels = levels.expand(-1, extractor.channels, -1, -1)
    with full_precision(levels.device.type):
        out = extractor.network(extractor.prepare(levels))
    return (out.features if isinstance(out, Outputs) else out).float()


def with_channels(pixels: Tensor, channels: int | None) -> Tensor:
    """`pixels` with that many channels; ValueError for other shapes or types than an image's."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise ValueError(
            f"an extractor takes uint8 images [N, C, H, W] in 0..255, not {pixels.dtype} "
            f"{list(pixels.shape)}: `quantise` turns samples in [-1, 1] into them"
        )
    found = pixels.shape[1]
    if channels in (None, found):
        return pixels
    if found == 1:
        return pixels.expand(-1, channels, -1, -1)
    raise ValueError(f"the images have {found} channels, the extractor takes {channels}")
