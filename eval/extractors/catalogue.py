"""Extractors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .bundled import mnist_classifier, pixels
from .efficientnet import efficientnet_lite0, packaged_weights
from .exported import exported
from .extractor import Extractor
from .inception import WEIGHTS, inception
from .vision import CLIP, DINOV2, clip, dinov2, weights_file
from .weights import find


class Entry(NamedTuple):
    """What an extractor is, what builds it, and where its weights are without any download.

    `locate` raises MissingWeights or ImportError where they are not; None: they come with fewstep.
    """

    summary: str
    build: Callable[..., Extractor]
    locate: Callable[[], Path] | None = None


EXTRACTORS: dict[str, Entry] = {
    "inception": Entry(
        "Inception v3 of 2015: FID, KID, IS, sFID as published",
        inception,
        lambda: find(WEIGHTS, offline=True).path,
    ),
    "dinov2": Entry(
        "DINOv2 ViT-L/14: FD-DINOv2", dinov2, lambda: weights_file(DINOV2, offline=True)
    ),
    "clip": Entry(
        "CLIP ViT-L/14 at 336 pixels: CMMD", clip, lambda: weights_file(CLIP, offline=True)
    ),
    "effnet-lite0": Entry(
        "EfficientNet-Lite0: no download at run time", efficientnet_lite0, packaged_weights
    ),
    "mnist-classifier": Entry("the bundled digit classifier: 28 x 28 gray", mnist_classifier),
    "pixels": Entry("the pixels themselves: small images", pixels),
}


def extractor(spec: str, device: torch.device | str = "cpu", **options: Any) -> Extractor:
    """The extractor of that name, or in that exported file, on a device.

    `options` go to what builds it: `dinov2(name=..)`, `exported(size=.., mean=..)`, and so on.
    Raises ValueError listing the names for anything else, and for a file with the name of one.
    """
    if spec in EXTRACTORS:
        check_options(spec, EXTRACTORS[spec].build, options)
        return EXTRACTORS[spec].build(**options).to(device)
    if Path(spec).is_file():
        check_options(spec, exported, options)
        found = exported(spec, **options).to(device)
        check_free(found.name)
        return found
    names = "\n".join(f"  {name:<18}{entry.summary}" for name, entry in EXTRACTORS.items())
    raise ValueError(
        f"there is no extractor {spec!r}, nor a file at that path. Extractors are:\n{names}\n"
        f"or the path of a network exported by torch.jit.save or torch.export.save (.pt2)"
    )


def check_options(spec: str, build: Callable[..., Extractor], options: Mapping[str, Any]) -> None:
    """ValueError for options that `build` does not have, with those that it has."""
    known = [name for name in signature(build).parameters if name != "path" or spec in EXTRACTORS]
    for name in options:
        if name not in known:
            there = f"there is {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{spec} has no option {name!r}; {there}")


def check_free(name: str) -> None:
    """ValueError for the names of the extractors here: FID is what "inception" makes."""
    for taken in EXTRACTORS:
        if name == taken or name.startswith(f"{taken}-"):
            raise ValueError(
                f"an exported network cannot be called {name!r}, as if it were the extractor "
                f"{taken}: give it a name of its own (name=..), or rename the file"
            )
