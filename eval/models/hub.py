"""Pipelines of diffusers, from a folder or the model hub, as models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from packaging.version import Version
from torch import nn

from ...integrations.families import FAMILIES
from .bundled import MODELS
from .model import NetworkModel
from .networks import placed, unet_model
from .pipeline import CLASS_ARGUMENT, PipelineModel

# What diffusers calls it: the older name warns from 0.42 on.
DTYPE = "dtype" if Version(version("diffusers")) >= Version("0.42") else "torch_dtype"
NOWHERE = (
    f"not one of {', '.join(MODELS)}, no such folder, and as an id of the model hub neither to be "
    "fetched nor in the cache"
)


def load_pipeline(name: str, dtype: torch.dtype, device: torch.device | str) -> Any:
    """A pipeline of diffusers from a folder or the model hub; safetensors only on the hub.

    FileNotFoundError if there is none.
    """
    local = Path(name).exists()
    if not local and (Path(name).is_absolute() or name[0] in ".~"):
        raise FileNotFoundError(f"no model {name!r}: there is no such folder")
    try:
        pipe = DiffusionPipeline.from_pretrained(
            name, **{DTYPE: dtype}, use_safetensors=None if local else True
        )
    except (OSError, ValueError) as error:
        where = "this folder holds no whole pipeline" if local else NOWHERE
        # What follows the first sentence is about diffusers' own arguments.
        reason = str(error).partition("\n")[0].partition(" (")[0]
        raise FileNotFoundError(f"no model {name!r}: {where}: {reason}") from error
    return pipe.to(device)


def from_pipeline(
    name: str, pipe: Any, prompts: tuple[str, ...], call: Mapping[str, Any]
) -> NetworkModel | PipelineModel:
    """The network of an unconditional pipeline, with its autoencoder; other pipelines whole."""
    unet: Any = getattr(pipe, "unet", None)
    vae = getattr(pipe, "vqvae", getattr(pipe, "vae", None))
    if type(unet).__name__ == "UNet2DModel" and not prompts and not call:
        check_law(name, pipe.scheduler)
        model = unet_model(Path(name).name, unet, pipe.scheduler.config, vae)
        return placed(model, next(unet.parameters()).dtype, pipe.device)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    network = getattr(pipe, "transformer", None) if unet is None else unet
    config: Mapping[str, Any] = {} if network is None else network.config
    side, channels = config.get("sample_size"), config.get("in_channels")
    shape = (channels, side, side) if isinstance(side, int) and channels else ()
    takes = inspect.signature(pipe.__call__).parameters
    if "prompt" in takes and not prompts:
        raise ValueError(
            f"{name} makes images from text: give prompts, one a line in a file (--prompts FILE of "
            "`fewstep generate`, `prompts: FILE` of a model in a config)"
        )
    if prompts and "prompt" not in takes:
        raise ValueError(f"{name} takes no prompts")
    classes = config.get("num_embeds_ada_norm") if CLASS_ARGUMENT in takes else None
    return PipelineModel(Path(name).name, pipe, shape, prompts, classes, dict(call))


def check_law(name: str, scheduler: Any) -> None:
    """ValueError for a scheduler whose noise law is not known: it would be taken for another."""
    kind = type(scheduler).__name__
    if kind not in FAMILIES and kind != "TableauScheduler":
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"{name}: the noise levels of a {kind} are not known; there is {known}")
