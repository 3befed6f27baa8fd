"""One U-Net for DDPM++, NCSN++ and ADM, made from a description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import Block, BlockStyle, Conv, FourierWaves, PositionalWaves, group_norm

Embedding = Literal["fourier", "positional", "positional-inclusive"]
Role = Literal["stem", "block", "join", "aux_down", "aux_skip", "aux_residual", "aux_up", "head"]


@dataclass(frozen=True)
class UNetConfig:
    """All that decides the shape of a U-Net.

    Parameters
    ----------
    resolution, in_channels, out_channels
        Of the images.
    widths
        Channels at each level, from the full resolution, halved from level to level.
    stem
        Channels behind the first convolution.
    blocks
        Residual blocks at each level of the encoder; the decoder has one more.
    attention
        Resolutions with self-attention; the middle always has it.
    decoder_attention
        Which of the decoder's blocks at these resolutions have it: "all" or the "last".
    style
        What the residual blocks have in common.
    embedding
        Of the noise level: "fourier", "positional", or "positional-inclusive", which spreads its
        wavelengths so that the last is 10^4 (times 2 pi) itself.
    noise_channels
        Width of the embedding of the noise level.
    sine_first
        Whether sines stand before cosines in it.
    label_dim, augment_dim
        Number of classes, and of augmentation parameters; 0 for none.
    label_at
        Whether class labels join the embedding at the "input" of its two layers, scaled by
        sqrt(label_dim), or at their "output".
    encoder
        What reaches deeper levels besides the blocks: nothing ("standard"), or the image, filtered
        and added as it is ("skip") or through a chain of convolutions ("residual").
    decoder
        Whether the image is read off the finest level ("standard") or summed over levels ("skip").
    """

    resolution: int
    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    stem: int
    blocks: int
    attention: tuple[int, ...]
    decoder_attention: Literal["all", "last"]
    style: BlockStyle
    embedding: Embedding
    noise_channels: int
    sine_first: bool
    label_dim: int
    augment_dim: int
    label_at: Literal["input", "output"]
    encoder: Literal["standard", "skip", "residual"]
    decoder: Literal["standard", "skip"]

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )


CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint)
    for name, hint in get_type_hints(UNetConfig).items()
    if get_origin(hint) is Literal
}


def unet_config(data: Mapping[str, Any]) -> UNetConfig:
    """A `UNetConfig` from plain data, as `dataclasses.asdict` and JSON leave it."""
    style = BlockStyle(**tuples(data["style"]))
    return UNetConfig(**{**tuples(data), "style": style})


def tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same with tuples for lists."""
    return {key: tuple(x) if isinstance(x, list) else x for key, x in data.items()}


class Step(NamedTuple):
    """A layer of the U-Net: its name, what becomes of its output, and its modules by suffix."""

    name: str
    role: Role
    modules: dict[str, nn.Module]


def encoder(config: UNetConfig) -> Iterator[tuple[Step, int]]:
    """The steps of the encoder, each with the channels of its output."""
    style, channels, aux = config.style, config.stem, config.in_channels
    taps = style.taps
    for level, width in enumerate(config.widths):
        size = config.resolution >> level
        at = f"{size}x{size}"
        if level == 0:
            yield layer(f"{at}_conv", "stem", Conv(config.in_channels, channels, 3)), channels
        else:
            down = Block(channels, channels, style, "down")
            yield layer(f"{at}_down", "block", down), channels
        if level > 0 and config.encoder == "skip":
            yield layer(f"{at}_aux_down", "aux_down", Conv(aux, aux, 0, "down", taps)), aux
            yield layer(f"{at}_aux_skip", "aux_skip", Conv(aux, channels, 1)), channels
        if level > 0 and config.encoder == "residual":
            chain = Conv(aux, channels, 3, "down", taps, late=True)
            yield layer(f"{at}_aux_residual", "aux_residual", chain), channels
            aux = channels
        for k in range(config.blocks):
            block = Block(channels, width, style, attention=size in config.attention)
            channels = width
            yield layer(f"{at}_block{k}", "block", block), channels


