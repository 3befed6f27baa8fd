"""The layers of the U-Nets: resampling convolutions, residual blocks, embeddings of the level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Resample = Literal["up", "down"]


@dataclass(frozen=True)
class BlockStyle:
    """What all residual blocks of a U-Net have in common.

    Parameters
    ----------
    emb_channels
        Width of the embedding of noise level and labels.
    head_channels
        Channels of an attention head; None for one head.
    eps
        Of the group norms.
    skip_scale
        Factor of every sum with a skip: sqrt(1/2) keeps the variance, 1 does nothing.
    adaptive
        Whether the embedding scales and shifts the second norm's output, or is added before it.
    project_resampled
        Whether a skip that is resampled is a 1x1 convolution also at equal width.
    taps
        The filter of up- and downsampling, in each dimension, up to its sum.
    """

    emb_channels: int
    head_channels: int | None
    eps: float
    skip_scale: float
    adaptive: bool
    project_resampled: bool
    taps: tuple[float, ...]


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """32 groups, or fewer where they would be of less than 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class Conv(nn.Module):
    """A convolution of odd size behind a 2x up- or downsampling; size 0 is the resampling alone.

    `late` downsamples the convolution's output over the padded image instead: the same inside,
    another at the border. Buffer `resample_filter` [1, 1, K, K] is the outer product of `taps`.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        channels: int,
        out: int,
        size: int,
        resample: Resample | None = None,
        taps: tuple[float, ...] = (),
        late: bool = False,
    ):
        super().__init__()
        self.resample, self.late = resample, late
        plain = nn.Conv2d(channels, out, size) if size else None
        self.weight = plain.weight if plain else None
        self.bias = plain.bias if plain else None
        line = torch.tensor(taps, dtype=torch.float32) if resample else None
        self.register_buffer(
            "resample_filter",
            None if line is None else torch.outer(line, line)[None, None] / line.sum().square(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, out, H', W']."""
        if self.weight is None:
            return self.resampled(x, self.pad)
        margin = self.weight.shape[-1] // 2
        if self.late:
            x = functional.conv2d(x, self.weight, self.bias, padding=margin + self.pad)
            return self.resampled(x, 0)
        if self.resample:
            x = self.resampled(x, self.pad)
        return functional.conv2d(x, self.weight, self.bias, padding=margin)

    @property
    def pad(self) -> int:
        """Padding with which the filter halves or doubles the size."""
        assert self.resample_filter is not None
        return (self.resample_filter.shape[-1] - 1) // 2

    def resampled(self, x: Tensor, padding: int) -> Tensor:
        """Filter and resample every channel of x alone."""
        assert self.resample_filter is not None
        kernel, groups = self.resample_filter, x.shape[1]
        if self.resample == "down":
            kernel = kernel.expand(groups, -1, -1, -1)
            return functional.conv2d(x, kernel, stride=2, padding=padding, groups=groups)
        # Every output sees a quarter of the taps.
        kernel = (4 * kernel).expand(groups, -1, -1, -1)
        return functional.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=groups)


class Block(nn.Module):
    """A residual block with optional resampling and self-attention.

    h = conv1(silu(norm1(conv0(silu(norm0(x))), emb))), x = (h + skip(x)) c, and with attention
    x = (proj(attention(qkv(norm2(x)))) + x) c, where c = style.skip_scale (Song et al. 2021,
    appendix H; Dhariwal and Nichol 2021, section 3).
    """

    def __init__(
        self,
        channels: int,
        out: int,
        style: BlockStyle,
        resample: Resample | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.style = style
        self.norm0 = group_norm(channels, style.eps)
        self.conv0 = Conv(channels, out, 3, resample, style.taps)
        self.affine = nn.Linear(style.emb_channels, out * (2 if style.adaptive else 1))
        self.norm1 = group_norm(out, style.eps)
        self.conv1 = Conv(out, out, 3)
        self.skip = None
        if out != channels or resample:
            project = out != channels or style.project_resampled
            self.skip = Conv(channels, out, 1 if project else 0, resample, style.taps)
        self.heads = 0
        if attention:
            self.heads = out // (style.head_channels or out)
            self.norm2 = group_norm(out, style.eps)
            self.qkv = Conv(out, 3 * out, 1)
            self.proj = Conv(out, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, channels, H, W], emb [N, emb_channels] -> [N, out, H', W']."""
        scale = self.style.skip_scale
        h = self.conv0(functional.silu(self.norm0(x)))
        params = self.affine(emb)[:, :, None, None]
        if self.style.adaptive:
            gain, shift = params.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), gain + 1)
        else:
            h = self.norm1(h + params)
        h = self.conv1(functional.silu(h))
        x = (h + (self.skip(x) if self.skip else x)) * scale
        return (self.attention(x) + x) * scale if self.heads else x

    def attention(self, x: Tensor) -> Tensor:
        """Self-attention over positions; the channels of `qkv` are ordered (head, channel, qkv)."""
        parts = self.qkv(self.norm2(x)).reshape(len(x), self.heads, -1, 3, x.shape[2] * x.shape[3])
        q, k, v = (part.transpose(2, 3) for part in parts.unbind(3))
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(2, 3).reshape(x.shape))


class FourierWaves(nn.Module):
    """[cos, sin](2 pi freqs label) with random `freqs` (Tancik et al. 2020), 2 x count wide."""

    freqs: Tensor

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(count))

    def forward(self, label: Tensor) -> Tensor:
        """[N] -> [N, 2 count]."""
        return waves(label, 2 * math.pi * self.freqs)


class PositionalWaves(nn.Module):
    """[cos, sin](label / 10^(4 k / last)), k = 0 .. count - 1 (Vaswani et al. 2017, section 3.5).

    `last` is the k of wavelength 2 pi 10^4.
    """

    def __init__(self, count: int, last: int):
        super().__init__()
        self.count, self.last = count, last

    def forward(self, label: Tensor) -> Tensor:
        """[N] -> [N, 2 count]."""
        # In float32, whose rounding of labels near 1000 the networks were trained with.
        power = torch.arange(self.count, dtype=label.dtype, device=label.device) / self.last
        return waves(label, 1e-4**power)


def waves(label: Tensor, frequencies: Tensor) -> Tensor:
    """Cosines, then sines of every label at every frequency."""
    angles = torch.outer(label, frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
