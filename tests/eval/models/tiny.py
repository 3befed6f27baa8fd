"""Tiny random pipelines and networks, as they would come from a folder."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from fewstep.zoo.edm import EDMNetwork
from fewstep.zoo.edm.published import config_of
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

EDGE, PIXELS = 8, 16
WORDS = ("a", "cat", "dog", "on", "the", "moon")


def unet(channels: int = 3, **options: Any) -> Any:
    return diffusers.UNet2DModel(
        sample_size=EDGE,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    )


def vae() -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        scaling_factor=0.5,
    )


def ddpm() -> Any:
    torch.manual_seed(0)
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    return diffusers.DDPMPipeline(unet(), scheduler)


def ldm() -> Any:
    torch.manual_seed(1)
    codes = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=16)
    # As large as latents, so that their scale decides which is nearest.
    torch.nn.init.normal_(codes.quantize.embedding.weight)
    return diffusers.LDMPipeline(codes, unet(), diffusers.DDIMScheduler(clip_sample=False))


def dit() -> Any:
    torch.manual_seed(2)
    network = diffusers.DiTTransformer2DModel(
        sample_size=EDGE,
        patch_size=2,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        norm_num_groups=4,
        out_channels=8,
    )
    for weight in network.parameters():
        # Its last layers start at zero, where classes make no difference.
        torch.nn.init.normal_(weight, std=0.2)
    names = {i: f"class {i}" for i in range(5)}
    return diffusers.DiTPipeline(network, vae(), diffusers.DDIMScheduler(clip_sample=False), names)


def tokenizer() -> Any:
    letters = [chr(code) for code in range(33, 127)]
    signs = [*letters, *(f"{letter}</w>" for letter in letters)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocab = {sign: i for i, sign in enumerate([*signs, *special])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def stable_diffusion() -> Any:
    torch.manual_seed(3)
    network = diffusers.UNet2DConditionModel(
        sample_size=EDGE,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    encoder = CLIPTextModel(text)
    for weight in encoder.parameters():
        # Otherwise all prompts are nearly one.
        torch.nn.init.normal_(weight)
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=encoder,
        tokenizer=words,
        unet=network,
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def edm(**options: Any) -> EDMNetwork:
    torch.manual_seed(4)
    made = {
        "img_resolution": EDGE,
        "img_channels": 3,
        "model_type": "SongUNet",
        "model_channels": 8,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [4],
    }
    network = EDMNetwork(config_of("EDMPrecond", {**made, **options}))
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return network.eval().requires_grad_(False)
