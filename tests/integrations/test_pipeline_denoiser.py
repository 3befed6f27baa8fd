"""Pipelines as denoisers: the same as their bare networks, as their own loop, and as they were."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import diffusers
import fewstep
import pytest
import torch
from fewstep import samplers, steering, zoo
from fewstep.integrations import pipeline_denoiser
from fewstep.samplers import guidance

from .cases import CASES, random

LATE = [name for name in CASES if name.endswith(("img2img", "inpaint"))]
# The first frame of one is given, so that its steps are of the others.
DRIVEN = [name for name in CASES if name not in LATE and name != "ltx-img2video"]
DECODED = [name for name in DRIVEN if name not in ("wan", "sana")]
NEAR = {"rtol": 1e-4, "atol": 1e-4}
STEPS = 4


def made(name, **options):
    """A pipeline, its denoiser, and the arguments of its call but for the output type."""
    pipe = CASES[name].make(CASES[name].original())
    call = {k: v for k, v in CASES[name].call().items() if k != "output_type"} | options
    return pipe, pipeline_denoiser(pipe, **call), call


def sampled(name, solver, output_type):
    """What ours and the pipeline's own loop end with, from the same noise."""
    pipe, denoiser, call = made(name)
    table = denoiser.table(solver, STEPS)
    z = random(denoiser.loop.kinds, *denoiser.shape, seed=0)
    scheduler = fewstep.use(pipe, solver, verbose=False)
    if "latents" in denoiser.loop.takes:
        call["latents"] = z
    own = pipe(
        **call,
        num_inference_steps=STEPS,
        output_type=output_type,
        generator=torch.Generator().manual_seed(0),
        return_dict=False,
    )[0]
    # What it was in the run.
    start = z * scheduler.init_noise_sigma
    return denoiser, fewstep.sample(denoiser, table, start), torch.as_tensor(own)


@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "heun"])
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "svd"])
def test_sampling_is_what_the_loop_of_the_pipeline_does(name, solver):
    _, found, own = sampled(name, solver, "latent")
    torch.testing.assert_close(found, own.reshape(found.shape), **NEAR)


@pytest.mark.parametrize("name", DECODED)
def test_images_are_those_that_the_pipeline_ends_with(name):
    """Its own decoding, also where it takes no latents; with the whole run before it."""
    denoiser, found, own = sampled(name, "unipc-3", "pt")
    images = denoiser.images(found)
    torch.testing.assert_close(images, own.reshape(images.shape) * 2 - 1, **NEAR)
    assert images.std() > 0.05


@pytest.mark.parametrize("name", ["wan", "sana"])
def test_pipelines_without_a_decoder_sample_too(name):
    _, found, own = sampled(name, "unipc-3", "latent")
    torch.testing.assert_close(found, own, **NEAR)


# --- one evaluation ----------------------------------------------------------------------------


def bare(pipe, embeds):
    config = pipe.scheduler.config
    return samplers.from_diffusers(pipe.unet, config, encoder_hidden_states=embeds)


def some_nodes(config, form=None):
    grid = fewstep.grid(samplers.from_diffusers_config(config)[0], 4, "uniform")
    table = samplers.build("ddim", grid)
    return (table if form is None else table.in_form(form)).grid.nodes[:4]


@pytest.mark.parametrize("form", [None, "edm", "flow"])
@pytest.mark.parametrize("kind", [diffusers.DDPMPipeline, diffusers.DDIMPipeline])
def test_pixels_are_predicted_as_by_the_bare_network(kind, form):
    """In any form of the states."""
    digits = zoo.mnist_pipeline([3])
    denoiser = pipeline_denoiser(kind(digits.unet, digits.scheduler))
    model = zoo.mnist_model()
    law, prediction = samplers.from_diffusers_config(model.scheduler_config)
    own = samplers.denoiser(model.network, law, prediction, class_labels=torch.tensor([3, 3]))
    for node, plain in zip(
        some_nodes(model.scheduler_config, form), some_nodes(model.scheduler_config), strict=True
    ):
        x = random(2, *denoiser.shape) * node.alpha
        with torch.no_grad():
            found, known = denoiser(x, node), own(x * (plain.alpha / node.alpha), plain)
        torch.testing.assert_close(found, known, **NEAR)


