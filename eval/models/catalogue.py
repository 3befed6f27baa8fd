"""Models by name, folder, file or hub id."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ... import zoo
from ...zoo.edm import EDMNetwork, load_edm, read_edm
from ..settings import ModelConfig
from .bundled import MODELS, digits
from .model import Model
from .networks import edm_model, placed, unet_model

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
        if kind != torch.float32:
            raise ValueError(
                f"{name} computes in float32, not in {dtype}: channels of its last norm lie 64 "
                "deviations from zero, which leaves no digits in so few bits"
            )
        model = digits(name)
    elif path.suffix == ".pkl":
        model = edm_model(path.stem, read_edm(path, trust_pickle=trust_pickle))
    elif (path / "model_index.json").exists() or not path.exists():
        # Here, because diffusers takes seconds to import.
        from .hub import from_pipeline, load_pipeline

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


def configured(config: ModelConfig, device: torch.device | str = "cpu") -> Model:
    """The model that settings ask for; see `load_model`."""
    return load_model(
        config.id,
        device,
        dtype=config.dtype,
        prompts=config.prompts,
        call=config.call,
        trust_pickle=config.trust_pickle,
    )


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
        # torch lists dozens of kinds that it was not built for.
        reason = "" if "device type at start" in str(error) else f": {error}"
        raise ValueError(
            f"no device {name!r} (cpu, cuda, cuda:1, mps, .., auto){reason}"
        ) from error
    return device
