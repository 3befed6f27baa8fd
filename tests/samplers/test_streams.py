from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from fewstep import noise, samplers, schedules
from fewstep.samplers.streams import generators, standard_normal, uniform

GRID = schedules.grid(schedules.EDM(0.002, 80.0), 4, "karras")
SHAPE = (3, 8, 8)
# Also beyond the range of a generator of EDM, which wraps.
SEEDS = [0, 1, 7, 2**31, 2**32 - 1, 2**32 + 5, *range(100, 164)]


def edm(seeds, classes):
    """Latents and then labels, as the random generator of EDM's script makes them."""
    streams = [torch.Generator().manual_seed(seed % (1 << 32)) for seed in seeds]
    latents = torch.stack([torch.randn(SHAPE, generator=stream) for stream in streams])
    labels = torch.stack([torch.randint(classes, size=[], generator=s) for s in streams])
    return latents, labels


def test_latents_and_labels_are_those_of_edm():
    latents, labels = edm(SEEDS, 10)
    found = noise(GRID, SHAPE, SEEDS)
    assert found.dtype == torch.float32
    assert torch.equal(found, latents * 80.0)
    assert torch.equal(samplers.random_labels(10, SHAPE, SEEDS), labels)
    assert labels.dtype == samplers.random_labels(10, SHAPE, SEEDS).dtype


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_neither_depends_on_the_batch(batch):
    parts = [SEEDS[i : i + batch] for i in range(0, len(SEEDS), batch)]
    joined = torch.cat([noise(GRID, SHAPE, part) for part in parts])
    assert torch.equal(joined, noise(GRID, SHAPE, SEEDS))
    labels = torch.cat([samplers.random_labels(10, SHAPE, part) for part in parts])
    assert torch.equal(labels, samplers.random_labels(10, SHAPE, SEEDS))


def test_a_list_of_generators_gives_diffusers_the_same():
    found = randn_tensor((len(SEEDS), *SHAPE), generator=list(generators(SEEDS, "cpu")))
    assert torch.equal(found * 80.0, noise(GRID, SHAPE, SEEDS))


def test_another_dtype_has_the_same_noise():
    # Drawn in float64, the numbers would be others.
    found = noise(GRID, SHAPE, SEEDS[:4], dtype=torch.float64)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, noise(GRID, SHAPE, SEEDS[:4]), rtol=1e-6)


def test_labels_take_every_class():
    assert set(samplers.random_labels(10, SHAPE, range(200)).tolist()) == set(range(10))


def test_no_seeds():
    assert noise(GRID, SHAPE, []).shape == (0, *SHAPE)
    assert samplers.random_labels(10, SHAPE, []).shape == (0,)


def test_later_draws_do_not_depend_on_the_batch():
    like = torch.zeros(4, *SHAPE)
    whole = standard_normal([3, 4, 5, 6], 2, like)
    assert torch.equal(whole[1:3], standard_normal([4, 5], 2, like[:2]))
    assert not torch.equal(whole, standard_normal([3, 4, 5, 6], 1, like))
    with pytest.raises(ValueError, match="2 seeds for a batch of 4"):
        standard_normal([1, 2], 0, like)


def test_uniform_numbers_of_streams():
    like = torch.empty(len(SEEDS), 50)
    u = uniform(SEEDS, 3, like)
    assert u.dtype == torch.float64
    assert torch.equal(uniform(SEEDS[2:5], 3, like[2:5]), u[2:5])
    assert 0 <= u.min() < 0.01 < 0.99 < u.max() < 1
    # Every stream and every draw is another.
    assert len(torch.cat([u, uniform(SEEDS, 4, like)]).flatten().unique()) == 2 * u.numel()
    with pytest.raises(ValueError, match="2 seeds for a batch of 3"):
        uniform([1, 2], 0, torch.empty(3, 1))
