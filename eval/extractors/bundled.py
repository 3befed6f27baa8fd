"""Extractors that need no file: the pixels themselves, and the bundled digit classifier."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ... import zoo
from ...storage import fingerprint
from ..images import dequantise
from .extractor import Extractor, Outputs

# Of the covariance D x D: a Frechet distance of more dimensions is mostly bias and takes minutes.
MOST_PIXELS = 4096


def pixels(channels: int | None = None) -> Extractor:
    """The pixels / 255 as features [N, C H W]; for small images, where the truth is known.

    `channels` 3 repeats gray images; None takes images as they are.

    Images of more than 4096 numbers raise ValueError.
    """
    facts = {"layer": "pixels / 255", "channels": str(channels or "any")}
    return Extractor("pixels", nn.Identity(), flat, facts, channels)


def flat(images: Tensor) -> Tensor:
    """Uint8 [N, C, H, W] -> float32 [N, C H W] in [0, 1]."""
    width = images.shape[1:].numel()
    if width > MOST_PIXELS:
        raise ValueError(
            f"images of {list(images.shape[1:])} have {width} numbers, too many for pixels as "
            f"features (at most {MOST_PIXELS}): take another extractor, such as effnet-lite0"
        )
    return images.flatten(1).float() / 255


def mnist_classifier(path: str | None = None) -> Extractor:
    """The bundled digit classifier: 64 features and 10 logits of gray 28 x 28 images.

    `path` is the folder of another that `fewstep train mnist-classifier` made, such as one that
    judges what was trained with the bundled one.
    """
    classifier = zoo.mnist_classifier() if path is None else zoo.load_classifier(Path(path))
    facts = {"weights": fingerprint(classifier), "layer": "penultimate", "range": "-1 to 1"}
    network = FeaturesAndLogits(classifier)
    name = f"mnist-classifier-{classifier.width}"
    return Extractor(name, network, digits, facts, channels=1)


class FeaturesAndLogits(nn.Module):
    """`Outputs` of a bundled classifier."""

    def __init__(self, classifier: zoo.Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Outputs:
        """Features [N, width] and logits [N, classes] of images in [-1, 1]."""
        features = self.classifier.features(images)
        return Outputs(features, self.classifier.head(features))


def digits(images: Tensor) -> Tensor:
    """Uint8 [N, 1, 28, 28] -> float32 in [-1, 1]; ValueError for another size."""
    if images.shape[2:] != (28, 28):
        found = " x ".join(map(str, images.shape[2:]))
        raise ValueError(f"the digit classifier sees images of 28 x 28, not {found}")
    return dequantise(images)