def test_guidance_is_that_of_two_bare_networks():
    pipe, denoiser, call = made("sd", guidance_scale=3.0)
    ask = [bare(pipe, call[f"{sign}prompt_embeds"].expand(2, -1, -1)) for sign in ("", "negative_")]
    both = guidance.cfg(*ask, scale=3.0)
    for node in some_nodes(pipe.scheduler.config):
        x = random(2, *denoiser.shape)
        with torch.no_grad():
            torch.testing.assert_close(denoiser(x, node), both(x, node), rtol=1e-4, atol=1e-3)


def test_several_prompts_have_their_samples_in_a_row():
    prompts = random(2, 3, 8, seed=9)
    pipe, denoiser, _ = made("sd", prompt_embeds=prompts, negative_prompt_embeds=prompts / 2)
    node, x = some_nodes(pipe.scheduler.config)[1], random(4, 4, 8, 8)
    alone = [
        made("sd", prompt_embeds=each, negative_prompt_embeds=each / 2)[1](part, node)
        for each, part in zip(prompts.split(1), x.split(2), strict=True)
    ]
    torch.testing.assert_close(denoiser(x, node), torch.cat(alone), **NEAR)
    with pytest.raises(ValueError, match="3 samples of 2 prompts"):
        denoiser(x[:3], node)
    with pytest.raises(ValueError, match="2 prompts need as many chains"):
        denoiser.chain("sde-dpmpp-2m", 4)


@pytest.mark.parametrize("name", [name for name in DRIVEN if name != "ldm"])
def test_samples_of_a_batch_are_those_of_runs_alone(name):
    _, denoiser, _ = made(name)
    node = denoiser.table("ddim", 4).grid.nodes[1]
    kinds = denoiser.loop.kinds
    x = random(2 * kinds, *denoiser.shape)
    rows = [[2 * kind + i for kind in range(kinds)] for i in range(2)]
    with torch.no_grad():
        both, alone = denoiser(x, node), [denoiser(x[each], node) for each in rows]
        for each, one in zip(rows, alone, strict=True):
            torch.testing.assert_close(both[each], one, rtol=1e-4, atol=1e-3)


def test_conditions_that_are_of_one_sample_are_not_repeated():
    _, denoiser, _ = made("ldm")
    with pytest.raises(ValueError, match="was given states"):
        denoiser(random(2, *denoiser.shape), some_nodes(CASES["ldm"].config)[1])


def test_clean_data_is_clipped_where_the_config_says_so():
    digits = zoo.mnist_pipeline([3])
    config = {**digits.scheduler.config, "clip_sample": True, "clip_sample_range": 0.5}
    clipped = diffusers.DDPMPipeline(digits.unet, diffusers.DDPMScheduler.from_config(config))
    node, x = some_nodes(config)[2], random(2, 1, 28, 28)
    free = pipeline_denoiser(digits)(x, node)
    assert free.abs().max() > 0.6
    torch.testing.assert_close(pipeline_denoiser(clipped)(x, node), free.clamp(-0.5, 0.5))


def test_a_network_in_half_precision_is_shown_that():
    pipe = CASES["sd"].make(CASES["sd"].original())
    half = type(pipe)(
        **{**pipe.components, "unet": type(pipe.unet).from_config(pipe.unet.config).bfloat16()}
    )
    call = {k: v.bfloat16() for k, v in CASES["sd"].call().items() if "embeds" in k}
    denoiser = pipeline_denoiser(half, **call)
    assert denoiser.dtype == torch.bfloat16
    x0 = denoiser(random(2, *denoiser.shape), some_nodes(pipe.scheduler.config)[0])
    assert x0.dtype == torch.float32


def test_gradients_go_through_the_network_and_the_decoder():
    pipe, denoiser, call = made("sd", guidance_scale=1.0)
    own = bare(pipe, call["prompt_embeds"])
    node = some_nodes(pipe.scheduler.config)[2]
    x = random(1, *denoiser.shape).requires_grad_()
    found, known = (
        torch.autograd.grad(each(x, node).square().sum(), x)[0] for each in (denoiser, own)
    )
    torch.testing.assert_close(found, known, **NEAR)
    assert torch.autograd.grad(denoiser.images(x).sum(), x)[0].abs().sum() > 0


# --- the pipeline, before and after ------------------------------------------------------------


