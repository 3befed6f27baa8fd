"""The models that come with fewstep."""

from __future__ import annotations

from ...zoo import mnist_model
from .model import NetworkModel
from .networks import unet_model

MODELS = {"mnist": "the bundled class-conditional digits, 28x28"}


def digits(name: str) -> NetworkModel:
    """The bundled digit model."""
    loaded = mnist_model()
    return unet_model(name, loaded.network, loaded.scheduler_config)
