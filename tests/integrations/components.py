"""Pipelines of diffusers from tiny random networks; nothing comes from a hub.

Text encoders and tokenizers are left out: every call brings embeddings, which are random, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch

# Edge of the latents, and of the images that they stand for (the tiny VAE halves them).
EDGE, PIXELS = 8, 16
TEXT, TOKENS = 8, 3
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


def absent(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image() -> torch.Tensor:
    return random(1, 3, PIXELS, PIXELS, seed=5).sigmoid()


def mask() -> torch.Tensor:
    """To be painted: the left half."""
    left = torch.zeros(1, 1, PIXELS, PIXELS)
    left[..., : PIXELS // 2] = 1
    return left


# --- networks ----------------------------------------------------------------------------------


def vae(channels: int = 4) -> Any:
    """The autoencoder of all images: [3, 16, 16] to [channels, 8, 8]."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=channels,
        norm_num_groups=2,
        scaling_factor=0.5,
        shift_factor=0.1,
    )


# What a UNet and its ControlNet have in common.
BLOCKS = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": TEXT,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def unet(**options: Any) -> Any:
    up = ("CrossAttnUpBlock2D", "UpBlock2D")
    return diffusers.UNet2DConditionModel(
        sample_size=EDGE, up_block_types=up, **{**BLOCKS, **options}
    )


def stable_diffusion() -> dict[str, Any]:
    left_out = absent("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    return {"vae": vae(), "unet": unet(), "requires_safety_checker": False, **left_out}


def controlnet() -> dict[str, Any]:
    control = diffusers.ControlNetModel(conditioning_embedding_out_channels=(4, 4), **BLOCKS)
    for weight in control.parameters():
        # Its last layers start at zero, as if it were not there.
        torch.nn.init.normal_(weight, std=0.1)
    return {**stable_diffusion(), "controlnet": control}


def stable_diffusion_xl() -> dict[str, Any]:
    network = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        # Six numbers about the size of the image, and the pooled embedding.
        projection_class_embeddings_input_dim=6 * 4 + TEXT,
        use_linear_projection=True,
    )
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return {"vae": vae(), "unet": network, **absent(*encoders)}


def stable_diffusion_3() -> dict[str, Any]:
    network = diffusers.SD3Transformer2DModel(
        sample_size=EDGE,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        caption_projection_dim=8,
        pooled_projection_dim=TEXT,
        pos_embed_max_size=EDGE,
    )
    encoders = [f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
    # Inpainting insists on the number of channels of the real one.
    return {"vae": vae(16), "transformer": network, **absent(*encoders)}


def flux() -> dict[str, Any]:
    network = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        axes_dims_rope=(4, 2, 2),
    )
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return {"vae": vae(), "transformer": network, **absent(*encoders)}


def wan() -> dict[str, Any]:
    network = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=16,
    )
    left_out = absent("tokenizer", "text_encoder", "vae", "transformer_2")
    return {"transformer": network, **left_out}


def ltx() -> dict[str, Any]:
    network = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=TEXT,
    )
    video = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=2,
    )
    return {"vae": video, "transformer": network, **absent("tokenizer", "text_encoder")}


def sana() -> dict[str, Any]:
    network = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=TEXT,
        sample_size=EDGE,
    )
    return {"transformer": network, **absent("tokenizer", "text_encoder", "vae")}


# What the two transformers of class-conditional ancestry share; both learn a variance, too.
PATCHES = {
    "sample_size": EDGE,
    "num_layers": 2,
    "patch_size": 2,
    "attention_head_dim": 4,
    "num_attention_heads": 2,
    "in_channels": 4,
    "out_channels": 8,
}


def pixart() -> dict[str, Any]:
    network = diffusers.PixArtTransformer2DModel(
        cross_attention_dim=8, caption_channels=TEXT, use_additional_conditions=False, **PATCHES
    )
    return {"vae": vae(), "transformer": network, **absent("tokenizer", "text_encoder")}


def dit() -> dict[str, Any]:
    return {"vae": vae(), "transformer": diffusers.DiTTransformer2DModel(**PATCHES)}


def ldm() -> dict[str, Any]:
    network = diffusers.UNet2DModel(
        sample_size=EDGE,
        in_channels=6,
        out_channels=3,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    codes = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=16)
    return {"vqvae": codes, "unet": network}