class Counted(diffusers.StableDiffusionPipeline):
    """Encodes prompts by their length, and says when."""

    def encode_prompt(self, prompt, device, num_images_per_prompt, *rest, **options):
        # Gradients through what is kept could be asked for once only.
        assert not torch.is_grad_enabled()
        self.unet.encodings.append((prompt, num_images_per_prompt))
        embeds = random(1, 3, 8, seed=len(prompt)).repeat(num_images_per_prompt, 1, 1)
        return embeds, embeds / 2


@pytest.fixture
def counted():
    parts = CASES["sd"].make(CASES["sd"].original()).components
    pipe = Counted(**parts, requires_safety_checker=False)
    pipe.unet.encodings = []
    yield pipe
    del pipe.unet.encodings


def test_a_prompt_is_encoded_once(counted):
    denoiser = pipeline_denoiser(counted, prompt="a bridge", height=16, width=16)
    denoiser.images(fewstep.sample(denoiser, denoiser.table("ddim", 3), random(1, 4, 8, 8)))
    assert counted.unet.encodings == [("a bridge", 1)]
    fewstep.sample(denoiser, denoiser.table("ddim", 3), random(2, 4, 8, 8))
    assert counted.unet.encodings[1:] == [("a bridge", 2)]
    own = bare(counted, random(1, 3, 8, seed=8))
    other = bare(counted, random(1, 3, 8, seed=8) / 2)
    x, node = random(1, 4, 8, 8), some_nodes(counted.scheduler.config)[1]
    known = guidance.cfg(own, other, scale=7.5)(x, node)
    torch.testing.assert_close(denoiser(x, node), known, rtol=1e-4, atol=1e-3)


def test_the_pipeline_is_as_it_was_whatever_happens(capsys):
    pipe = CASES["sd"].make(CASES["sd"].original())
    pipe.set_progress_bar_config(desc="mine")
    before, config = dict(vars(pipe)), dict(pipe.config)
    own, state = pipe.scheduler, torch.random.get_rng_state()
    denoiser = pipeline_denoiser(
        pipe, **{k: v for k, v in CASES["sd"].call().items() if "emb" in k}
    )
    assert vars(pipe) == before
    node, x = some_nodes(pipe.scheduler.config)[1], random(2, *denoiser.shape)
    denoiser(x, node)
    assert vars(pipe) == before

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    forward, pipe.unet.forward = pipe.unet.forward, broken
    try:
        for failing in (denoiser, lambda x, node: pipeline_denoiser(pipe, **denoiser.loop.call)):
            with pytest.raises(RuntimeError, match="out of memory"):
                failing(x, node)
            assert vars(pipe) == before
    finally:
        pipe.unet.forward = forward
        del pipe.unet.forward
    assert pipe.scheduler is own
    assert dict(pipe.config) == config
    assert torch.equal(torch.random.get_rng_state(), state)
    assert capsys.readouterr().err == ""


# --- drivers -----------------------------------------------------------------------------------


def brightness(denoiser):
    return lambda x0: denoiser.images(x0).flatten(1).mean(1)


def test_drivers_find_what_is_rewarded_of_the_digits_of_a_pipeline():
    digits = zoo.mnist_pipeline([3])
    denoiser = pipeline_denoiser(digits)
    chain = denoiser.chain("sde-dpmpp-2m", 8, levels=(0, 3, 6))
    sizes = []
    digits.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    one = steering.best_of(chain, brightness(denoiser), 1, count=4)
    best = steering.best_of(chain, brightness(denoiser), 4)
    assert (one.evaluations, best.evaluations) == (4 * 8, 4 * 8)
    assert sum(sizes) == chain.meter.evaluations == 64
    assert best.rewards[0] > one.mean_reward()
    images = denoiser.images(best.x)
    assert images.shape == (1, 1, 28, 28)
    assert zoo.mnist_classifier()(images).argmax(1).tolist() == [3]
    torch.testing.assert_close(images.mean().item(), best.rewards[0])


