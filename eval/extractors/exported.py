"""Any network as an extractor: a TorchScript or torch.export file with declared preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import torch
from torch import Tensor, nn

from .extractor import Extractor
from .prepare import Preprocessing
from .resize import RESIZES
from .weights import sha256_of


def exported(
    path: str | Path,
    *,
    size: int | None = None,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    resize: str = "clean",
    channels: int = 3,
    name: str | None = None,
) -> Extractor:
    """The extractor in a file of `torch.jit.save`, or of `torch.export.save` if it ends in .pt2.

    Either runs the code inside: use files from those you trust. The network maps float32
    [N, channels, size, size] (size None: images as they are) to features [N, D] or [N, D, 1, 1];
    export it for any N. It sees (x / 255 - mean) / std, with one number or one per channel, of
    images x resized by the rule `resize` of `RESIZES`. `name` stands beside the numbers, the file's
    name by default. Raises FileNotFoundError, and ValueError for another resize, a file of neither
    kind, or another output.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no exported network at {path}")
    if resize not in RESIZES:
        raise ValueError(f"resize must be one of {', '.join(RESIZES)}, not {resize!r}")
    if len(mean) not in (1, channels):
        raise ValueError(f"mean and std need 1 or {channels} numbers, not {len(mean)}")
    rule = RESIZES[resize] if size is not None else None
    prepare = Preprocessing(tuple(mean), tuple(std), size, resize, rule)
    facts = {"weights": sha256_of(path), "channels": str(channels), **prepare.facts}
    return Extractor(name or path.stem, FlatFeatures(load(path)), prepare, facts, channels)


class FlatFeatures(nn.Module):
    """Features [N, D] of a network that gives them, maybe as [N, D, 1, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Raises ValueError for any other output, naming it."""
        out = self.network(images)
        if not isinstance(out, Tensor):
            kind = type(out).__name__
            raise ValueError(f"an exported network returns one tensor [N, D], not a {kind}")
        n = len(images)
        if out.ndim not in (2, 4) or out.shape[0] != n or out.shape[2:].numel() != 1:
            raise ValueError(
                f"an exported network returns features [N, D] or [N, D, 1, 1], not "
                f"{list(out.shape)} for {n} images: export it with its pooling"
            )
        return out.flatten(1)


def load(path: Path) -> nn.Module:
    """The network in a file, on the CPU."""
    try:
        # Both are, and torch.export would log a page about what is not.
        if not is_zipfile(path):
            raise BadZipFile("it is no archive")
        if path.suffix == ".pt2":
            # Its mode was fixed when it was exported.
            return torch.export.load(path).module()
        return torch.jit.load(path, map_location="cpu").eval()
    except (BadZipFile, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is neither a TorchScript file nor, ending in .pt2, one of torch.export: "
            f"{str(error).strip().splitlines()[0]} (what torch.save writes has no network inside)"
        ) from error
