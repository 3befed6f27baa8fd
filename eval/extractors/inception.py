"""The extractor of FID: the Inception network of 2015-12-05 with its published weights."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .extractor import Extractor, Outputs
from .inception_graph import MANIFEST, SIZE, Inception, manifest
from .resize import RESIZES
from .weights import WeightsFile, find

NVIDIA = WeightsFile(
    what="the FID Inception network of 2015-12-05 as TorchScript",
    names=("inception-2015-12-05.pt",),
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    size=95_607_719,
    urls=(
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
        "inception-2015-12-05.pt",
    ),
    variable="FEWSTEP_INCEPTION_WEIGHTS",
    # Of clean-fid, of k-diffusion.
    elsewhere=(
        "{temporary}/inception-2015-12-05.pt",
        "{cache}/k-diffusion/inception-2015-12-05.pt",
    ),
)
WEIGHTS = WeightsFile(
    what="the weights of the FID Inception network of 2015-12-05",
    names=(
        "pt_inception-2015-12-05-6726825d.pth",
        "weights-inception-2015-12-05-6726825d.pth",
    ),
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size=95_628_359,
    urls=(
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
    ),
    variable="FEWSTEP_INCEPTION_WEIGHTS",
    elsewhere=("{torch}/fidelity/weights-inception-2015-12-05-6726825d.pth",),
    instead=(
        "Without them: --extractor effnet-lite0 or --extractor pixels, whose distances are not FID."
    ),
    also=(NVIDIA,),
)


class Scripted(nn.Module):
    """NVIDIA's TorchScript detector: images [N, 3, H, W] in 0..255 -> `Outputs`, no `spatial`.

    Its probabilities are those of the logits without bias, which `log` gives back but for a
    constant.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> Outputs:
        """Two passes: the detector returns one thing at a time."""
        features = self.detector(x, return_features=True)
        probabilities = self.detector(x, no_output_bias=True)
        return Outputs(features, probabilities.clamp(min=torch.finfo(x.dtype).tiny).log())


def inception(
    path: Path | str | None = None,
    *,
    resize: str = "tf1",
    offline: bool = False,
    allow_unverified: bool = False,
) -> Extractor:
    """The extractor of FID, sFID and Inception scores from published weights.

    `path` is pytorch-fid's or torch-fidelity's state dict or NVIDIA's TorchScript; by default one
    is found or downloaded (see `weights.find`, which says what is raised). `resize` is a key of
    `RESIZES`: other software has other ones and other numbers. With `allow_unverified` a file of
    another sha256 is taken, and the extractor is called "inception-unverified". Unverified
    TorchScript runs what is in it. Raises ValueError for another resize and for files that do not
    hold this network.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize must be one of {', '.join(RESIZES)}, got {resize!r}")
    file, sha256 = find(WEIGHTS, path, offline=offline, allow_unverified=allow_unverified)
    scripted = is_torchscript(file)
    network = Scripted(torch.jit.load(file, "cpu")) if scripted else from_state_dict(file)

    def prepare(pixels: Tensor) -> Tensor:
        # NVIDIA's file normalises by itself, and resizes: like "tf1", and 299 pixels hardly.
        if scripted and resize == "tf1":
            return pixels.float()
        resized = RESIZES[resize](pixels, SIZE)
        return resized if scripted else (resized - 128) / 128

    verified = any(sha256 == version.sha256 for version in WEIGHTS.versions)
    return Extractor(
        "inception" if verified else "inception-unverified",
        network.eval().requires_grad_(False),
        prepare,
        {
            # Both containers hold the numbers of the one graph.
            "weights": "inception-2015-12-05" if verified else sha256,
            "container": "TorchScript" if scripted else "state dict",
            "resize": f"{resize} to {SIZE}",
            "normalisation": "(x - 128) / 128",
            "layer": "pool3",
        },
    )


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive with code; a state dict has none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def from_state_dict(path: Path) -> Inception:
    """The network with the weights of a file; ValueError if they are not this network's."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is neither a state dict nor TorchScript: {error}") from error
    with torch.device("meta"):
        network = Inception()
    tensors = isinstance(state, Mapping) and all(isinstance(v, Tensor) for v in state.values())
    if not tensors or manifest(state) != MANIFEST:
        raise ValueError(
            f"{path} does not hold the FID Inception network of 2015-12-05: it must be a state "
            f"dict with the {len(network.state_dict())} names and shapes of pytorch-fid's"
        )
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return network
