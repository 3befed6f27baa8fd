"""A classifier of noisy states: for guidance by its gradient, and as the router of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import get_down_block
from torch import Tensor, nn
from torch.nn import functional

from ..samplers.denoiser import call_at, per_sample
from ..samplers.sums import scaled
from ..schedules import Schedule
from ..schedules.files import from_dict
from ..schedules.grid import Node


class NoisyClassifier(ModelMixin, ConfigMixin):
    """Logits [B, classes] of noisy states [B, C, H, W] and their times: the first half of a U-Net.

    Its parts have the names that they have in `UNet2DModel`; what is left of the image at the end
    is averaged over space. `schedule` is the law of the noise that it was trained on, as a
    dictionary (see `schedules.files`).
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        classes: int,
        schedule: Mapping[str, Any],
        in_channels: int = 3,
        block_out_channels: Sequence[int] = (32, 64, 128),
        down_block_types: Sequence[str] = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        attention_head_dim: int = 16,
        resnet_time_scale_shift: str = "scale_shift",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width, last = block_out_channels[0], block_out_channels[-1]
        if len(block_out_channels) != len(down_block_types):
            raise ValueError(
                f"{len(block_out_channels)} block_out_channels for {len(down_block_types)} "
                "down_block_types: they are one each"
            )
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, 4 * width)
        self.down_blocks = nn.ModuleList(
            get_down_block(
                kind,
                num_layers=layers_per_block,
                in_channels=block_out_channels[max(k - 1, 0)],
                out_channels=block_out_channels[k],
                temb_channels=4 * width,
                add_downsample=k < len(down_block_types) - 1,
                resnet_eps=1e-5,
                resnet_act_fn="silu",
                resnet_groups=norm_num_groups,
                attention_head_dim=attention_head_dim,
                downsample_padding=1,
                resnet_time_scale_shift=resnet_time_scale_shift,
                dropout=dropout,
            )
            for k, kind in enumerate(down_block_types)
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, last)
        self.head = nn.Linear(last, classes)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Logits at times [B], of states alpha x0 + sigma z of the classifier's own schedule."""
        embedding = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        hidden = self.conv_in(sample)
        for block in self.down_blocks:
            hidden, _ = block(hidden, embedding)
        return self.head(functional.silu(self.norm_out(hidden)).mean((2, 3)))

    @cached_property
    def schedule(self) -> Schedule:
        """The law of the noise that it was trained on."""
        return from_dict(dict(self.config["schedule"]))

    def log_probs(self, x: Tensor, node: Node) -> Tensor:
        """log p(label | x) at a node of any grid, [B, classes]: x is scaled to the own schedule."""
        call = call_at(node, self.schedule, "x0", 1.0)
        logits = self(scaled(x, call.scale_in).to(self.dtype), per_sample(call.label, x))
        return functional.log_softmax(logits.float(), 1)

    def towards(self, labels: int | Tensor) -> Callable[[Tensor, Node], Tensor]:
        """log p(label | x), [B], for `guidance.classifier`; one label for all, or one each."""

        def log_prob(x: Tensor, node: Node) -> Tensor:
            rows = torch.arange(len(x), device=x.device)
            chosen = labels if isinstance(labels, int) else labels.to(x.device)
            return self.log_probs(x, node)[rows, chosen]

        return log_prob

    def router(self) -> Callable[[Tensor, Node], Tensor]:
        """p(label | x), [B, classes], for `guidance.ensemble`, without a gradient."""

        def shares(x: Tensor, node: Node) -> Tensor:
            with torch.no_grad():
                return self.log_probs(x, node).exp()

        return shares


def load_noisy_classifier(folder: str | Path) -> NoisyClassifier:
    """The classifier that a training left in `folder`, in evaluation mode, on the CPU.

    `folder` is the classifier's own, or that of the run around it. FileNotFoundError if there is
    none.
    """
    for path in (Path(folder), Path(folder) / FOLDER):
        if (path / "config.json").is_file():
            found: NoisyClassifier = NoisyClassifier.from_pretrained(path, local_files_only=True)
            return found.eval().requires_grad_(False)
    raise FileNotFoundError(
        f"no classifier of noisy states in {folder}: `fewstep train minority` or `fewstep train "
        "router` makes one"
    )


# Within the folder of a run.
FOLDER = "classifier"
