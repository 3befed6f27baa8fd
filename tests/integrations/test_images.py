"""Tables whose coefficients are images, in a pipeline: DPM-Solver-v3 with its statistics."""

from __future__ import annotations

from dataclasses import replace

import fewstep
import numpy as np
import pytest
import torch
from fewstep import TableauScheduler, samplers
from fewstep.samplers import ModelStatistics

from .peers import SD, finish, network, start

SHAPE = (4, 4, 4)
STEPS = 6


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Statistics that differ from pixel to pixel, in a file."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("v3") / "statistics.safetensors"
    lams = np.linspace(-4, 6, 9)
    known = ModelStatistics(lams, *rng.uniform(0.2, 0.8, (3, len(lams), *SHAPE)))
    known.save(path)
    return {"statistics": str(path), "order": 2}


@pytest.mark.parametrize(
    ("like", "form"), [("DPMSolverMultistepScheduler", "vp"), ("EulerDiscreteScheduler", "edm")]
)
@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction"])
def test_the_scheduler_runs_the_table(options, like, form, prediction):
    """States as diffusers has them in either class, the same images."""
    config = {**SD, "prediction_type": prediction}
    scheduler = TableauScheduler(
        like=like, **config, solver="dpm-v3", solver_options=options, spacing="lam"
    )
    scheduler.set_timesteps(STEPS)
    schedule, said = samplers.from_diffusers_config(config)
    grid = fewstep.grid(schedule, STEPS, "lam")
    table = samplers.build("dpm-v3", grid, **options)
    assert table.weights.shape == (STEPS, STEPS, *SHAPE)
    assert table.bias.any()
    labels = iter(scheduler.timesteps)
    denoiser = samplers.denoiser(lambda x, _: network(x, next(labels)), schedule, said)
    x = start(scheduler)
    # The state as the law of the table has it.
    z = x * float(grid.alpha[0]) if form == "edm" else x
    # Of a state in EDM's form the network is shown what it was trained on.
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x).prev_sample
    torch.testing.assert_close(x, fewstep.sample(denoiser, table, z), rtol=1e-4, atol=1e-5)


def test_a_late_begin_leaves_the_rows_behind_it(options):
    """As of any solver by name: it is built on the nodes that are left."""
    scheduler = TableauScheduler(
        **SD, solver="dpm-v3", solver_options=options, spacing="lam", prediction_type="sample"
    )
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(2)
    schedule, said = samplers.from_diffusers_config({**SD, "prediction_type": "sample"})
    grid = fewstep.grid(schedule, STEPS, "lam").tail(2)
    labels = iter(scheduler.timesteps[2:])
    denoiser = samplers.denoiser(lambda x, _: network(x, next(labels)), schedule, said)
    x = start(scheduler)
    expected = fewstep.sample(denoiser, samplers.build("dpm-v3", grid, **options), x)
    torch.testing.assert_close(finish(scheduler, x, 2), expected, rtol=1e-4, atol=1e-5)


def test_a_compiled_step_takes_the_same_images(options):
    torch._dynamo.reset()
    schedulers = [
        TableauScheduler(**SD, solver="dpm-v3", solver_options=options, spacing="lam")
        for _ in range(2)
    ]
    steps = [torch.compile(schedulers[0].step, fullgraph=True, backend="eager"), schedulers[1].step]
    states = []
    for scheduler, step in zip(schedulers, steps, strict=True):
        scheduler.set_timesteps(STEPS)
        x = start(scheduler)
        for t in scheduler.timesteps:
            x = step(0.5 * x.sin(), t, x, return_dict=False)[0]
        states.append(x)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)


def test_a_config_that_is_saved_names_the_file(options, tmp_path):
    scheduler = TableauScheduler(**SD, solver="dpm-v3", solver_options=options, spacing="lam")
    scheduler.save_pretrained(tmp_path)
    again = TableauScheduler.from_pretrained(tmp_path)
    for each in (scheduler, again):
        each.set_timesteps(STEPS)
    assert torch.equal(finish(again, start(again)), finish(scheduler, start(scheduler)))


def test_a_bias_that_is_an_image_is_added(options):
    """Of a table in the config; what is added to the first state goes on by the carries behind."""
    law = samplers.from_diffusers_config(SD)[0]
    bare = samplers.build("ddim", fewstep.grid(law, 4, "leading", end="min"))
    image = np.random.default_rng(1).normal(size=SHAPE)
    biased = replace(bare, bias=np.stack([image, *np.zeros((3, *SHAPE))]))
    ends = []
    for table in (bare, biased):
        scheduler = TableauScheduler(**SD, tableau=table.to_dict())
        scheduler.set_timesteps(4)
        x = torch.zeros(2, *SHAPE)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
        ends.append(x)
    # Noise is predicted to be none, so that the state is divided by alpha and multiplied again.
    gain = table.grid.alpha[-1] / table.grid.alpha[1]
    expected = torch.from_numpy(gain * image).float().expand(2, *SHAPE)
    torch.testing.assert_close(ends[1] - ends[0], expected, rtol=1e-5, atol=1e-6)


def test_images_of_another_shape_are_refused(options):
    scheduler = TableauScheduler(**SD, solver="dpm-v3", solver_options=options, spacing="lam")
    scheduler.set_timesteps(STEPS)
    for shape in ((2, 4, 8, 8), (2, 4, 1, 4), (2, 3, 4, 4)):
        x = torch.zeros(shape)
        with pytest.raises(ValueError, match=r"images of shape \(4, 4, 4\), the state is"):
            scheduler.step(x, scheduler.timesteps[0], x)
    law = samplers.from_diffusers_config(SD)[0]
    table = samplers.build("dpm-v3", fewstep.grid(law, 3, "lam"), **options)
    with pytest.raises(
        ValueError, match=r"images of shape \(4, 4, 4\), the state is \(2, 1, 4, 4\)"
    ):
        samplers.initial(table, torch.zeros(2, 1, 4, 4))
