"""A network trained for a table: its samples against real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ...training import Task, share
from ...training.loop import seed_of
from .discrepancy import Space, discrepancy, stratified

# The real images of a step.
REAL = 2048
# The labels of samples by their numbers, int64 [B], and the shares of the classes.
Classes = Callable[[Sequence[int]], tuple[Tensor, Tensor] | None]
# Samples of some numbers, by the network as it is now: images [B, C, H, W] about [-1, 1].
Images = Callable[[Sequence[int]], Tensor]


def no_classes(numbers: Sequence[int]) -> None:
    """Samples of which none has a class."""


def mmd_task(
    module: nn.Module,
    images: Images,
    spaces: Sequence[Space],
    accelerator: Accelerator,
    *,
    batch_size: int,
    real_batch_size: int = REAL,
    seed: int = 0,
    gather_features: bool = True,
    memory_steps: int = 0,
    classes: Classes = no_classes,
    facts: Mapping[str, Any] | None = None,
    **more: Any,
) -> Task:
    """The training of a network for the samples of a fixed table, MMD-DDM (Aiello et al. 2023).

    The loss of a step is the unbiased discrepancy between `batch_size` samples, with their gradient
    through all calls of the network, and `real_batch_size` real images (or all there are), both of
    that step alone: features of real images are known, so many of them cost little. Classes that
    samples have by chance are evened out (`stratified`), where `classes` says them.

    The features of the last `memory_steps` batches join the samples that those of the step are
    paired with, as of a network that was but a little other then (Wang et al. 2020, "Cross-Batch
    Memory for Embedding Learning"): most noise of a small discrepancy's gradient is that of pairs,
    and this costs no sample.

    Pairs count, so a batch in parts is not the mean of its parts. With `gather_features` it is one
    batch on any number of processes and accumulated parts: features of all parts are made without
    a graph and gathered, the loss is derived for them, and each part is then made again with a
    graph and given its share of that gradient (Gao et al. 2021, "Scaling Deep Contrastive Learning
    Batch Size under Memory Limited Setup"). Without it every part is compared by itself, as in the
    published code. `more` are further fields of the `Task`. Raises ValueError for a memory of
    parts that are compared by themselves.
    """
    if memory_steps and not gather_features:
        raise ValueError("memory_steps: only of batches that are one (gather_features)")
    memory = Memory(memory_steps, batch_size, spaces).to(accelerator.device)
    real = len(spaces[0].real)
    # Of the step at hand: the loss, and its gradient for the features of all parts.
    known: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def numbers(step: int, part: int, parts: int) -> range:
        every = range(step * batch_size, (step + 1) * batch_size)
        return every[share(batch_size, part, parts, least=2)]

    def features(step: int, part: int, parts: int) -> list[Tensor]:
        made = images(numbers(step, part, parts))
        return [space.features(made) for space in spaces]

    def compared(found: Sequence[Tensor], step: int, drawn: Sequence[int]) -> Tensor:
        joined, every = memory.joined(step, found, drawn)
        memory.write(step, found, drawn)
        rows = real_rows(real, real_batch_size, seed, step)
        value = discrepancy(spaces, joined, rows, stratified(classes(every), len(every)))
        # With the gradient that a sample has among its own batch alone.
        return value.detach() + len(every) / len(drawn) * (value - value.detach())

    def derived(step: int, parts: int) -> tuple[Tensor, list[Tensor]]:
        own = range(accelerator.process_index, parts, accelerator.num_processes)
        found = []
        for part in own:
            with torch.no_grad(), kept_streams(accelerator.device):
                torch.manual_seed(seed_of(seed, step, part))
                found.append(features(step, part, parts))
        # By part: those of a process lie num_processes apart.
        whole = []
        for each in zip(*found, strict=True):
            gathered = accelerator.gather(torch.stack(each)[None])
            whole.append(gathered.transpose(0, 1).flatten(0, 2).requires_grad_())
        drawn = [number for part in range(parts) for number in numbers(step, part, parts)]
        loss = compared(whole, step, drawn)
        return loss.detach(), list(torch.autograd.grad(loss, whole))

    def loss(module: nn.Module, step: int, part: int, parts: int) -> Tensor:
        if parts == 1 or not gather_features:
            return compared(features(step, part, parts), step, numbers(step, part, parts))
        if step not in known:
            known.clear()
            known[step] = derived(step, parts)
        value, grads = known[step]
        each = batch_size // parts
        mine = slice(part * each, (part + 1) * each)
        found = features(step, part, parts)
        # The mean over parts is taken of what is returned.
        led = parts * sum((f * g[mine]).sum() for f, g in zip(found, grads, strict=True))
        return value + led - torch.as_tensor(led).detach()

    return Task(module, loss, facts=facts or {}, memory=memory, **more)


class Memory(nn.Module):
    """The features of the batches of the last `steps` steps in every space, and their numbers.

    One more is held, so that a step that is made again finds what it found the first time.
    """

    numbers: Tensor

    def __init__(self, steps: int, batch_size: int, spaces: Sequence[Space]) -> None:
        super().__init__()
        self.slots = steps + 1 if steps else 0
        if not steps:
            return
        self.register_buffer("numbers", torch.zeros(self.slots, batch_size, dtype=torch.long))
        for k, space in enumerate(spaces):
            empty = torch.zeros(self.slots, batch_size, space.real.shape[1])
            self.register_buffer(f"features_{k}", empty)

    def joined(
        self, step: int, found: Sequence[Tensor], drawn: Sequence[int]
    ) -> tuple[Sequence[Tensor], Sequence[int]]:
        """Features and numbers of the samples of a step, and of those before, oldest first."""
        if not self.slots:
            return found, drawn
        slots = [s % self.slots for s in range(max(step + 1 - self.slots, 0), step)]
        earlier = (self.get_buffer(f"features_{k}")[slots].flatten(0, 1) for k in range(len(found)))
        features = [torch.cat([new, old.to(new)]) for new, old in zip(found, earlier, strict=True)]
        return features, [*drawn, *self.numbers[slots].flatten().tolist()]

    @torch.no_grad()
    def write(self, step: int, found: Sequence[Tensor], drawn: Sequence[int]) -> None:
        """Hold the features of a step."""
        if not self.slots:
            return
        slot = step % self.slots
        self.numbers[slot] = torch.tensor([*drawn])
        for k, each in enumerate(found):
            self.get_buffer(f"features_{k}")[slot] = each


def real_rows(total: int, size: int, seed: int, step: int) -> Tensor:
    """Which real images a step is compared with: at most `size` different ones, int64."""
    generator = torch.Generator().manual_seed(seed_of(seed, step, -1))
    return torch.randperm(total, generator=generator)[:size]


def kept_streams(device: torch.device) -> AbstractContextManager[None]:
    """Leave the random streams of the CPU and of a device as they were."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)