def decoder(config: UNetConfig, skips: list[int]) -> Iterator[Step]:
    """The steps of the decoder; `skips` are the channels of what the encoder passes over."""
    style, channels, out = config.style, config.widths[-1], config.out_channels
    coarsest = len(config.widths) - 1
    for level in range(coarsest, -1, -1):
        size, width = config.resolution >> level, config.widths[level]
        at = f"{size}x{size}"
        if level == coarsest:
            yield layer(f"{at}_in0", "block", Block(channels, channels, style, attention=True))
            yield layer(f"{at}_in1", "block", Block(channels, channels, style))
        else:
            yield layer(f"{at}_up", "block", Block(channels, channels, style, "up"))
        for k in range(config.blocks + 1):
            seen = config.decoder_attention == "all" or k == config.blocks
            attention = seen and size in config.attention
            block = Block(channels + skips.pop(), width, style, attention=attention)
            channels = width
            yield layer(f"{at}_block{k}", "join", block)
        if config.decoder == "skip" and level < coarsest:
            yield layer(f"{at}_aux_up", "aux_up", Conv(out, out, 0, "up", style.taps))
        if config.decoder == "skip" or level == 0:
            norm, conv = group_norm(channels, style.eps), Conv(channels, out, 3)
            yield Step(f"{at}_aux", "head", {"_norm": norm, "_conv": conv})


def layer(name: str, role: Role, module: nn.Module) -> Step:
    """A step of one module."""
    return Step(name, role, {"": module})


class UNet(nn.Module):
    """F(x, label, classes, augment): images of `resolution` to images.

    `label` [N] stands for the noise level, `classes` [N, label_dim] and `augment` [N, augment_dim]
    are optional. Inference only: there is no dropout. The architectures are those of Song et al.
    2021 (DDPM++, NCSN++) and Dhariwal and Nichol 2021 (ADM), as told apart by Karras et al. 2022,
    table 7.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        noise, emb = config.noise_channels, config.style.emb_channels
        half = noise // 2
        self.map_noise = (
            FourierWaves(half)
            if config.embedding == "fourier"
            else PositionalWaves(half, half - (config.embedding == "positional-inclusive"))
        )
        self.map_label, self.map_augment = None, None
        if config.label_dim:
            at_input = config.label_at == "input"
            self.map_label = nn.Linear(config.label_dim, noise if at_input else emb, bias=at_input)
        if config.augment_dim:
            self.map_augment = nn.Linear(config.augment_dim, noise, bias=False)
        self.map_layer0 = nn.Linear(noise, emb)
        self.map_layer1 = nn.Linear(emb, emb)
        down = list(encoder(config))
        skips = [channels for step, channels in down if step.role in ("stem", "block")]
        up = list(decoder(config, skips))
        self.encoder_roles = [(step.name, step.role) for step, _ in down]
        self.decoder_roles = [(step.name, step.role) for step in up]
        self.enc = modules([step for step, _ in down])
        self.dec = modules(up)

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        classes: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """See the class."""
        emb = self.embedded(label, classes, augment)
        x, skips = self.encoded(x, emb)
        return self.decoded(x, emb, skips)

    def embedded(self, label: Tensor, classes: Tensor | None, augment: Tensor | None) -> Tensor:
        """The embedding [N, emb_channels] of noise level, classes and augmentation."""
        emb = self.map_noise(label)
        if self.config.sine_first:
            emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)
        at_input = self.config.label_at == "input"
        if self.map_label is not None and classes is not None and at_input:
            emb = emb + self.map_label(classes * self.config.label_dim**0.5)
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
        if self.map_label is not None and classes is not None and not at_input:
            emb = emb + self.map_label(classes)
        return functional.silu(emb)

    def encoded(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The coarsest features and what is passed over."""
        skips: list[Tensor] = []
        aux = x
        for name, role in self.encoder_roles:
            run = self.enc[name]
            if role == "aux_down":
                aux = run(aux)
            elif role == "aux_skip":
                x = skips[-1] = x + run(aux)
            elif role == "aux_residual":
                x = skips[-1] = aux = (x + run(aux)) * 0.5**0.5
            else:
                x = run(x) if role == "stem" else run(x, emb)
                skips.append(x)
        return x, skips

    def decoded(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """The image from the coarsest features; the sum of the images of all heads."""
        image: Tensor | None = None
        for name, role in self.decoder_roles:
            if role == "aux_up":
                image = self.dec[name](image)
            elif role == "head":
                norm, conv = self.dec[f"{name}_norm"], self.dec[f"{name}_conv"]
                part = conv(functional.silu(norm(x)))
                image = part if image is None else image + part
            else:
                x = torch.cat([x, skips.pop()], dim=1) if role == "join" else x
                x = self.dec[name](x, emb)
        assert image is not None
        return image


def modules(steps: list[Step]) -> nn.ModuleDict:
    """The modules of all steps by name."""
    return nn.ModuleDict(
        {f"{step.name}{end}": each for step in steps for end, each in step.modules.items()}
    )