def test_a_tree_grows_over_a_pipeline_with_a_prompt():
    _, denoiser, _ = made("sd", guidance_scale=2.0)
    chain = denoiser.chain("sde-dpmpp-2m", 6, levels=(0, 2, 4), batch_size=3)
    tree = steering.Tree(steering.TreeRules(scale=20.0))
    steering.grow(tree, chain, brightness(denoiser), 8, batch=4)
    found = steering.draw(tree, 2)
    assert denoiser.images(found.x).shape == (2, 3, 16, 16)
    assert found.evaluations == chain.meter.evaluations > 8 * 2
    again = steering.Tree(steering.TreeRules(scale=20.0))
    other = denoiser.chain("sde-dpmpp-2m", 6, levels=(0, 2, 4), batch_size=8)
    steering.grow(again, other, brightness(denoiser), 8, batch=4)
    torch.testing.assert_close(steering.draw(again, 2).x, found.x, **NEAR)


def test_twisted_particles_have_their_gradient():
    _, denoiser, _ = made("sd3")
    chain = denoiser.chain("sde-dpmpp-2m", 3)
    found = steering.smc(chain, brightness(denoiser), 3, twisted=True, scale=0.1)
    assert found.evaluations == 3 * 3
    assert found.x.isfinite().all()


def test_a_restarted_table_is_driven():
    pipe, denoiser, _ = made("sd")
    law, _ = samplers.from_diffusers_config(pipe.scheduler.config)
    table = samplers.restarted("unipc-3", fewstep.grid(law, 6, "uniform"), (2, 4))
    chain = denoiser.chain(table, levels=table.meta["levels"])
    assert len(chain.table.grid.nodes) == len(table.grid.nodes)
    found = steering.best_of(chain, brightness(denoiser), 2)
    assert found.evaluations == 2 * table.nfe


def test_the_nodes_of_a_table_are_those_that_the_pipeline_asks_for():
    """Flux passes its sigmas, and the shift of its size."""
    pipe, denoiser, call = made("flux")
    for keys in ({}, {"spacing": "karras"}, {"nfe": 3}):
        table = denoiser.table("dpmpp-2m", 5, **keys)
        scheduler = fewstep.use(pipe, "dpmpp-2m", verbose=False, **keys)
        pipe(**call, num_inference_steps=5, output_type="latent")
        assert table.grid.label[:-1].tolist() == pytest.approx(scheduler.timesteps.tolist())
        fewstep.restore(pipe)


# --- what cannot be ----------------------------------------------------------------------------


def test_deterministic_solvers_are_refused():
    _, denoiser, _ = made("sd")
    with pytest.raises(ValueError, match="draws no noise between nodes"):
        denoiser.chain("unipc-3", 4)


@pytest.mark.parametrize("name", LATE)
def test_pipelines_that_begin_in_an_image_are_refused(name):
    with pytest.raises(ValueError, match="begins in an image, not in noise"):
        made(name)


def test_arguments_that_evaluations_decide_are_refused():
    for wrong in ("latents", "num_images_per_prompt", "output_type", "colour"):
        with pytest.raises(ValueError, match=rf"{wrong}: not for an evaluation of StableD.*height"):
            made("sd", **{wrong: 1})


class Odd(diffusers.DDPMPipeline):
    """Does not step, or steps something else."""

    def __call__(self, batch_size=1, generator=None, steps=True, num_inference_steps=1):
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(batch_size, 1, 28, 28, generator=generator)
        for t in self.scheduler.timesteps if steps else ():
            x = self.scheduler.step(self.unet(x, t).sample, t, 2 * x).prev_sample
        return x


def test_loops_that_cannot_be_caught_are_refused():
    digits = zoo.mnist_pipeline([3])
    odd = partial(pipeline_denoiser, Odd(digits.unet, digits.scheduler))
    with pytest.raises(ValueError, match="Odd cannot be driven: its call came to an end"):
        odd(steps=False)
    node = some_nodes(digits.scheduler.config)[0]
    with pytest.raises(ValueError, match="Odd cannot be driven: it was given states"):
        odd()(random(2, 1, 28, 28), node)
    with pytest.raises(ValueError, match="no scheduler"):
        pipeline_denoiser(SimpleNamespace())


def test_the_page_of_steering_drives_a_pipeline():
    text = (Path(__file__).parents[2] / "docs/steering.md").read_text()
    names = {}
    part = next(p for p in re.findall(r"```python\n(.*?)```", text, re.S) if "pipeline_den" in p)
    exec(part, names)
    assert names["images"].shape == (1, 1, 28, 28)
    assert zoo.mnist_classifier()(names["images"]).argmax(1).tolist() == [3]
