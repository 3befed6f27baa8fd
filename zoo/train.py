"""Training of the bundled denoiser: noise prediction, label dropout, EMA, atomic resume."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from rich.console import Console
from torch import Tensor, nn

from . import data as datasets


class TrainConfig(BaseModel):
    """What `fewstep train` needs; every field may be overridden on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
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
    weights have mean 1 over the times, so that the gradient keeps its scale whatever the cap.
    """
    x_t = scheduler.add_noise(x0, eps, t)
    error = (network(x_t, t, class_labels=labels).sample.float() - eps).square()
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


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write `state` so that an interruption leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train_denoiser(
    config: TrainConfig,
    out: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Path:
    """Train the network of `config` and save it as a diffusers pipeline folder at `out`.

    `out/checkpoint.pt` is rewritten every `checkpoint_every` steps and on Ctrl-C, and is continued
    from when it exists. The batches depend on (seed, step) only, so a resumed run sees the same
    data as an uninterrupted one. `progress(done, total, text)` is called after every step.
    """
    accelerator = Accelerator()
    rank, world = accelerator.process_index, accelerator.num_processes
    if config.batch_size % world:
        raise ValueError(f"batch_size {config.batch_size} does not divide by {world} processes")
    set_seed(config.seed)
    images, labels = getattr(datasets, config.data)()
    network = UNet2DModel(**config.network)
    scheduler = DDPMScheduler(**config.noise)
    x0, y, t, eps = draw_batch(config, 0, images, labels, scheduler)
    keep_scale(network, scheduler.add_noise(x0, eps, t), t, y, config.keep_scale)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-3)
    # The decay ramps up as (1 + n) / (10 + n), so that early averages forget the random weights.
    ema = EMAModel(network.parameters(), decay=config.ema_decay, use_ema_warmup=False)
    network, optimizer = accelerator.prepare(network, optimizer)
    ema.to(accelerator.device)
    checkpoint = out / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        accelerator.unwrap_model(network).load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        ema.to(accelerator.device)
        first = state["step"]
        if accelerator.is_main_process:
            Console(stderr=True).print(f"resuming {checkpoint} at step {first}")

    def save(step: int) -> None:
        if not accelerator.is_main_process:
            return
        state = {
            "step": step,
            "network": accelerator.unwrap_model(network).state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.state_dict(),
        }
        save_atomically(state, checkpoint)

    running = 0.0
    # Steps that network, optimizer and EMA have all seen; None in the moment when they differ.
    done: int | None = first
    try:
        for step in range(first, config.steps):
            batch = draw_batch(config, step, images, labels, scheduler)
            # Every process draws the whole batch and takes its share of it.
            x0, y, t, eps = (item[rank::world].to(accelerator.device) for item in batch)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, config)
            with accelerator.autocast():
                loss = denoising_loss(network, scheduler, x0, y, t, eps, config.loss_cap)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(network.parameters(), 1.0)
            if not torch.isfinite(norm):
                raise FloatingPointError(
                    f"the gradient is not finite at step {step}; the last good state is "
                    f"{checkpoint}: lower the learning rate and run the same command to continue"
                )
            done = None
            optimizer.step()
            optimizer.zero_grad()
            ema.step(network.parameters())
            done = step + 1
            share = max(0.01, 1 / (done - first))
            running += share * (loss.item() - running)
            progress(done, config.steps, f"loss {running:.4f}")
            if done % config.checkpoint_every == 0 or done == config.steps:
                save(done)
    except KeyboardInterrupt:
        if done is not None:
            save(done)
        raise
    result = accelerator.unwrap_model(network)
    ema.copy_to(result.parameters())
    if accelerator.is_main_process:
        DDPMPipeline(unet=result, scheduler=scheduler).save_pretrained(out / "model")
    accelerator.wait_for_everyone()
    return out / "model"
