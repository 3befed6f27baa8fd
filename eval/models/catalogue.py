"""Models by name, folder, file or hub id."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import zoo
from ...integrations.families import FAMILIES
from ...zoo.edm import EDMNetwork, load_edm, read_edm
from .model import Model, NetworkModel
from .networks import dtype_of, edm_model, unet_model
from .pipeline import CLASS_ARGUMENT, PipelineModel

MODELS = {"mnist": "the bundled class-conditional digits, 28x28"}
DTYPES = ("float32", "bfloat16", "float16")


def load_model(
    name: str,
    device: torch.device | str = "cpu",
    *,
    dtype: str = "float32",
    prompts: tuple[str, ...] = (),
    call: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
) -> Model:
    """The model called `name`, on `device`, in evaluation mode.

    `name` is one of `MODELS`; a folder with a `unet/` and a `scheduler/`, or a whole pipeline of
    diffusers; the id of such a pipeline on the model hub; an EDM network as NVIDIA's .pkl or as the
    folder that `fewstep convert` writes. `dtype` is that of the weights. `prompts` and `call` are
    for pipelines, see `PipelineModel`; `trust_pickle` is for .pkl files, see `read_edm`. Raises
    ValueError for what is none of these, and FileNotFoundError where it is not to be had.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    kind: torch.dtype = getattr(torch, dtype)
    path = Path(name)
    model: Model
    if name in MODELS:
        model = digits(name)
    elif path.suffix == ".pkl":
        model = edm_model(path.stem, read_edm(path, trust_pickle=trust_pickle))
    elif (path / "model_index.json").exists() or not path.exists():
        return from_pipeline(name, load_pipeline(name, kind, device), prompts, call or {})
    elif (path / "unet").is_dir():
        loaded = zoo.load_diffusion_model(path)
        model = unet_model(path.name, loaded.network, loaded.scheduler_config)
    elif (path / "model.safetensors").exists():
        model = edm_model(path.name, load_edm(path))
    else:
        raise ValueError(
            f"{name} is no model: a folder must hold model_index.json (a pipeline), unet/ and "
            "scheduler/, or config.json and model.safetensors (an EDM network)"
        )
    if prompts or call:
        raise ValueError(f"{name} is no pipeline with a loop of its own: no prompts, no call")
    if isinstance(model.network, EDMNetwork) and kind != torch.float32:
        raise ValueError(f"{name}: networks of EDM compute in float32, not in {dtype}")
    return placed(model, kind, device)


def digits(name: str) -> NetworkModel:
    """The bundled digit model."""
    loaded = zoo.mnist_model()
    return unet_model(name, loaded.network, loaded.scheduler_config)


def placed(model: NetworkModel, dtype: torch.dtype, device: torch.device | str) -> NetworkModel:
    """The model with its networks frozen, on the device."""
    for network in (model.network, model.decode):
        if network is not None:
            # A cast to the dtype that it has already makes diffusers warn.
            network.to(device) if dtype_of(network) == dtype else network.to(device, dtype)
            network.eval().requires_grad_(False)
    return model


def load_pipeline(name: str, dtype: torch.dtype, device: torch.device | str) -> Any:
    """A pipeline of diffusers from a folder or the model hub; safetensors only on the hub."""
    from diffusers import DiffusionPipeline

    local = Path(name).exists()
    try:
        pipe = DiffusionPipeline.from_pretrained(
            name, torch_dtype=dtype, use_safetensors=None if local else True
        )
    except (OSError, ValueError) as error:
        where = (
            "this folder holds no whole pipeline"
            if local
            else f"not one of {', '.join(MODELS)}, no such folder, and as an id of the model hub"
        )
        raise FileNotFoundError(f"no model {name!r}: {where}: {error}") from error
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
            f"{name} makes images from text: give prompts, one a line in a file (--prompts FILE)"
        )
    if prompts and "prompt" not in takes:
        raise ValueError(f"{name} takes no prompts")
    classes = config.get("num_embeds_ada_norm") if CLASS_ARGUMENT in takes else None
    return PipelineModel(Path(name).name, pipe, shape, prompts, classes, dict(call))


def pick_device(name: str = "auto") -> torch.device:
    """The torch device of that name; "auto" is the accelerator at hand, else the CPU.

    Under `accelerate launch` each process takes its own.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        # Statistics are float64, which MPS does not have.
        if accelerator is None or accelerator.type == "mps":
            return torch.device("cpu")
        return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)))
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # AssertionError: torch was built without it.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"no device {name!r} (cpu, cuda, cuda:1, mps, .., auto): {error}"
        ) from error
    return device


def check_law(name: str, scheduler: Any) -> None:
    """ValueError for a scheduler whose noise law is not known: it would be taken for another."""
    kind = type(scheduler).__name__
    if kind not in FAMILIES and kind != "TableauScheduler":
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"{name}: the noise levels of a {kind} are not known; there is {known}")
