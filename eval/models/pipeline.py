"""Whole pipelines of diffusers as models: their own loop, prompts and decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import samplers
from ...integrations import use
from ...samplers.streams import generators
from ...schedules import Schedule
from ...storage import fingerprint
from .draw import Draw

# What a pipeline calls the number that it was conditioned on.
CLASS_ARGUMENT = "class_labels"
# What is not for `call`: a draw or a table decides it.
DECIDED = (
    *("prompt", CLASS_ARGUMENT, "guidance_scale", "generator", "latents"),
    *("batch_size", "num_images_per_prompt", "num_inference_steps", "timesteps", "sigmas"),
    "return_dict",
)


@dataclass(frozen=True, eq=False)
class PipelineModel:
    """A pipeline of diffusers that makes images, called with one generator per sample.

    `call` are arguments of every call, such as height or a negative prompt. With `prompts`, label k
    stands for prompt k; a pipeline that takes `class_labels` gets the labels themselves, of
    `classes`. The guidance goes to the pipeline as its `guidance_scale`. With `output_type`
    "latent" in `call` the latents stand for the images. ValueError for arguments that it does not
    take, or that are not for `call`.
    """

    name: str
    pipe: Any
    shape: tuple[int, ...]
    prompts: tuple[str, ...] = ()
    label_count: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.call:
            if key in DECIDED or key not in self.takes:
                free = ", ".join(sorted(self.takes - set(DECIDED)))
                raise ValueError(f"{key} is no argument for {self.name}; there is {free}")
        if self.call.get("output_type", "np") not in ("np", "latent"):
            raise ValueError(f"output_type is np or latent, not {self.call['output_type']!r}")

    @cached_property
    def takes(self) -> frozenset[str]:
        """The names of the pipeline's arguments."""
        return frozenset(signature(self.pipe.__call__).parameters)

    @cached_property
    def network(self) -> nn.Module:
        """The denoiser: the U-Net, or the transformer."""
        for name in ("unet", "transformer", "prior"):
            found = getattr(self.pipe, name, None)
            if isinstance(found, nn.Module):
                return found
        raise ValueError(f"{type(self.pipe).__name__} has no unet, transformer or prior to count")

    @cached_property
    def schedule(self) -> Schedule:
        """The law of its own scheduler's config."""
        return samplers.from_diffusers_config(self.pipe.scheduler.config)[0]

    @property
    def classes(self) -> int | None:
        """The number of prompts, or of labels."""
        return len(self.prompts) or self.label_count

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all weights, of the prediction, the prompts and the arguments."""
        parts = {k: v for k, v in self.pipe.components.items() if isinstance(v, nn.Module)}
        said = [[k, repr(v)] for k, v in sorted(self.call.items())]
        kind = [
            type(self.pipe).__name__,
            samplers.from_diffusers_config(self.pipe.scheduler.config)[1],
        ]
        return fingerprint(nn.ModuleDict(parts), kind, list(self.prompts), said)

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The config of its own scheduler, which `use` may have replaced, with its class."""
        now = self.pipe.scheduler
        own = getattr(now, "replaced", None) or now
        return {**own.config, "_class_name": type(own).__name__}

    @torch.no_grad()
    def images(self, table: samplers.Tableau, draw: Draw) -> Tensor:
        """See `Model`."""
        if draw.extras:
            raise ValueError(
                f"{self.name} is a whole pipeline, which runs tables alone: no start, no shift of "
                "times and no scaled eps here; to teleport its latents see integrations.teleported"
            )
        streams = list(generators(draw.seeds, draw.source))
        draw_from(streams, use(self.pipe, table, verbose=False))
        self.pipe.set_progress_bar_config(disable=True)
        out = self.pipe(
            **{"output_type": "np", **self.call, **self.conditions(draw)},
            generator=streams,
            num_inference_steps=table.grid.nfe,
        )
        if self.call.get("output_type") == "latent":
            return as_images(out.images.float())
        # [0, 1], channels last.
        pictures = torch.from_numpy(np.asarray(out.images, dtype=np.float32)).to(self.device)
        return pictures.movedim(-1, 1) * 2 - 1

    def conditions(self, draw: Draw) -> dict[str, Any]:
        """What the pipeline is told of a draw besides its seeds."""
        if draw.labels is None:
            given: dict[str, Any] = {"batch_size": len(draw.seeds)}
        elif self.prompts:
            given = {"prompt": [self.prompts[label] for label in draw.labels.tolist()]}
            # Beside a list of prompts must stand lists.
            negative = {k: v for k, v in self.call.items() if k.startswith("negative_prompt")}
            given |= {k: [v] * len(draw.seeds) for k, v in negative.items() if isinstance(v, str)}
        else:
            given = {CLASS_ARGUMENT: draw.labels.tolist()}
        if "guidance_scale" in self.takes:
            given["guidance_scale"] = draw.guidance
        elif draw.guidance != 1:
            raise ValueError(
                f"guidance {draw.guidance:g}: {type(self.pipe).__name__} takes no guidance scale"
            )
        return given


def as_images(latents: Tensor) -> Tensor:
    """Latents as [B, C, H, W]: packed ones [B, L, C] as one channel, frames one below the other."""
    if latents.ndim == 3:
        return latents[:, None]
    return latents.flatten(2, -2) if latents.ndim > 4 else latents


def draw_from(streams: list[torch.Generator], scheduler: Any) -> None:
    """Let the noise of every step come from the samples' own streams.

    Some pipelines leave their generators out there, and noise would depend on the batch.
    """
    step = scheduler.step

    @wraps(step)
    def seeded(model_output: Tensor, timestep: Any, sample: Tensor, **keywords: Any) -> Any:
        # Some step both halves of a guided batch.
        own = streams * (len(sample) // len(streams))
        return step(model_output, timestep, sample, **{"generator": own, **keywords})

    scheduler.step = seeded
