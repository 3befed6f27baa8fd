"""Random streams: one per sample, addressed by (seed, draw), the same on every device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from ..schedules import Grid


def noise(
    grid: Grid,
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    source: torch.device | str = "cpu",
) -> Tensor:
    """The state at node 0, sigma[0] z: [len(seeds), *shape], one torch stream per sample.

    Sample i is `torch.randn(shape)` of a generator seeded with seeds[i] (mod 2^32, as EDM does
    it), drawn in float32: it does not depend on the batch. `source` is the device of the
    generators. On "cpu" the noise is the same everywhere; on "cuda" it is that of EDM's own script.
    """
    draws = [
        torch.randn(tuple(shape), generator=generator, device=source)
        for generator in generators(seeds, source)
    ]
    if not draws:
        return torch.empty((0, *shape), dtype=dtype, device=device)
    return torch.stack(draws).to(device=device, dtype=dtype) * float(grid.sigma[0])


def random_labels(
    classes: int, shape: Sequence[int], seeds: Sequence[int], source: torch.device | str = "cpu"
) -> Tensor:
    """A label below `classes` per seed, int64 [len(seeds)]: what its stream draws after `noise`.

    As EDM's script draws them (Karras et al. 2022), latents first.
    """
    labels = []
    for generator in generators(seeds, source):
        torch.randn(tuple(shape), generator=generator, device=source)
        labels.append(torch.randint(classes, (), generator=generator, device=source))
    return torch.stack(labels).cpu() if labels else torch.empty(0, dtype=torch.long)


def generators(seeds: Sequence[int], device: torch.device | str) -> Iterator[torch.Generator]:
    """A torch generator for each seed (mod 2^32), in turn."""
    for seed in seeds:
        yield torch.Generator(device).manual_seed(int(seed) % 2**32)


def standard_normal(seeds: Sequence[int], draw: int, like: Tensor) -> Tensor:
    """z[draw] of the streams `seeds`, shaped, typed and placed as `like` [len(seeds), ...].

    Counter-based (Philox keyed by seed and draw), so that a stream has no state: any draw can be
    made at any time, on any split of the batch. Drawn in float32 on the CPU.
    """
    matching(seeds, like)
    z = np.empty(tuple(like.shape), dtype=np.float32)
    for row, bits in zip(z, counters(seeds, draw), strict=True):
        bits.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(z).to(device=like.device, dtype=like.dtype)


def uniform(seeds: Sequence[int], draw: int, like: Tensor) -> Tensor:
    """u[draw] in [0, 1) of the streams `seeds`, float64, shaped and placed as `like`.

    As `standard_normal`, but drawn in float64, which leaves no value out.
    """
    matching(seeds, like)
    u = np.empty(tuple(like.shape))
    for row, bits in zip(u, counters(seeds, draw), strict=True):
        bits.random(out=row)
    return torch.from_numpy(u).to(device=like.device)


def salted(seeds: Sequence[int], purpose: str) -> list[int]:
    """Other streams for another purpose, one for each: what is drawn from them is independent."""
    return [
        int.from_bytes(blake2b(f"{int(seed)},{purpose}".encode(), digest_size=8).digest(), "big")
        for seed in seeds
    ]


def matching(seeds: Sequence[int], like: Tensor) -> None:
    """ValueError unless there is a seed for each sample."""
    if len(seeds) != len(like):
        raise ValueError(
            f"{len(seeds)} seeds for a batch of {len(like)}: give one per sample, or a noise hook"
        )


def counters(seeds: Sequence[int], draw: int) -> Iterator[np.random.Generator]:
    """A generator for each seed, at this draw of its stream."""
    for seed in seeds:
        key = np.array([seed % 2**64, draw], dtype=np.uint64)
        yield np.random.Generator(np.random.Philox(key=key))
