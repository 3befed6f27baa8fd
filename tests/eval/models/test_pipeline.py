from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep import TableauScheduler, samplers
from fewstep.eval.models import Draw, in_batches
from fewstep.eval.models.hub import from_pipeline
from fewstep.eval.models.pipeline import PipelineModel, as_images
from fewstep.eval.results import save_scheduler
from fewstep.eval.settings import SolverConfig, table_within

from . import tiny

SEEDS = range(5)
PROMPTS = ("a cat", "a dog on the moon", "the moon")


def pictures(prompts=PROMPTS, **call):
    return from_pipeline("org/sd", tiny.stable_diffusion(), prompts, call)


def classes():
    return from_pipeline("org/dit", tiny.dit(), (), {})


MODELS = {"stable diffusion": (pictures, 3), "dit": (classes, 1000)}


def table_for(model, solver="dpmpp-2m", nfe=4):
    return table_within(model.schedule, SolverConfig(name=solver), nfe, "lam", "zero")


def labelled(**options):
    return Draw(SEEDS, torch.tensor([0, 1, 2, 1, 0]), **options)


@pytest.mark.parametrize("name", MODELS)
def test_images_are_those_of_their_seeds_in_any_batch(name):
    make, count = MODELS[name]
    model = make()
    assert isinstance(model, PipelineModel)
    assert model.classes == count
    assert model.shape == (4, 8, 8)
    # A stochastic table, so that later draws count, too.
    table = table_for(model, "ddpm")
    seen = []
    whole = in_batches(model, table, labelled(), 5, seen.append)
    assert whole.shape == (5, 3, tiny.PIXELS, tiny.PIXELS)
    assert whole.dtype == torch.float32
    assert whole.isfinite().all()
    assert -1 <= whole.min() < whole.max() <= 1
    assert whole.std(0).mean() > 0.01
    assert seen == [5] * 4
    torch.testing.assert_close(in_batches(model, table, labelled(), 2), whole, atol=2e-4, rtol=0)
    guided = labelled(guidance=3.0)
    whole = in_batches(model, table, guided, 5)
    torch.testing.assert_close(in_batches(model, table, guided, 2), whole, atol=2e-4, rtol=0)
    other = in_batches(model, table, replace(guided, seeds=range(1, 6)), 5)
    assert (other - whole).abs().mean() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_labels_guidance_and_tables_reach_the_pipeline(name):
    model = MODELS[name][0]()
    table = table_for(model)
    whole = model.images(table, labelled())
    same = model.images(table, Draw(SEEDS, torch.zeros(5, dtype=torch.long)))
    torch.testing.assert_close(same[0], whole[0])
    assert (same[1] - whole[1]).abs().max() > 1e-3
    seen = []
    guided = in_batches(model, table, labelled(guidance=3.0), on_call=seen.append)
    assert (guided - whole).abs().max() > 1e-3
    # Both halves of the batch are images that were evaluated.
    assert seen == [10] * 4
    other = model.images(table_for(model, "ddim"), labelled())
    assert (other - whole).abs().max() > 1e-3


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun"])
def test_images_are_those_of_the_table(solver):
    model = classes()
    table, draw = table_for(model, solver, 6), labelled()
    pipe = model.pipe

    def network(x, label):
        return pipe.transformer(x, timestep=label, class_labels=draw.labels).sample

    with torch.no_grad():
        start = samplers.noise(table.grid, model.shape, SEEDS)
        denoiser = samplers.denoiser(network, model.schedule, "eps")
        latents = samplers.sample(denoiser, table, start)
        expected = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    found = model.images(table, draw)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_arguments_reach_the_pipeline():
    small = pictures(height=8, width=8)
    assert small.images(table_for(small), labelled()).shape == (5, 3, 8, 8)
    without, with_negative = pictures(), pictures(negative_prompt="a dog")
    table, draw = table_for(without), labelled(guidance=5.0)
    gap = with_negative.images(table, draw) - without.images(table, draw)
    assert gap.abs().max() > 1e-3


