"""Bundled small models and data, with what trained them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .classifier import Classifier, load_classifier
from .data import Images, mnist
from .text import TextModel, load_text_model

if TYPE_CHECKING:
    from diffusers import DDPMPipeline, UNet2DModel

__all__ = [
    "Classifier",
    "DiffusionModel",
    "Images",
    "TextModel",
    "load_classifier",
    "load_diffusion_model",
    "load_text_model",
    "mnist",
    "mnist_classifier",
    "mnist_model",
    "mnist_pipeline",
    "text_model",
]


class DiffusionModel(NamedTuple):
    """A denoising network and the diffusers scheduler config that says what it predicts."""

    network: UNet2DModel
    scheduler_config: dict[str, Any]


def load_diffusion_model(folder: str | Path) -> DiffusionModel:
    """Read a diffusers folder (`unet/`, `scheduler/`), in evaluation mode, on the CPU."""
    # Here, because it takes seconds.
    from diffusers import DDPMScheduler, UNet2DModel

    folder = Path(folder)
    if not (folder / "unet" / "config.json").exists():
        raise FileNotFoundError(f"no diffusers model in {folder}: it needs unet/ and scheduler/")
    network = UNet2DModel.from_pretrained(folder / "unet", local_files_only=True)
    network.eval().requires_grad_(False)
    return DiffusionModel(network, DDPMScheduler.load_config(folder / "scheduler"))


def mnist_model() -> DiffusionModel:
    """The bundled class-conditional digit model: 28x28, eps prediction, label 10 is "no label"."""
    with as_file(files(__name__) / "mnist" / "model") as folder:
        return load_diffusion_model(folder)


def mnist_pipeline(labels: Sequence[int]) -> DDPMPipeline:
    """The bundled digits as a pipeline of diffusers; image k of its batch is of class `labels[k]`.

    Call it with `batch_size=len(labels)`: a `DDPMPipeline` passes no labels, so its network has
    them.
    """
    # Here, because it takes seconds.
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler

    network, scheduler_config = mnist_model()
    network.forward = partial(network.forward, class_labels=torch.tensor([*labels]))
    return DDPMPipeline(network, DDPMScheduler.from_config(scheduler_config))


def mnist_classifier() -> Classifier:
    """The bundled digit classifier; `.features` gives the 64 numbers that evaluations compare."""
    with as_file(files(__name__) / "mnist" / "classifier") as folder:
        return load_classifier(folder)


def text_model() -> TextModel:
    """The bundled masked-diffusion text model: 27 characters, sequences of about 64."""
    with as_file(files(__name__) / "pydoc") as folder:
        return load_text_model(folder)
