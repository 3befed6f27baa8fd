"""Tiny random networks, as the components of diffusers' pipelines; nothing comes from a hub.

Text encoders and tokenizers are left out: every call brings embeddings, which are random, too.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch

# Edge of the latents, and of the images that they stand for (the tiny VAE halves them).
EDGE, PIXELS = 8, 16
TEXT, TOKENS = 8, 3


def absent(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


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
