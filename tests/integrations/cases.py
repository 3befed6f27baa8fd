"""Pipelines of diffusers, how they are called, and the schedulers that they are published with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch

from . import components
from .components import EDGE, PIXELS, TEXT, TOKENS

STRENGTH = 0.75
SHIFT = 3.0


@dataclass(frozen=True, eq=False)
class Case:
    """A pipeline, how it is called, and the scheduler that it is published with.

    `parts` builds its components, None where one is left out. `kind` and `config` are those of the
    published scheduler, and `euler(steps)` is the first-order method of diffusers on its nodes:
    what "ddim" must agree with. `draws` says whether noise comes from the generator of the call:
    many pipelines hand none to `step`, which then draws from the global one.
    """

    name: str
    pipeline: str
    parts: Callable[[], dict[str, Any]]
    call: Callable[[], dict[str, Any]]
    kind: str
    config: Mapping[str, Any]
    euler: Callable[[int], Any]
    draws: bool = False

    def original(self) -> Any:
        """The published scheduler, as one that was loaded."""
        named = {"_class_name": self.kind, "_diffusers_version": "0.6.0", **self.config}
        return getattr(diffusers, self.kind).from_config(named)

    def make(self, scheduler: Any) -> Any:
        """The pipeline with this scheduler; the same weights every time."""
        pipe = getattr(diffusers, self.pipeline)(**seeded(self.parts), scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def inputs(self, steps: int) -> dict[str, Any]:
        """Arguments of a call, with a fresh generator."""
        if not self.draws:
            torch.manual_seed(11)
        generator = torch.Generator().manual_seed(7)
        return {"num_inference_steps": steps, "generator": generator, **self.call()}

    @property
    def absent(self) -> dict[str, None]:
        """The components that are left out, as `from_pretrained` wants to be told."""
        return {name: None for name, part in seeded(self.parts).items() if part is None}

    @property
    def flow(self) -> bool:
        return "Flow" in self.kind or "use_flow_sigmas" in self.config


@cache
def seeded(parts: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The components that `parts` builds: once, always the same, and no one else's numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = parts()
    for part in built.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return built


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image() -> torch.Tensor:
    return random(1, 3, PIXELS, PIXELS, seed=5).sigmoid()


def mask() -> torch.Tensor:
    """To be painted: the left half."""
    left = torch.zeros(1, 1, PIXELS, PIXELS)
    left[..., : PIXELS // 2] = 1
    return left


# --- calls -------------------------------------------------------------------------------------


def prompts(pooled: bool = False, masked: bool = False) -> dict[str, Any]:
    """Embeddings of a prompt and of a negative one, with what some pipelines want beside them."""
    given: dict[str, Any] = {}
    for seed, sign in enumerate(("", "negative_")):
        given[f"{sign}prompt_embeds"] = 3 * random(1, TOKENS, TEXT, seed=seed)
        if pooled:
            given[f"{sign}pooled_prompt_embeds"] = 3 * random(1, TEXT, seed=seed)
        if masked:
            given[f"{sign}prompt_attention_mask"] = torch.ones(1, TOKENS)
    return given


def to_latents(height: int = PIXELS, **options: Any) -> dict[str, Any]:
    return {"height": height, "width": height, "output_type": "latent", **options}


def from_image(**options: Any) -> dict[str, Any]:
    return {"image": image(), "strength": STRENGTH, "output_type": "latent", **options}


def from_masked(**options: Any) -> dict[str, Any]:
    return {**to_latents(), **from_image(), "mask_image": mask(), **options}


def flux_prompts() -> dict[str, Any]:
    """No negative one: the guidance is a number that the network is told."""
    given = prompts(pooled=True)
    return {key: value for key, value in given.items() if "negative" not in key}


# --- schedulers --------------------------------------------------------------------------------

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD = {**SCALED, "steps_offset": 1, "set_alpha_to_one": False}
SDXL = {**SCALED, "steps_offset": 1, "timestep_spacing": "leading"}
SVD = {
    **SDXL,
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}
FLUX = {"shift": SHIFT, "use_dynamic_shifting": True}
LTX = {
    "use_dynamic_shifting": True,
    "shift_terminal": 0.1,
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "max_shift": 2.05,
}
BOTH_WORLDS = {
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "flow_shift": SHIFT,
}


def of_class(kind: str, **config: Any) -> Callable[[int], Any]:
    return lambda steps: getattr(diffusers, kind)(**config)


def flow_euler(first: float, last: float, spare: int) -> Callable[[int], Any]:
    """Euler on a flow, on the first n of n + `spare` even times from `first` to `last`, shifted.

    Its own rule shifts the ends twice, and other classes cut times to integers.
    """

    def make(steps: int) -> Any:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        place = scheduler.set_timesteps
        sigmas = np.linspace(first, last, steps + spare)[:steps]

        def set_timesteps(num_inference_steps: int | None = None, device: Any = None) -> None:
            place(sigmas=sigmas.tolist(), device=device)

        scheduler.set_timesteps = set_timesteps
        return scheduler

    return make


# The files that they are published in carry keys of other classes, too.
SD_LIKE = {
    "kind": "PNDMScheduler",
    "config": {**SD, "skip_prk_steps": True, "clip_sample": False},
    "euler": of_class("DDIMScheduler", **SD, clip_sample=False),
    "draws": True,
}
SDXL_LIKE = {
    "kind": "EulerDiscreteScheduler",
    "config": {**SDXL, "skip_prk_steps": True, "sample_max_value": 1.0},
    "euler": of_class("EulerDiscreteScheduler", **SDXL),
    "draws": True,
}
SD3_LIKE = {
    "kind": "FlowMatchEulerDiscreteScheduler",
    "config": {"shift": SHIFT},
    "euler": flow_euler(1, 0.001, 0),
}
FLUX_LIKE = {
    "kind": "FlowMatchEulerDiscreteScheduler",
    "config": FLUX,
    "euler": of_class("FlowMatchEulerDiscreteScheduler", **FLUX),
}
LTX_LIKE = {
    "kind": "FlowMatchEulerDiscreteScheduler",
    "config": LTX,
    "euler": of_class("FlowMatchEulerDiscreteScheduler", **LTX),
}
DIT = {"clip_sample": False}
LDM = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "beta_end": 0.0155,
    "clip_sample": False,
}
VIDEO = {"height": 32, "width": 32, "num_frames": 9, "output_type": "latent"}

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            "sd",
            "StableDiffusionPipeline",
            components.stable_diffusion,
            lambda: {**prompts(), **to_latents()},
            **SD_LIKE,
        ),
        Case(
            "sd-img2img",
            "StableDiffusionImg2ImgPipeline",
            components.stable_diffusion,
            lambda: {**prompts(), **from_image()},
            **SD_LIKE,
        ),
        Case(
            "sd-inpaint",
            "StableDiffusionInpaintPipeline",
            components.stable_diffusion,
            lambda: {**prompts(), **from_masked()},
            **SD_LIKE,
        ),
        Case(
            "sd-controlnet",
            "StableDiffusionControlNetPipeline",
            components.controlnet,
            lambda: {**prompts(), **to_latents(image=image())},
            **SD_LIKE,
        ),
        Case(
            "sd-controlnet-img2img",
            "StableDiffusionControlNetImg2ImgPipeline",
            components.controlnet,
            lambda: {**prompts(), **from_image(control_image=image())},
            **SD_LIKE,
        ),
        Case(
            "sd-controlnet-inpaint",
            "StableDiffusionControlNetInpaintPipeline",
            components.controlnet,
            lambda: {**prompts(), **from_masked(control_image=image())},
            **SD_LIKE,
        ),
        Case(
            "sdxl",
            "StableDiffusionXLPipeline",
            components.stable_diffusion_xl,
            lambda: {**prompts(pooled=True), **to_latents()},
            **SDXL_LIKE,
        ),
        Case(
            "sdxl-img2img",
            "StableDiffusionXLImg2ImgPipeline",
            components.stable_diffusion_xl,
            lambda: {**prompts(pooled=True), **from_image()},
            **SDXL_LIKE,
        ),
        Case(
            "sdxl-inpaint",
            "StableDiffusionXLInpaintPipeline",
            components.stable_diffusion_xl,
            lambda: {**prompts(pooled=True), **from_masked()},
            **SDXL_LIKE,
        ),
        Case(
            "sd3",
            "StableDiffusion3Pipeline",
            components.stable_diffusion_3,
            lambda: {**prompts(pooled=True), **to_latents()},
            **SD3_LIKE,
        ),
        Case(
            "sd3-img2img",
            "StableDiffusion3Img2ImgPipeline",
            components.stable_diffusion_3,
            lambda: {**prompts(pooled=True), **to_latents(), **from_image()},
            **SD3_LIKE,
        ),
        Case(
            "sd3-inpaint",
            "StableDiffusion3InpaintPipeline",
            components.stable_diffusion_3,
            lambda: {**prompts(pooled=True), **from_masked()},
            **SD3_LIKE,
        ),
        Case(
            "flux",
            "FluxPipeline",
            components.flux,
            lambda: {**flux_prompts(), **to_latents()},
            **FLUX_LIKE,
        ),
        Case(
            "flux-img2img",
            "FluxImg2ImgPipeline",
            components.flux,
            lambda: {**flux_prompts(), **to_latents(), **from_image()},
            **FLUX_LIKE,
        ),
        Case(
            "flux-inpaint",
            "FluxInpaintPipeline",
            components.flux,
            lambda: {**flux_prompts(), **from_masked()},
            **FLUX_LIKE,
        ),
        Case(
            "wan",
            "WanPipeline",
            components.wan,
            lambda: {**prompts(), **VIDEO},
            kind="UniPCMultistepScheduler",
            config=BOTH_WORLDS,
            euler=flow_euler(1, 0.001, 1),
        ),
        Case(
            "ltx",
            "LTXPipeline",
            components.ltx,
            lambda: {**prompts(masked=True), **VIDEO},
            **LTX_LIKE,
        ),
        Case(
            "ltx-img2video",
            "LTXImageToVideoPipeline",
            components.ltx,
            lambda: {**prompts(masked=True), **VIDEO, "image": image()},
            **LTX_LIKE,
        ),
        Case(
            "sana",
            "SanaPipeline",
            components.sana,
            lambda: {
                **prompts(masked=True),
                **to_latents(EDGE * 32, use_resolution_binning=False),
                "negative_prompt": None,
            },
            kind="DPMSolverMultistepScheduler",
            config=BOTH_WORLDS,
            euler=flow_euler(0.999, 0, 1),
            draws=True,
        ),
        Case(
            "pixart",
            "PixArtSigmaPipeline",
            components.pixart,
            lambda: {
                **prompts(masked=True),
                **to_latents(use_resolution_binning=False),
                "negative_prompt": None,
            },
            kind="DPMSolverMultistepScheduler",
            config={},
            euler=of_class("DPMSolverMultistepScheduler", solver_order=1),
            draws=True,
        ),
        Case(
            "dit",
            "DiTPipeline",
            components.dit,
            lambda: {"class_labels": [3, 5], "output_type": "np"},
            kind="DDIMScheduler",
            config=DIT,
            euler=of_class("DDIMScheduler", **DIT),
        ),
        Case(
            "ldm",
            "LDMSuperResolutionPipeline",
            components.ldm,
            lambda: {"image": image()[..., :EDGE, :EDGE], "output_type": "np"},
            kind="DDIMScheduler",
            config=LDM,
            euler=of_class("DDIMScheduler", **LDM),
        ),
        Case(
            "svd",
            "StableVideoDiffusionPipeline",
            components.stable_video_diffusion,
            lambda: to_latents(image=image(), num_frames=2),
            kind="EulerDiscreteScheduler",
            config=SVD,
            euler=of_class("EulerDiscreteScheduler", **SVD),
        ),
    )
}
