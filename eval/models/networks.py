"""Networks of known kinds as models: those of diffusers' U-Nets, and of EDM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ... import samplers
from ...samplers.denoiser import per_sample
from ...samplers.sums import scaled
from ...schedules import EDM
from ...schedules.grid import Node
from ...zoo.edm import EDMNetwork
from .model import NetworkModel


def unet_model(
    name: str, network: Any, scheduler_config: Mapping[str, Any], vae: nn.Module | None = None
) -> NetworkModel:
    """A `UNet2DModel` of diffusers, with or without class labels, and an autoencoder or none.

    With class labels the last embedding is taken for "no class", as label dropout trains it.
    """
    schedule, prediction = samplers.from_diffusers_config(scheduler_config)
    config: Mapping[str, Any] = network.config
    sizes = config["sample_size"]
    height, width = (sizes, sizes) if isinstance(sizes, int) else sizes
    embeddings = config.get("num_class_embeds")
    classes = None if embeddings is None else embeddings - 1
    options = {k: scheduler_config[k] for k in ("sigma_data",) if k in scheduler_config}

    def denoiser(labels: Tensor | None, size: int) -> samplers.Denoiser:
        given: dict[str, Any] = {}
        if classes is not None:
            device = next(network.parameters()).device
            free = torch.full((size,), classes, device=device)
            given = {"class_labels": free if labels is None else labels}
        return samplers.denoiser(
            network, schedule, prediction, dtype=dtype_of(network), **options, **given
        )

    shape = (config["in_channels"], height, width)
    decode = None if vae is None else Decoder(vae)
    facts = {"prediction": prediction, **options}
    if decode is not None:
        facts["scale"] = decode.scale
    return NetworkModel(
        name, network, schedule, shape, classes, denoiser, decode, facts, dict(scheduler_config)
    )


def placed(model: NetworkModel, dtype: torch.dtype, device: torch.device | str) -> NetworkModel:
    """The model with its networks frozen, on the device."""
    for network in (model.network, model.decode):
        if network is not None:
            # A cast to the dtype that it has already makes diffusers warn.
            network.to(device) if dtype_of(network) == dtype else network.to(device, dtype)
            network.eval().requires_grad_(False)
    return model


def dtype_of(network: nn.Module) -> torch.dtype:
    """The dtype of a network's weights."""
    return next(network.parameters()).dtype


class Decoder(nn.Module):
    """Latents [B, C, h, w] -> images, by an autoencoder of diffusers and its scaling factor."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae
        self.scale: float = vae.config.get("scaling_factor") or 1.0

    def forward(self, latents: Tensor) -> Tensor:
        """Decode in the autoencoder's dtype."""
        vae: Any = self.vae
        return vae.decode((latents / self.scale).to(dtype_of(vae))).sample.float()


def edm_model(name: str, network: EDMNetwork) -> NetworkModel:
    """A network of NVIDIA's EDM family, D(x; sigma, labels) -> x0, on the nodes of EDM.

    sigma runs from 80 to 0.002 within what the network knows (Karras et al. 2022, table 1).
    """
    classes = network.label_dim or None
    schedule = EDM(max(0.002, network.sigma_min), min(80.0, network.sigma_max))

    def denoiser(labels: Tensor | None, size: int) -> samplers.Denoiser:
        def call(x: Tensor, node: Node) -> Tensor:
            # In the form x0 + nsr eps, whatever the grid's.
            sigma = per_sample(node.sigma / node.alpha, x)
            return network(scaled(x, 1 / node.alpha), sigma, labels).to(x.dtype)

        return call

    side = network.img_resolution
    shape = (network.img_channels, side, side)
    facts = {"preconditioning": network.config["preconditioning"]}
    return NetworkModel(name, network, schedule, shape, classes, denoiser, facts=facts)
