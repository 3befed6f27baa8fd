"""The options of NVIDIA's published networks, by their class names, in our terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from inspect import signature
from typing import Any, Literal, TypeVar

from .layers import BlockStyle
from .preconditioning import EDM, IDDPM, VE, VP, Preconditioning, iddpm_levels
from .unet import Embedding, UNetConfig

Ints = Sequence[int]
Entry = TypeVar("Entry")
EMBEDDINGS: dict[str, Embedding] = {
    "positional": "positional-inclusive",
    "fourier": "fourier",
}


def song(
    *,
    img_resolution: int,
    in_channels: int,
    out_channels: int,
    label_dim: int = 0,
    augment_dim: int = 0,
    model_channels: int = 128,
    channel_mult: Ints = (1, 2, 2, 2),
    channel_mult_emb: int = 4,
    num_blocks: int = 4,
    attn_resolutions: Ints = (16,),
    embedding_type: str = "positional",
    channel_mult_noise: int = 1,
    encoder_type: Literal["standard", "skip", "residual"] = "standard",
    decoder_type: Literal["standard", "skip"] = "standard",
    resample_filter: Sequence[float] = (1, 1),
) -> UNetConfig:
    """DDPM++ and NCSN++ (Song et al. 2021), with the options of `SongUNet`."""
    return UNetConfig(
        resolution=img_resolution,
        in_channels=in_channels,
        out_channels=out_channels,
        widths=tuple(model_channels * k for k in channel_mult),
        stem=model_channels,
        blocks=num_blocks,
        attention=tuple(attn_resolutions),
        decoder_attention="last",
        style=BlockStyle(
            emb_channels=model_channels * channel_mult_emb,
            head_channels=None,
            eps=1e-6,
            skip_scale=0.5**0.5,
            adaptive=False,
            project_resampled=True,
            taps=tuple(resample_filter),
        ),
        embedding=known(EMBEDDINGS, embedding_type, "embedding_type"),
        noise_channels=model_channels * channel_mult_noise,
        sine_first=True,
        label_dim=label_dim,
        augment_dim=augment_dim,
        label_at="input",
        encoder=encoder_type,
        decoder=decoder_type,
    )


def dhariwal(
    *,
    img_resolution: int,
    in_channels: int,
    out_channels: int,
    label_dim: int = 0,
    augment_dim: int = 0,
    model_channels: int = 192,
    channel_mult: Ints = (1, 2, 3, 4),
    channel_mult_emb: int = 4,
    num_blocks: int = 3,
    attn_resolutions: Ints = (32, 16, 8),
) -> UNetConfig:
    """ADM (Dhariwal and Nichol 2021), with the options of `DhariwalUNet`."""
    widths = tuple(model_channels * k for k in channel_mult)
    return UNetConfig(
        resolution=img_resolution,
        in_channels=in_channels,
        out_channels=out_channels,
        widths=widths,
        stem=widths[0],
        blocks=num_blocks,
        attention=tuple(attn_resolutions),
        decoder_attention="all",
        style=BlockStyle(
            emb_channels=model_channels * channel_mult_emb,
            head_channels=64,
            eps=1e-5,
            skip_scale=1.0,
            adaptive=True,
            project_resampled=False,
            taps=(1, 1),
        ),
        embedding="positional",
        noise_channels=model_channels,
        sine_first=False,
        label_dim=label_dim,
        augment_dim=augment_dim,
        label_at="output",
        encoder="standard",
        decoder="standard",
    )


def vp(
    *, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000, epsilon_t: float = 1e-5
) -> VP:
    """The options of `VPPrecond`."""
    return VP(beta_d, beta_min, M, epsilon_t)


def iddpm(*, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000) -> IDDPM:
    """The options of `iDDPMPrecond`."""
    return IDDPM(iddpm_levels(M, C_1, C_2))


def edm(*, sigma_min: float = 0.0, sigma_max: float = float("inf"), sigma_data: float = 0.5) -> EDM:
    """The options of `EDMPrecond`."""
    return EDM(sigma_min, None if sigma_max == float("inf") else sigma_max, sigma_data)


NETWORKS: dict[str, Callable[..., UNetConfig]] = {"SongUNet": song, "DhariwalUNet": dhariwal}
# Each with the network that it wraps where the options name none.
WRAPPERS: dict[str, tuple[Callable[..., Preconditioning], str]] = {
    "VPPrecond": (vp, "SongUNet"),
    "VEPrecond": (VE, "SongUNet"),
    "iDDPMPrecond": (iddpm, "DhariwalUNet"),
    "EDMPrecond": (edm, "DhariwalUNet"),
}
# What changes training or speed, not what the network computes in evaluation mode.
IGNORED = ("use_fp16", "dropout", "label_dropout")


def config_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The `config` of an `EDMNetwork` for a published class and the options it was made with.

    Raises ValueError for a class or an option that is not known, or one that is missing.
    """
    wrapper, default = known(WRAPPERS, name, "class of network")
    given = {key: value for key, value in options.items() if key not in IGNORED}
    network = known(NETWORKS, given.pop("model_type", default), "model_type")
    own = {key: given.pop(key) for key in keywords(wrapper) if key in given}
    for needed in ("img_resolution", "img_channels"):
        if needed not in given:
            raise ValueError(f"{name} was made without {needed}: its shape cannot be known")
    channels = given.pop("img_channels")
    unknown = sorted(set(given) - set(keywords(network)))
    if unknown:
        raise ValueError(
            f"{name} was made with options that are not known: {', '.join(unknown)}; known are "
            f"{', '.join([*keywords(wrapper), *keywords(network), *IGNORED])}"
        )
    # Such networks return a variance behind, which sampling does not need.
    out = 2 * channels if name == "iDDPMPrecond" else channels
    preconditioning = wrapper(**own)
    return {
        "preconditioning": {"kind": preconditioning.kind, **asdict(preconditioning)},
        "unet": asdict(network(in_channels=channels, out_channels=out, **given)),
    }


def keywords(call: Callable[..., Any]) -> list[str]:
    """The names of the options of a function or class."""
    return list(signature(call).parameters)


def known(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """An entry; ValueError with the names that there are."""
    if name not in table:
        raise ValueError(f"{what} {name!r} is not known: known are {', '.join(table)}")
    return table[name]
