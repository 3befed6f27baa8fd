"""What a network sees of an image: resized, scaled and normalised."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .resize import Resize


@dataclass(frozen=True)
class Preprocessing:
    """uint8 images [N, C, H, W] -> float32 (resize(x) / 255 - mean) / std.

    Parameters
    ----------
    mean, std
        One number, or one per channel, in the unit of images in [0, 1].
    size
        The height and width of what the network sees; None leaves the images as they are.
    rule, resize
        The name of the resize, and the function (images, size) -> images in 0..255.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None
    rule: str = "native"
    resize: Resize | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(
                f"mean and std need equally many numbers and std > 0, "
                f"not mean {list(self.mean)} and std {list(self.std)}"
            )
        if (self.size is None) != (self.resize is None):
            raise ValueError("a size needs a resize, and a resize a size")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")

    def __call__(self, pixels: Tensor) -> Tensor:
        """Prepare a batch. Raises ValueError for another number of channels than mean has."""
        if len(self.mean) not in (1, pixels.shape[1]):
            raise ValueError(
                f"mean and std are of {len(self.mean)} channels, the images have {pixels.shape[1]}"
            )
        images = pixels.float()
        if self.resize is not None and self.size is not None:
            images = self.resize(images, self.size)
        mean, std = (images.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        return (images / 255 - mean) / std

    @property
    def facts(self) -> dict[str, str]:
        """All of it as text, for the facts of an extractor."""
        return {
            "resize": "native" if self.size is None else f"{self.rule} to {self.size}",
            "mean": " ".join(map(repr, self.mean)),
            "std": " ".join(map(repr, self.std)),
        }
