"""The Inception network that FID is defined by: TensorFlow's graph of 2015-12-05, in torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .extractor import Outputs

SIZE = 299
SPATIAL_CHANNELS = 7
# Of `manifest`: which names and shapes the published state dict has.
MANIFEST = "bd04e829988dd22dd0bbf9e499a87af311ed57c1b4309a9d20a907d8ed4123d4"

Pool = Callable[[Tensor], Tensor]
# The mean over the pixels that exist: TensorFlow does not count the padding.
average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halve = partial(F.max_pool2d, kernel_size=3, stride=2)


class Conv(NamedTuple):
    """A convolution to `width` channels with normalisation and ReLU."""

    width: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    padding: str = "same"


class Branch(NamedTuple):
    """A pool, if any, then convolutions; a tuple of them stands side by side.

    The only convolution of a branch has its name, others have it with _1, _2, .. and, side by side,
    with _2a, _2b.
    """

    name: str
    steps: tuple[Conv | tuple[Conv, ...], ...]
    pool: Pool | None = None

    def layers(self) -> Iterator[dict[str, Conv]]:
        """Each step as its convolutions by name."""
        for number, step in enumerate(self.steps, 1):
            name = self.name if len(self.steps) == 1 else f"{self.name}_{number}"
            if isinstance(step, Conv):
                yield {name: step}
            else:
                yield {f"{name}{letter}": conv for letter, conv in zip("ab", step, strict=True)}


Block = tuple[Branch, ...]

DOUBLE_3X3 = (Conv(64), Conv(96, 3))
HALVING = partial(Conv, kernel=3, stride=2, padding="valid")
BOTH_WAYS = (Conv(384, (1, 3)), Conv(384, (3, 1)))


def block_35(pooled: int) -> Block:
    """On 35 x 35 pixels: 224 + `pooled` channels."""
    return (
        Branch("branch1x1", (Conv(64),)),
        Branch("branch5x5", (Conv(48), Conv(64, 5))),
        Branch("branch3x3dbl", (*DOUBLE_3X3, Conv(96, 3))),
        Branch("branch_pool", (Conv(pooled),), average),
    )


def block_17(width: int) -> Block:
    """On 17 x 17 pixels: 768 channels, by convolutions of `width` along one axis at a time."""
    row, column = Conv(width, (1, 7)), Conv(width, (7, 1))
    return (
        Branch("branch1x1", (Conv(192),)),
        Branch("branch7x7", (Conv(width), row, Conv(192, (7, 1)))),
        Branch("branch7x7dbl", (Conv(width), column, row, column, Conv(192, (1, 7)))),
        Branch("branch_pool", (Conv(192),), average),
    )


def block_8(pool: Pool) -> Block:
    """On 8 x 8 pixels: 2048 channels."""
    return (
        Branch("branch1x1", (Conv(320),)),
        Branch("branch3x3", (Conv(384), BOTH_WAYS)),
        Branch("branch3x3dbl", (Conv(448), Conv(384, 3), BOTH_WAYS)),
        Branch("branch_pool", (Conv(192),), pool),
    )


FROM_35_TO_17: Block = (
    Branch("branch3x3", (HALVING(384),)),
    Branch("branch3x3dbl", (*DOUBLE_3X3, HALVING(96))),
    Branch("branch_pool", (), halve),
)
FROM_17_TO_8: Block = (
    Branch("branch3x3", (Conv(192), HALVING(320))),
    Branch("branch7x7x3", (Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), HALVING(192))),
    Branch("branch_pool", (), halve),
)
# In order, under the names of the published state dict.
TRUNK: dict[str, Conv | Pool | Block] = {
    "Conv2d_1a_3x3": HALVING(32),
    "Conv2d_2a_3x3": Conv(32, 3, padding="valid"),
    "Conv2d_2b_3x3": Conv(64, 3),
    "MaxPool_1": halve,
    "Conv2d_3b_1x1": Conv(80),
    "Conv2d_4a_3x3": Conv(192, 3, padding="valid"),
    "MaxPool_2": halve,
    "Mixed_5b": block_35(32),
    "Mixed_5c": block_35(64),
    "Mixed_5d": block_35(64),
    "Mixed_6a": FROM_35_TO_17,
    "Mixed_6b": block_17(128),
    "Mixed_6c": block_17(160),
    "Mixed_6d": block_17(160),
    "Mixed_6e": block_17(192),
    "Mixed_7a": FROM_17_TO_8,
    "Mixed_7b": block_8(average),
    # A slip of the graph of 2015 that every FID has in it: the paper takes the average here too.
    "Mixed_7c": block_8(maximum),
}


class Norm(nn.Module):
    """Batch normalisation by stored statistics, in training mode too."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, width, H, W], normalised."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3
        )


class ConvNorm(nn.Module):
    """What `Conv` says."""

    def __init__(self, inputs: int, conv: Conv):
        super().__init__()
        self.width = conv.width
        self.conv = nn.Conv2d(
            inputs, conv.width, conv.kernel, conv.stride, conv.padding, bias=False
        )
        self.bn = Norm(conv.width)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, inputs, H, W] -> [N, width, H', W']."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches side by side; their channels follow each other."""

    def __init__(self, inputs: int, block: Block):
        super().__init__()
        self.block = block
        self.width = 0
        for branch in block:
            width = inputs
            for layer in branch.layers():
                for name, conv in layer.items():
                    self.add_module(name, ConvNorm(width, conv))
                width = sum(conv.width for conv in layer.values())
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        """x [N, inputs, H, W] -> [N, width, H', W']."""
        return torch.cat([self.run(branch, x) for branch in self.block], 1)

    def run(self, branch: Branch, x: Tensor) -> Tensor:
        """One branch."""
        x = x if branch.pool is None else branch.pool(x)
        for layer in branch.layers():
            parts = [self.get_submodule(name)(x) for name in layer]
            x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return x


class Inception(nn.Module):
    """Inception v3 of 2015-12-05 (Szegedy et al. 2016; Heusel et al. 2017): 94 convolutions.

    Images float32 [N, 3, 299, 299], (x - 128) / 128 of 0..255, -> `Outputs`: the pooled features
    [N, 2048]; logits [N, 1008] without their bias, as Inception scores have them; the first 7
    channels of Mixed_6d after ReLU, pixel by pixel, [N, 2023], for sFID (Nash et al. 2021).

    The state dict is that of pytorch-fid. Raises ValueError for images of another shape.
    """

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for name, what in TRUNK.items():
            if not callable(what):
                layer = ConvNorm(width, what) if isinstance(what, Conv) else Mixed(width, what)
                self.add_module(name, layer)
                width = layer.width
        self.fc = nn.Linear(width, 1008)

    def forward(self, x: Tensor) -> Outputs:
        """One pass."""
        if x.shape[1:] != (3, SIZE, SIZE):
            raise ValueError(f"Inception takes images [N, 3, {SIZE}, {SIZE}], not {list(x.shape)}")
        for name, what in TRUNK.items():
            x = what(x) if callable(what) else self.get_submodule(name)(x)
            if name == "Mixed_6d":
                # Its first branch is the 1 x 1 convolution, mixed_6/conv of the graph.
                spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        features = x.mean((2, 3))
        return Outputs(features, F.linear(features, self.fc.weight), spatial)


def manifest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted lines "name [shape]": which network a state dict is of."""
    lines = (f"{name} {list(value.shape)}" for name, value in sorted(state.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
