"""Training of the bundled denoiser: noise prediction with label dropout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ..training import Task, TrainingSettings, accelerator_for, share, train
from . import data as datasets
from .data import Images
from .data.labels import load_labels


class TrainConfig(BaseModel):
    """What `fewstep train` needs; every field may be overridden on the command line.

    With `labels` (a folder of `fewstep train parts`) and `part`, images of that part alone are
    learned: one expert of an ensemble.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    labels: str | None = None
    part: int | None = Field(None, ge=0)
    network: dict[str, Any]
    noise: dict[str, Any]
    label_dropout: float = Field(0.1, ge=0, le=1)
    batch_size: PositiveInt = 64
    steps: PositiveInt = 12000
    warmup: int = Field(200, ge=0)
    cooldown: float = Field(0.4, ge=0, le=1)
    loss_cap: PositiveFloat = 25.0
    keep_scale: PositiveFloat = 64.0
    drift: float = Field(0.05, ge=0)
    learning_rate: PositiveFloat = 1e-3
    ema_decay: float = Field(0.999, ge=0, lt=1)
    seed: int = 0
    checkpoint_every: PositiveInt = 500


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Trapezoid: linear warm-up, constant, linear decay to zero over the last `cooldown` share."""
    up = (step + 1) / max(config.warmup, 1)
    down = (config.steps - step) / max(config.cooldown * config.steps, 1)
    return max(0.0, min(1.0, up, down))


def stratified_timesteps(batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """Draw `batch` integer times in [0, steps), one in each of `batch` equal strata.

    The loss varies by orders of magnitude over time; stratifying removes that part of its variance
    (Kingma et al. 2021, "Variational Diffusion Models", appendix I.1).
    """
    offset = torch.rand((), generator=generator)
    u = (torch.arange(batch) + offset) / batch
    return (u * steps).long().clamp_(max=steps - 1)


def drift(nsr: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """A constant to add to the noise of a sample: `size` units of x0, at most 1 of the noise.

    nsr (sigma / alpha) is [B], the result [B, 1, 1, 1]. White noise hardly moves the mean of an
    image (by 1 / 28 at 784 pixels), so a network that has seen nothing else leaves any constant
    error of the steps before where it is, or adds to it: backgrounds turn gray, a few images white.
    With this the mean is off in training too, and what brings it back is learned: the noise that a
    sampler's own error amounts to, as in Ning et al. 2023, "Input Perturbation Reduces Exposure
    Bias in Diffusion Models", but in the mean and with the error as part of the target.
    """
    strength = (size / nsr).clamp(max=1)
    return (torch.randn(len(nsr), generator=generator) * strength).reshape(-1, 1, 1, 1)


def part_of(images: Images, config: TrainConfig) -> Images:
    """The images of the part that an expert is to know; all, where none is named."""
    if (config.labels is None) != (config.part is None):
        raise ValueError("labels and part go together: an expert knows one part of labelled images")
    if config.labels is None or config.part is None:
        return images
    parts = load_labels(config.labels, datasets.identity(images))
    own = parts.labels.eq(config.part)
    if not own.any():
        raise ValueError(f"part {config.part} has no images: {config.labels} has {parts.classes}")
    return Images(images.images[own], images.labels[own])


def draw_batch(
    config: TrainConfig, step: int, images: Tensor, labels: Tensor, scheduler: DDPMScheduler
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The batch of a step, (x0, label, time, eps): a function of the seed and the step only."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    index = torch.randint(len(images), (config.batch_size,), generator=generator)
    drop = torch.rand(config.batch_size, generator=generator) < config.label_dropout
    no_label = config.network["num_class_embeds"] - 1
    t = stratified_timesteps(config.batch_size, len(scheduler), generator)
    noise = torch.randn(images[index].shape, generator=generator)
    nsr = (1 / scheduler.alphas_cumprod[t] - 1).sqrt()
    return (
        images[index],
        torch.where(drop, no_label, labels[index]),
        t,
        noise + drift(nsr, config.drift, generator),
    )


def denoising_loss(
    network: nn.Module,
    scheduler: DDPMScheduler,
    x0: Tensor,
    labels: Tensor,
    t: Tensor,
    eps: Tensor,
    cap: float,
) -> Tensor:
    """E w(t) |eps - network(x_t, t, label)|^2 with w ~ min(1 / alpha_t^2, cap).

    1 / alpha^2 makes it the loss of a v-prediction, which counts errors at high noise by what they
    do to x0 (Salimans and Ho 2022); the cap keeps the last, almost pure noise levels in bounds. The
    weights have mean 1 over the times, so that the gradient keeps its scale whatever the cap. A
    network that predicts v has that loss itself, E |v - network(x_t, t, label)|^2: there an error
    of x0 is not the small difference of large numbers, which takes long to learn.
    """
    x_t = scheduler.add_noise(x0, eps, t)
    out = network(x_t, t, class_labels=labels).sample.float()
    if scheduler.config.prediction_type == "v_prediction":
        return (out - scheduler.get_velocity(x0, eps, t)).square().mean()
    error = (out - eps).square()
    weights = (1 / scheduler.alphas_cumprod.to(t.device)).clamp(max=cap)
    return (weights[t] / weights.mean() * error.flatten(1).mean(1)).mean()


@torch.no_grad()
def keep_scale(network: UNet2DModel, x_t: Tensor, t: Tensor, labels: Tensor, ratio: float) -> None:
    """Make the last GroupNorm of a U-Net blind to the strength of its input, in place.

    It divides by the deviation of the sample at hand, and so hides how strong that sample's noise
    is; a network that has to return this noise then misses its norm by the spread of |eps| (2.5 %
    on 784 pixels), and samples with strong noise end in speckle. Channels of a group are offset by
    +- `ratio` deviations, which then dominate the statistics and make them constant; the affine
    part of the norm takes offset and scale back, so that on a typical batch nothing changes.
    """
    norm, last = network.conv_norm_out, network.up_blocks[-1].resnets[-1]
    size = norm.num_channels // norm.num_groups
    if size % 2:
        raise ValueError(f"keep_scale needs an even number of channels per group, got {size}")
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(x_t, t, class_labels=labels)
    hook.remove()
    groups = seen[0].reshape(len(x_t), norm.num_groups, -1)
    deviation = groups.var(2, unbiased=False).mean(0).sqrt().repeat_interleave(size)
    sign = torch.ones_like(deviation)
    sign[1::2] = -1
    last.conv2.bias += ratio * sign * deviation
    norm.bias -= ratio * sign * norm.weight
    norm.weight *= (1 + ratio**2) ** 0.5


def train_denoiser(
    config: TrainConfig,
    out: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Path:
    """Train the network of `config` and save it as a diffusers pipeline folder at `out`/model.

    Resumed, on several processes or not, as `training.train` says: every process draws the whole
    batch of a step, and takes its share of it.
    """
    settings = TrainingSettings(
        seed=config.seed,
        max_train_steps=config.steps,
        learning_rate=config.learning_rate,
        adam_weight_decay=1e-3,
        use_ema=True,
        ema_max_decay=config.ema_decay,
        checkpointing_steps=config.checkpoint_every,
    )
    accelerator = accelerator_for(settings, out)
    images, labels = part_of(datasets.load_images(config.data), config)
    torch.manual_seed(config.seed)
    network = UNet2DModel(**config.network)
    scheduler = DDPMScheduler(**config.noise)
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"noise.prediction_type is epsilon or v_prediction, not {kind!r}")
    x0, y, t, eps = draw_batch(config, 0, images, labels, scheduler)
    keep_scale(network, scheduler.add_noise(x0, eps, t), t, y, config.keep_scale)

    def loss(module: nn.Module, step: int, part: int, parts: int) -> Tensor:
        batch = draw_batch(config, step, images, labels, scheduler)
        own = share(config.batch_size, part, parts)
        x0, y, t, eps = (item[own].to(accelerator.device) for item in batch)
        return denoising_loss(module, scheduler, x0, y, t, eps, config.loss_cap)

    # What else the settings decide is known by their names.
    said = config.model_dump(mode="json", exclude={"checkpoint_every"})
    said["images"] = datasets.identity(datasets.Images(images, labels))
    task = Task(network, loss, rate=partial(learning_rate_factor, config=config), facts=said)
    train(task, settings, out, accelerator, progress)
    if accelerator.is_main_process:
        DDPMPipeline(unet=network.eval(), scheduler=scheduler).save_pretrained(out / "model")
    accelerator.wait_for_everyone()
    return out / "model"
