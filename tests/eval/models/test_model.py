from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.eval.images import quantise
from fewstep.eval.models import Draw, counting, in_batches, load_model
from fewstep.eval.settings import SolverConfig, table_within
from torch import nn

from .exact import CLASSES, SHAPE, SPREAD, exact, table

SEEDS = range(40)
LABELS = torch.arange(40) % CLASSES


def test_samples_are_where_the_ode_of_a_gaussian_takes_them():
    long = table(400)
    found = exact().images(long, Draw(SEEDS, LABELS))
    alpha, sigma = long.grid.alpha[0], long.grid.sigma[0]
    mean = exact().network.means[LABELS].view(-1, 1, 1, 1)
    start = samplers.noise(long.grid, SHAPE, SEEDS)
    expected = mean + SPREAD * (start - alpha * mean) / np.sqrt(alpha**2 * SPREAD**2 + sigma**2)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_guidance_mixes_the_two_denoisers():
    # Of affine denoisers with one slope, the guided one has the mixed mean.
    draw = Draw(SEEDS, LABELS, guidance=2.0)
    mixed = exact()
    with torch.no_grad():
        means = mixed.network.means
        means[:CLASSES] = 2 * means[:CLASSES] - means[-1]
    expected = mixed.images(table(), replace(draw, guidance=1.0))
    torch.testing.assert_close(exact().images(table(), draw), expected, atol=3e-4, rtol=0)
    with pytest.raises(ValueError, match="guidance 2: exact has no classes to guide"):
        exact().images(table(), Draw(SEEDS, guidance=2.0))


def test_stochastic_samples_do_not_depend_on_the_batch_either():
    draw = Draw(SEEDS, LABELS)
    noisy = table(4, "ddpm")
    whole = in_batches(exact(), noisy, draw, 40)
    assert torch.equal(in_batches(exact(), noisy, draw, 7), whole)
    assert not torch.allclose(whole, in_batches(exact(), table(4, "ddim"), draw))


def test_samples_are_decoded():
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    draw = Draw(SEEDS, LABELS)
    plain = exact().images(table(), draw)
    assert torch.equal(replace(exact(), decode=Twice()).images(table(), draw), 2 * plain)


def test_a_fingerprint_sees_all_weights_and_facts():
    own = exact()
    other = exact()
    other.network.means[1] += 1e-6
    decoded = replace(exact(), decode=nn.Linear(2, 2))
    told = replace(exact(), facts={"prediction": "eps"})
    retold = replace(exact(), facts={"prediction": "v"})
    assert exact().fingerprint == own.fingerprint
    assert len({each.fingerprint for each in (own, other, decoded, told, retold)}) == 5


def test_calls_are_counted_by_images_and_only_inside():
    network, seen = exact().network, []
    x, label, labels = torch.zeros(5, *SHAPE), torch.zeros(5), torch.zeros(5, dtype=torch.long)
    with counting(network, seen.append):
        network(x, label, labels)
        network(label=label, class_labels=labels[:2], x=x[:2])
    network(x, label, labels)
    assert seen == [5, 2]
    with pytest.raises(KeyError), counting(network, seen.append):
        raise KeyError
    assert not network._forward_hooks


def test_batches_report_every_call():
    seen = []
    images = in_batches(exact(), table(), Draw(SEEDS, LABELS), 15, seen.append)
    assert len(images) == 40
    assert seen == [15] * 4 + [15] * 4 + [10] * 4


def test_digits_of_other_batches_are_the_same_to_a_level():
    # Kernels for another batch sum in another order. That is 1e-5 of eps, and 1e-3 of the first x0,
    # whose state has 160 times as much noise as signal; the steps that follow leave less of it.
    model = load_model("mnist")
    steps = table_within(model.schedule, SolverConfig(name="ddim"), 10, "uniform", "zero")
    draw = Draw(range(8), torch.arange(8))
    whole = in_batches(model, steps, draw, 8)
    for batch_size in (1, 3):
        found = in_batches(model, steps, draw, batch_size)
        assert (found - whole).abs().mean() < 1e-4
        assert (quantise(found).int() - quantise(whole).int()).abs().max() <= 1
