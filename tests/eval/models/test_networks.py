from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from fewstep.eval.models import Draw, edm_model, in_batches, unet_model
from fewstep.eval.settings import SolverConfig, table_within
from fewstep.integrations import use

from . import tiny

SEEDS = range(3, 8)


def table_for(model, nfe=5, solver="dpmpp-2m", spacing="lam"):
    return table_within(model.schedule, SolverConfig(name=solver), nfe, spacing, "zero")


def heun(network, steps, labels=None, rho=7):
    """Karras et al. 2022, algorithm 1 without churn, in float64 as their script has it."""
    latents = torch.stack([torch.randn(3, 8, 8, generator=seeded(seed)) for seed in SEEDS])
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    ends = 80 ** (1 / rho), 0.002 ** (1 / rho)
    levels = torch.cat([(ends[0] + ramp * (ends[1] - ends[0])) ** rho, torch.zeros(1)])
    x = latents.double() * levels[0]
    for now, then in pairwise(levels):
        slope = (x - network(x, now, labels).double()) / now
        ahead = x + (then - now) * slope
        if then > 0:
            other = (ahead - network(ahead, then, labels).double()) / then
            ahead = x + (then - now) * (slope + other) / 2
        x = ahead
    return x.float()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("label_dim", [0, 4])
def test_edm_networks_run_as_their_own_script_runs_them(label_dim):
    network = tiny.edm(label_dim=label_dim)
    model = edm_model("tiny", network)
    assert model.classes == (label_dim or None)
    assert model.shape == (3, 8, 8)
    labels = torch.tensor([3, 1, 0, 2, 2]) if label_dim else None
    seen = []
    table = table_for(model, 17, "heun", "karras")
    found = in_batches(model, table, Draw(SEEDS, labels), on_call=seen.append)
    expected = heun(network, 9, labels)
    torch.testing.assert_close(found, expected, atol=2e-4 * expected.abs().max(), rtol=0)
    assert seen == [5] * 17


def test_edm_networks_run_on_nodes_of_any_form():
    model = edm_model("tiny", tiny.edm())
    table, draw = table_for(model, 4, "dpmpp-2m", "karras"), Draw(SEEDS)
    found, expected = model.images(table.in_form("vp"), draw), model.images(table, draw)
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max(), rtol=0)


def test_no_label_is_no_class_of_edm():
    network = tiny.edm(label_dim=4)
    model = edm_model("tiny", network)
    table = table_for(model, 5, "ddim", "karras")
    free = model.images(table, Draw(SEEDS))
    labels = torch.zeros(5, dtype=torch.long)
    classy = model.images(table, Draw(SEEDS, labels))
    assert not torch.allclose(free, classy, atol=1e-3)
    # The scale 0 leaves the class out.
    guided = model.images(table, Draw(SEEDS, labels, guidance=0.0))
    torch.testing.assert_close(guided, free)


def test_edm_nodes_stay_within_what_a_network_knows():
    network = tiny.edm(sigma_min=0.01, sigma_max=50.0)
    grid = table_for(edm_model("tiny", network), 5, "ddim", "karras").grid
    assert grid.sigma[0] / grid.alpha[0] == pytest.approx(50.0)
    assert grid.sigma[-2] / grid.alpha[-2] == pytest.approx(0.01)


def test_edm_facts_tell_preconditionings_apart():
    one, two = tiny.edm(), tiny.edm(sigma_data=0.7)
    assert edm_model("a", one).fingerprint != edm_model("a", two).fingerprint
    assert edm_model("a", one).fingerprint == edm_model("b", tiny.edm()).fingerprint


def pipeline_images(pipe, table, **options):
    """What the pipeline itself makes with the table."""
    use(pipe, table, verbose=False)
    pipe.set_progress_bar_config(disable=True)
    streams = [seeded(seed) for seed in SEEDS]
    given = {"batch_size": 5, "generator": streams, "num_inference_steps": table.grid.nfe}
    return torch.from_numpy(np.asarray(pipe(**given, output_type="np").images)).movedim(-1, 1)


@pytest.mark.parametrize(("make", "part"), [(tiny.ddpm, None), (tiny.ldm, "vqvae")])
def test_a_network_gives_what_its_pipeline_gives(make, part):
    pipe = make()
    decoder = None if part is None else getattr(pipe, part)
    model = unet_model("tiny", pipe.unet, pipe.scheduler.config, decoder)
    table = table_for(model)
    found = model.images(table, Draw(SEEDS))
    expected = pipeline_images(pipe, table)
    torch.testing.assert_close((found / 2 + 0.5).clamp(0, 1), expected, atol=2e-3, rtol=0)
    assert expected.std() > 0.05


def test_the_last_embedding_is_no_class():
    torch.manual_seed(0)
    network = tiny.unet(num_class_embeds=4)
    model = unet_model("tiny", network, tiny.ddpm().scheduler.config)
    assert model.classes == 3
    table, labels = table_for(model), torch.tensor([0, 1, 2, 1, 0])
    free = model.images(table, Draw(SEEDS))
    torch.testing.assert_close(model.images(table, Draw(SEEDS, labels, 0.0)), free)
    seen = []
    network.register_forward_hook(
        lambda module, inputs, keywords, out: seen.append(keywords["class_labels"].tolist()),
        with_kwargs=True,
    )
    model.images(table, Draw(SEEDS, labels, 2.0))
    assert sorted(map(tuple, seen)) == [(0, 1, 2, 1, 0)] * 5 + [(3,) * 5] * 5


def test_unet_facts_tell_predictions_apart():
    pipe = tiny.ddpm()
    config = dict(pipe.scheduler.config)
    models = [
        unet_model("a", pipe.unet, config | {"prediction_type": kind})
        for kind in ("epsilon", "v_prediction")
    ]
    assert models[0].fingerprint != models[1].fingerprint


def test_a_network_in_bfloat16_makes_float32_images():
    pipe = tiny.ddpm()
    full = unet_model("tiny", pipe.unet, pipe.scheduler.config)
    table = table_for(full, 5, "ddim", "uniform")
    expected = full.images(table, Draw(SEEDS))
    half = unet_model("tiny", pipe.unet.bfloat16(), pipe.scheduler.config)
    found = half.images(table, Draw(SEEDS))
    assert found.dtype == torch.float32
    assert len(half.fingerprint) == 16
    assert 0 < (found - expected).abs().mean() < 0.5 * expected.std()