@pytest.mark.parametrize("key", ["num_inference_steps", "generator", "prompt", "hieght"])
def test_arguments_that_are_not_for_call_are_refused(key):
    with pytest.raises(ValueError, match=f"{key} is no argument for sd; there is .*height"):
        pictures(**{key: 1})


def test_an_unconditional_pipeline_takes_no_guidance():
    pipe = tiny.ddpm()
    model = PipelineModel("ddpm", pipe, (3, 8, 8))
    images = model.images(table_for(model), Draw(SEEDS))
    assert images.shape == (5, 3, 8, 8)
    with pytest.raises(ValueError, match="guidance 2: DDPMPipeline takes no guidance scale"):
        model.images(table_for(model), Draw(SEEDS, guidance=2.0))


def test_a_fingerprint_sees_weights_prompts_arguments_and_prediction():
    other = pictures()
    with torch.no_grad():
        next(other.pipe.text_encoder.parameters())[0, 0] += 1
    velocity = pictures()
    velocity.pipe.scheduler.register_to_config(prediction_type="v_prediction")
    models = [pictures(), other, velocity, pictures(PROMPTS[:2]), pictures(height=8)]
    assert len({model.fingerprint for model in models}) == 5
    assert pictures().fingerprint == models[0].fingerprint


def test_law_and_fingerprint_stay_when_the_scheduler_was_replaced():
    fresh, used = pictures(), pictures()
    used.images(table_for(fresh), labelled())
    assert used.schedule == fresh.schedule
    assert used.fingerprint == fresh.fingerprint


def test_text_pipelines_want_prompts_and_others_none():
    with pytest.raises(ValueError, match="makes images from text"):
        from_pipeline("sd", tiny.stable_diffusion(), (), {})
    with pytest.raises(ValueError, match="dit takes no prompts"):
        from_pipeline("dit", tiny.dit(), ("a cat",), {})


def test_latents_may_be_what_is_compared():
    model = pictures(output_type="latent")
    table, vae = table_for(model), model.pipe.vae
    latents = model.images(table, labelled())
    assert latents.shape == (5, vae.config.latent_channels, 8, 8)
    images = pictures().images(table, labelled())
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
    torch.testing.assert_close(decoded.clamp(-1, 1), images, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="np or latent, not 'pil'"):
        pictures(output_type="pil")


@pytest.mark.parametrize(
    ("shape", "pictured"), [((2, 5, 7), (2, 1, 5, 7)), ((2, 4, 3, 8, 6), (2, 4, 24, 6))]
)
def test_latents_of_any_shape_are_images(shape, pictured):
    latents = torch.arange(float(np.prod(shape))).view(shape)
    found = as_images(latents)
    assert found.shape == pictured
    assert torch.equal(found.flatten(), latents.flatten())


def test_latents_of_images_are_as_they_are():
    latents = torch.zeros(2, 4, 8, 8)
    assert as_images(latents) is latents


def test_its_scheduler_is_its_own_whatever_it_sampled_with(tmp_path):
    model = pictures()
    table = table_for(model)
    before = dict(model.pipe.scheduler.config)
    own = type(model.pipe.scheduler).__name__
    whole = model.images(table, labelled())
    assert model.scheduler_config == {**before, "_class_name": own}
    save_scheduler(model.scheduler_config, {table.nfe: table}, tmp_path)
    saved = TableauScheduler.from_pretrained(tmp_path / "scheduler")
    assert saved.config["like"] == own
    model.pipe.scheduler = saved
    again = model.pipe(
        **{"output_type": "np", **model.conditions(labelled())},
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=4,
    )
    found = torch.from_numpy(again.images).movedim(-1, 1) * 2 - 1
    torch.testing.assert_close(found, whole, atol=2e-4, rtol=0)
