"""What a model is to an evaluation, and networks as such models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ... import samplers
from ...samplers.teleport import beginning
from ...schedules import Schedule
from ...storage import fingerprint
from .draw import Draw


class Model(Protocol):
    """What can be sampled with a table.

    `network` is what NFE counts the evaluations of, `schedule` the law that grids are made on,
    `shape` that of the noise of one sample, and labels run from 0 to `classes` - 1 (None: there are
    none). `fingerprint` identifies all weights, and what is made of the outputs; `scheduler_config`
    is that of the diffusers scheduler that it came with, if any.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def network(self) -> nn.Module: ...  # noqa: D102
    @property
    def schedule(self) -> Schedule: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def classes(self) -> int | None: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def scheduler_config(self) -> Mapping[str, Any] | None: ...  # noqa: D102

    def images(self, table: samplers.Tableau, draw: Draw) -> Tensor:
        """Run `table` on one batch: float32 [B, C, H, W] about [-1, 1], on the model's device.

        The same seed and label give the same image in any batch.
        """
        ...


@dataclass(frozen=True, eq=False)
class NetworkModel:
    """A denoising network with its law, and what turns its samples into images.

    `denoiser` gives the denoiser for a batch with these labels, and for None that of no class in
    particular; `decode` maps samples to images, for networks of latents. `facts` is what decides
    the samples besides weights and table, such as what the network predicts. `scheduler_config` is
    that of the diffusers scheduler that it came with, if any.
    """

    name: str
    network: nn.Module
    schedule: Schedule
    shape: tuple[int, ...]
    classes: int | None
    denoiser: Callable[[Tensor | None, int], samplers.Denoiser]
    decode: nn.Module | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    scheduler_config: Mapping[str, Any] | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all weights and facts."""
        parts = [self.network] if self.decode is None else [self.network, self.decode]
        return fingerprint(nn.ModuleList(parts), dict(self.facts))

    def denoiser_of(self, draw: Draw) -> samplers.Denoiser:
        """The denoiser of a batch, guided if it is to be; ValueError without classes to guide."""
        size = len(draw.seeds)
        labels = None if draw.labels is None else draw.labels.to(self.device)
        denoiser = self.denoiser(labels, size)
        if draw.guidance == 1:
            return denoiser
        if labels is None:
            raise ValueError(f"guidance {draw.guidance:g}: {self.name} has no classes to guide")
        return samplers.guidance.cfg(denoiser, self.denoiser(None, size), draw.guidance)

    @torch.no_grad()
    def images(self, table: samplers.Tableau, draw: Draw) -> Tensor:
        """See `Model`."""
        return self.sampled(table, draw)

    def sampled(
        self,
        table: samplers.Tableau,
        draw: Draw,
        wrap: Callable[[samplers.Denoiser], samplers.Denoiser] | None = None,
    ) -> Tensor:
        """As `images`, with gradients; `wrap` makes another denoiser of the batch's."""
        extras = draw.extras
        denoiser = samplers.scale_eps(self.denoiser_of(draw), *extras.eps)
        denoiser = denoiser if wrap is None else wrap(denoiser)
        first, start = table.grid, None
        if extras.teleport is not None:
            # In the form of the table, which may be on another law.
            first = beginning(table.grid.schedule or self.schedule)
            start = extras.teleport.start(first.nodes[0], draw.labels)
        x = samplers.noise(first, self.shape, draw.seeds, device=self.device, source=draw.source)
        x = samplers.sample(denoiser, table, x, seeds=draw.seeds, start=start, row_map=extras.shift)
        return x if self.decode is None else self.decode(x)


@contextmanager
def counting(network: nn.Module, on_call: Callable[[int], None]) -> Iterator[None]:
    """Report the batch size of every call of `network` while inside."""

    def report(
        module: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any], output: Any
    ) -> None:
        # The state comes first, by position or by name; times may have no batch.
        tensors = (x for x in (*inputs, *keywords.values()) if isinstance(x, Tensor))
        on_call(len(next(x for x in tensors if x.ndim > 1)))

    hook = network.register_forward_hook(report, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def in_batches(
    model: Model,
    table: samplers.Tableau,
    draw: Draw,
    batch_size: int = 100,
    on_call: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """All images of a draw, float32 [N, C, H, W] on the CPU; `on_call` as in `counting`."""
    with counting(model.network, on_call):
        rows = range(0, len(draw.seeds), batch_size)
        parts = [model.images(table, draw.part(slice(i, i + batch_size))).cpu() for i in rows]
    return torch.cat(parts)
