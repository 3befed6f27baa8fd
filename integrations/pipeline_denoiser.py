"""A diffusers pipeline as a denoiser (x, node) -> x0, for all that asks one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..samplers import Tableau
from ..samplers.denoiser import without_variance
from ..samplers.sums import mix, scaled
from ..schedules.grid import Node
from ..steering import Chain
from .families import law_of
from .loop import DECIDED, Loop, Place
from .pipelines import use
from .plan import make_plan
from .reading import clipping, reading
from .request import Config, Law


@dataclass(frozen=True, eq=False)
class PipelineDenoiser:
    """A pipeline as a denoiser; made by `pipeline_denoiser`.

    States are [B, *shape]: the latents of the pipeline as its loop holds them, packed ones too, or
    its pixels. The network is shown them in `dtype`.
    """

    loop: Loop
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def config(self) -> Config:
        """That of the scheduler, as `TableauScheduler` has it."""
        return self.loop.config

    def __call__(self, x: Tensor, node: Node) -> Tensor:
        """Predict clean data, in the dtype of x, for as many samples of each prompt.

        The node may be in any form, and its label is what the network is told. ValueError for
        states that do not go through the loop of the pipeline.
        """
        law = law_of(self.config)
        unit = unit_of(law, node)
        alpha, sigma = node.alpha * unit, node.sigma * unit
        read = reading(self.config, law, alpha, sigma)
        shown = scaled(x, read.scale * unit).to(self.dtype)
        place = Place(node.label, told_sigma(self.config, law, alpha, sigma))
        out = self.loop.output(shown, place).to(x.dtype)
        out = out if out.shape == x.shape else without_variance(out, x)
        x0 = mix(x, read.a * unit, out, read.b)
        clip = clipping(self.config)
        return x0 if clip is None else clip(x0)

    def images(self, x0: Tensor) -> Tensor:
        """Clean data as the pipeline decodes it: images [B, C, H, W] in [-1, 1].

        What it does behind its loop, all of it: videos have one dimension more, and a safety
        checker may blacken images. Gradients flow.
        """
        return self.loop.rest(x0.to(self.dtype)).to(x0.dtype) * 2 - 1

    def table(
        self,
        solver: str | Tableau | Path | Mapping[str, Any] = "sde-dpmpp-2m",
        steps: int = 50,
        **keys: Any,
    ) -> Tableau:
        """The table that `use(pipe, solver, **keys)` runs when it is called for so many steps.

        A single table has as many as it has rows.
        """
        if isinstance(solver, Tableau):
            steps = solver.grid.nfe
        holder = SimpleNamespace(scheduler=self.loop.pipe.scheduler)
        scheduler = use(holder, solver, verbose=False, **keys)
        return make_plan(dict(scheduler.config), self.loop.requested(steps)).table

    def chain(
        self,
        solver: str | Tableau | Path | Mapping[str, Any] = "sde-dpmpp-2m",
        steps: int = 50,
        *,
        levels: Sequence[int] = (),
        batch_size: int = 8,
        **keys: Any,
    ) -> Chain:
        """The chain of `table(solver, steps, **keys)`, for the drivers of `fewstep.steering`.

        Raises ValueError for several prompts, and what `Chain` does: for solvers that draw no noise
        between two levels.
        """
        if self.loop.kinds > 1:
            raise ValueError(
                f"the samples of a chain are all of one kind: {self.loop.kinds} prompts need as "
                "many chains"
            )
        return Chain(
            self.table(solver, steps, **keys),
            lambda size: self,
            self.shape,
            tuple(levels),
            batch_size=batch_size,
            device=self.device,
        )


def pipeline_denoiser(pipe: Any, **call: Any) -> PipelineDenoiser:
    """A pipeline of diffusers as a denoiser: its network with its prompt, guidance and conditions.

    `call` are the arguments of the pipeline: prompt, guidance scale, height, .. Every evaluation is
    a call of one step, with a stand-in for the scheduler that catches the output, which the
    prediction type of the scheduler's config turns into x0. So all works that begins in noise and
    leaves the steps to its scheduler; but what a pipeline does by the number of a step
    (`control_guidance_end`) it does as in a run of one. Prompts are encoded once for each size of a
    batch, and between evaluations the pipeline is as it was. One is made at once, to find `shape`.

    Raises ValueError for pipelines that begin in an image, or have a loop that this cannot catch,
    and for arguments that are not the pipeline's or that evaluations decide.
    """
    name = type(pipe).__name__
    if getattr(pipe, "scheduler", None) is None:
        raise ValueError(f"{name} cannot be driven: it has no scheduler")
    scheduler = use(SimpleNamespace(scheduler=pipe.scheduler), "ddim", verbose=False)
    loop = Loop(pipe, call, scheduler.config)
    free = loop.takes - {*DECIDED}
    if wrong := sorted(set(call) - free):
        raise ValueError(
            f"{', '.join(wrong)}: not for an evaluation of {name}; there is "
            f"{', '.join(sorted(free))}"
        )
    if "strength" in loop.takes:
        raise ValueError(f"{name} cannot be driven: it begins in an image, not in noise")
    with torch.no_grad():
        place = Place(float(scheduler.timesteps[0]), float(scheduler.sigmas[0]))
        first = loop.evaluated(place, loop.kinds).sample
    return PipelineDenoiser(loop, tuple(first.shape[1:]), first.dtype, first.device)


def unit_of(law: Law, node: Node) -> float:
    """What brings a state of any form into that which networks of a law are trained on."""
    if law == "flow":
        return 1 / (node.alpha + node.sigma)
    return 1 / node.alpha if law == "edm" else 1 / float(np.hypot(node.alpha, node.sigma))


def told_sigma(config: Config, law: Law, alpha: float, sigma: float) -> float:
    """What diffusers calls sigma: sigma / alpha, for flows sigma."""
    if law != "flow":
        return sigma / alpha if alpha else math.inf
    return 1 - sigma if config.get("invert_sigmas") else sigma
