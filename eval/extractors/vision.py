"""Vision transformers of the transformers library: DINOv2 for FD-DINOv2, CLIP for CMMD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor, nn
from torch.nn import functional

from .extractor import Extractor
from .prepare import Preprocessing
from .weights import MissingWeights, is_offline, sha256_of

# The first that there is; the second is read with weights_only, which runs nothing in it.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
DINOV2 = "facebook/dinov2-large"
CLIP = "openai/clip-vit-large-patch14-336"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

DINOV2_SIZE = 224


def dinov2(name: str = DINOV2, revision: str | None = None) -> Extractor:
    """DINOv2's class token after the final norm, 1024 features: that of FD-DINOv2.

    Stein et al. 2023, "Exposing flaws of generative model evaluation metrics"; images are prepared
    as in Karras et al. 2024 (EDM2): bicubic with antialiasing to 224, neither clipped nor rounded.
    Position embeddings are interpolated as by the authors of DINOv2 (see `positions_at`), which
    transformers does differently. `name` is a model on the Hugging Face hub, or a folder of one.
    Raises MissingWeights if it is in neither, ImportError without transformers.
    """
    model, sha256 = pretrained("Dinov2Model", name, revision)
    grid = DINOV2_SIZE // model.config.patch_size
    positions = positions_at(model.embeddings.position_embeddings.detach(), grid)
    model.embeddings.position_embeddings = nn.Parameter(positions)
    prepare = Preprocessing(
        IMAGENET_MEAN, IMAGENET_STD, DINOV2_SIZE, "bicubic antialiased", bicubic
    )
    facts = {"weights": sha256, "layer": "class token after the final norm", **prepare.facts}
    network = ClassToken(model).eval().requires_grad_(False)
    return Extractor("dinov2", network, prepare, facts)


def clip(name: str = CLIP, revision: str | None = None) -> Extractor:
    """CLIP's image embedding of length 1, 768 features: that of CMMD.

    Jayasumana et al. 2024, "Rethinking FID: towards a better evaluation metric for image
    generation": the central square, resized as Pillow's bicubic to the network's 336, to whole
    levels. `name` and errors as in `dinov2`.
    """
    model, sha256 = pretrained("CLIPVisionModelWithProjection", name, revision)
    size = model.config.image_size
    prepare = Preprocessing(CLIP_MEAN, CLIP_STD, size, "central square, Pillow bicubic", central)
    facts = {"weights": sha256, "layer": "image embedding", "normalised": "yes", **prepare.facts}
    network = UnitEmbedding(model).eval().requires_grad_(False)
    return Extractor("clip", network, prepare, facts)


class ClassToken(nn.Module):
    """The first token [N, D] of a model's last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Of prepared images [N, 3, 224, 224]."""
        return self.model(images).last_hidden_state[:, 0]


class UnitEmbedding(nn.Module):
    """A model's image embedding [N, D], divided by its length."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Of prepared images [N, 3, H, W]."""
        return functional.normalize(self.model(images).image_embeds, dim=-1)


def bicubic(images: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing, aspect not kept, which overshoots 0..255 a little at edges."""
    return functional.interpolate(images, (size, size), mode="bicubic", antialias=True)


def central(images: Tensor, size: int) -> Tensor:
    """The central square, resized by `pillow_bicubic`."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pillow_bicubic(images[..., top : top + side, left : left + side], size)


def pillow_bicubic(images: Tensor, size: int) -> Tensor:
    """Pillow's bicubic of 8-bit images: the width, then the height, each rounded and clipped.

    Equal but for a level in some of 10,000 pixels, where Pillow's fixed-point weights break a tie.
    """
    levels = images.double()
    for shape in ((images.shape[-2], size), (size, size)):
        levels = functional.interpolate(levels, shape, mode="bicubic", antialias=True)
        # A half goes up, not to even: integer factors make many of them.
        levels = (levels + 0.5).floor().clamp(0, 255)
    return levels.float()


def positions_at(positions: Tensor, grid: int) -> Tensor:
    """DINOv2's position embeddings [1, 1 + M^2, D] for grid x grid patches.

    Bicubic at (i + 1/2) M / (grid + 0.1) - 1/2, as in the authors' own network. transformers has
    grid for grid + 0.1, which moves the last of 16 patches by a fifth of a step.
    """
    first, rest = positions[:, :1], positions[:, 1:]
    side = round(rest.shape[1] ** 0.5)
    if side == grid:
        return positions
    image = rest.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = (grid + 0.1) / side
    image = functional.interpolate(image, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([first, image.flatten(2).mT], dim=1)


def pretrained(kind: str, name: str, revision: str | None) -> tuple[Any, str]:
    """A model of transformers in float32, and the sha256 of its weights.

    Raises ValueError if the file lacks weights, which would otherwise be random.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{name} needs transformers: pip install transformers") from error
    file = weights_file(name, revision)
    model, info = getattr(transformers, kind).from_pretrained(
        file.parent,
        use_safetensors=file.name == WEIGHTS[0],
        local_files_only=True,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        lacking = sorted(info["missing_keys"])
        raise ValueError(
            f"{file} lacks {len(lacking)} weights of a {kind}, first: {lacking[0]}; "
            f"it is of another model, or damaged"
        )
    return model.float(), sha256_of(file)


def weights_file(name: str, revision: str | None = None, offline: bool = False) -> Path:
    """The weights in a folder, in the hub's local cache, or downloaded into it unless `offline`."""
    folder = Path(name)
    for file in WEIGHTS:
        if (folder / file).is_file():
            return folder / file
    if folder.is_dir():
        raise MissingWeights(missing(name, revision, f"the folder has no {' or '.join(WEIGHTS)}"))
    try:
        hub_file(name, "config.json", revision, offline)
        try:
            return hub_file(name, WEIGHTS[0], revision, offline)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return hub_file(name, WEIGHTS[1], revision, offline)
    # The hub says no in many ways: offline, unknown, not a name, no such file.
    except (OSError, ValueError) as error:
        absent = isinstance(error, LocalEntryNotFoundError)
        reason = "not in the cache" if absent else str(error).strip().splitlines()[0]
        raise MissingWeights(missing(name, revision, reason)) from error


def hub_file(name: str, file: str, revision: str | None, offline: bool) -> Path:
    """A file of the hub: from the local cache without asking, else downloaded."""
    try:
        return Path(hf_hub_download(name, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        if offline or is_offline():
            raise
        return Path(hf_hub_download(name, file, revision=revision))


def missing(name: str, revision: str | None, reason: str) -> str:
    """What to do when there are no weights."""
    at = "" if revision is None else f" --revision {revision}"
    return (
        f"no weights of {name}{at}: {reason}\n"
        f"Looked for config.json and {' or '.join(WEIGHTS)} in the folder {Path(name)} and, with "
        f"the hub, in {HF_HUB_CACHE}.\n"
        f"Where there is a network: hf download {name}{at} config.json {WEIGHTS[0]}\n"
        f"then copy that cache, or the folder, to this machine and give its path.\n"
        f"Without any download: --extractor effnet-lite0, or --extractor pixels."
    )
