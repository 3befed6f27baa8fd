"""What an evaluation is about: a model, the data it learned, and an extractor of features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import samplers, zoo
from ..schedules import Schedule
from ..zoo.classifier import Classifier
from .frechet import Moments, moments
from .images import dequantise, quantise


@dataclass(frozen=True, eq=False)
class Subject:
    """A class-conditional `network`, its law, real `data`, and a classifier as feature extractor.

    `shape` is that of one sample, labels run from 0 to `classes` - 1, and label `classes` asks the
    network for no class in particular. `extractor_name` goes beside every distance.
    """

    name: str
    network: nn.Module
    schedule: Schedule
    prediction: samplers.Prediction
    shape: tuple[int, ...]
    classes: int
    data: zoo.Images
    extractor: Classifier
    extractor_name: str
    device: torch.device

    def denoiser(self, labels: Tensor, guidance: float = 1.0) -> samplers.Denoiser:
        """The denoiser for a batch with these labels; a guidance scale of 1 is off."""

        def conditioned(classes: Tensor) -> samplers.Denoiser:
            return samplers.denoiser(
                self.network,
                self.schedule,
                self.prediction,
                class_labels=classes.to(self.device),
            )

        if guidance == 1:
            return conditioned(labels)
        free = conditioned(torch.full_like(labels, self.classes))
        return samplers.guidance.cfg(conditioned(labels), free, guidance)

    @torch.no_grad()
    def features(self, pixels: Tensor, batch_size: int = 500) -> Tensor:
        """The extractor's features [N, D] of uint8 images [N, C, H, W], on the CPU."""
        batches = (dequantise(part.to(self.device)) for part in pixels.split(batch_size))
        return torch.cat([self.extractor.features(part).cpu() for part in batches])

    def data_moments(self) -> Moments:
        """Moments of the features of all real images."""
        return moments(self.features(quantise(self.data.images)))


def mnist_subject(device: torch.device) -> Subject:
    """The bundled digit model, all 10,000 packaged digits, and the bundled classifier."""
    return digits(zoo.mnist_model(), device)


def digits(model: zoo.DiffusionModel, device: torch.device) -> Subject:
    """A digit model of the bundled model's kind, with the packaged digits and classifier."""
    schedule, prediction = samplers.from_diffusers_config(model.scheduler_config)
    size = model.network.config["sample_size"]
    extractor = zoo.mnist_classifier()
    return Subject(
        name="mnist",
        network=model.network.to(device),
        schedule=schedule,
        prediction=prediction,
        shape=(1, size, size),
        classes=model.network.config["num_class_embeds"] - 1,
        data=zoo.mnist(),
        extractor=extractor.to(device),
        extractor_name=f"mnist-classifier-{extractor.width}",
        device=device,
    )


SUBJECTS: dict[str, Callable[[torch.device], Subject]] = {"mnist": mnist_subject}


def load_subject(name: str, device: torch.device) -> Subject:
    """The subject of that name, or the digit model in a diffusers folder; ValueError otherwise."""
    if name in SUBJECTS:
        return SUBJECTS[name](device)
    if (Path(name) / "unet").is_dir():
        return digits(zoo.load_diffusion_model(name), device)
    raise ValueError(f"unknown model {name!r}: neither {', '.join(SUBJECTS)} nor a model folder")


def pick_device(name: str = "auto") -> torch.device:
    """The torch device of that name; "auto" is the accelerator at hand, else the CPU."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    return torch.device(name)