def stable_video_diffusion() -> dict[str, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    network = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=EDGE,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=2,
        cross_attention_dim=TEXT,
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=3 * 4,
    )
    video = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2
    )
    eyes = CLIPVisionConfig(
        image_size=PIXELS,
        patch_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=TEXT,
    )
    return {
        "vae": video,
        "unet": network,
        "image_encoder": CLIPVisionModelWithProjection(eyes),
        "feature_extractor": CLIPImageProcessor(size=PIXELS, crop_size=PIXELS),
    }


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
            stable_diffusion,
            lambda: {**prompts(), **to_latents()},
            **SD_LIKE,
        ),
        Case(
            "sd-img2img",
            "StableDiffusionImg2ImgPipeline",
            stable_diffusion,
            lambda: {**prompts(), **from_image()},
            **SD_LIKE,
        ),
        Case(
            "sd-inpaint",
            "StableDiffusionInpaintPipeline",
            stable_diffusion,
            lambda: {**prompts(), **from_masked()},
            **SD_LIKE,
        ),
        Case(
            "sd-controlnet",
            "StableDiffusionControlNetPipeline",
            controlnet,
            lambda: {**prompts(), **to_latents(image=image())},
            **SD_LIKE,
        ),
        Case(
            "sdxl",
            "StableDiffusionXLPipeline",
            stable_diffusion_xl,
            lambda: {**prompts(pooled=True), **to_latents()},
            **SDXL_LIKE,
        ),
        Case(
            "sdxl-img2img",
            "StableDiffusionXLImg2ImgPipeline",
            stable_diffusion_xl,
            lambda: {**prompts(pooled=True), **from_image()},
            **SDXL_LIKE,
        ),
        Case(
            "sdxl-inpaint",
            "StableDiffusionXLInpaintPipeline",
            stable_diffusion_xl,
            lambda: {**prompts(pooled=True), **from_masked()},
            **SDXL_LIKE,
        ),
        Case(
            "sd3",
            "StableDiffusion3Pipeline",
            stable_diffusion_3,
            lambda: {**prompts(pooled=True), **to_latents()},
            **SD3_LIKE,
        ),
        Case(
            "sd3-img2img",
            "StableDiffusion3Img2ImgPipeline",
            stable_diffusion_3,
            lambda: {**prompts(pooled=True), **to_latents(), **from_image()},
            **SD3_LIKE,
        ),
        Case(
            "sd3-inpaint",
            "StableDiffusion3InpaintPipeline",
            stable_diffusion_3,
            lambda: {**prompts(pooled=True), **from_masked()},
            **SD3_LIKE,
        ),
        Case(
            "flux",
            "FluxPipeline",
            flux,
            lambda: {**flux_prompts(), **to_latents()},
            **FLUX_LIKE,
        ),
        Case(
            "flux-img2img",
            "FluxImg2ImgPipeline",
            flux,
            lambda: {**flux_prompts(), **to_latents(), **from_image()},
            **FLUX_LIKE,
        ),
        Case(
            "flux-inpaint",
            "FluxInpaintPipeline",
            flux,
            lambda: {**flux_prompts(), **from_masked()},
            **FLUX_LIKE,
        ),
        Case(
            "wan",
            "WanPipeline",
            wan,
            lambda: {**prompts(), **VIDEO},
            kind="UniPCMultistepScheduler",
            config=BOTH_WORLDS,
            euler=flow_euler(1, 0.001, 1),
        ),
        Case(
            "ltx",
            "LTXPipeline",
            ltx,
            lambda: {**prompts(masked=True), **VIDEO},
            **LTX_LIKE,
        ),
        Case(
            "ltx-img2video",
            "LTXImageToVideoPipeline",
            ltx,
            lambda: {**prompts(masked=True), **VIDEO, "image": image()},
            **LTX_LIKE,
        ),
        Case(
            "sana",
            "SanaPipeline",
            sana,
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
            pixart,
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
            dit,
            lambda: {"class_labels": [3, 5], "output_type": "np"},
            kind="DDIMScheduler",
            config=DIT,
            euler=of_class("DDIMScheduler", **DIT),
        ),
        Case(
            "ldm",
            "LDMSuperResolutionPipeline",
            ldm,
            lambda: {"image": image()[..., :EDGE, :EDGE], "output_type": "np"},
            kind="DDIMScheduler",
            config=LDM,
            euler=of_class("DDIMScheduler", **LDM),
        ),
        Case(
            "svd",
            "StableVideoDiffusionPipeline",
            stable_video_diffusion,
            lambda: to_latents(image=image(), num_frames=2),
            kind="EulerDiscreteScheduler",
            config=SVD,
            euler=of_class("EulerDiscreteScheduler", **SVD),
        ),
    )
}
