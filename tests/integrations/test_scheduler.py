"""The contract of a diffusers scheduler, beyond the samples."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import textwrap

import diffusers
import fewstep
import numpy as np
import pytest
import torch
from fewstep import TableauScheduler, samplers
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from .peers import Ask, network, run

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def start(scheduler, seed=0):
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x * scheduler.init_noise_sigma


def finish(scheduler, x, begin=0, **options):
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(network(x, t), t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("name", ["unipc-3", "dpmpp-2m", "heun", "deis-tab3", "dpmpp-2s"])
def test_a_named_solver_samples_as_the_stateless_way_does(name):
    """The scheduler is an adapter: the same table, run by hand, gives the same."""
    scheduler = TableauScheduler(**SD, solver=name, spacing="karras", prediction_type="sample")
    scheduler.set_timesteps(6)
    schedule, prediction = samplers.from_diffusers_config({**SD, "prediction_type": "sample"})
    grid = fewstep.grid(schedule, 6, "karras")
    table = samplers.build(name, grid)
    labels = iter(scheduler.timesteps)
    denoiser = samplers.denoiser(lambda x, _: network(x, next(labels)), schedule, prediction)
    x = start(scheduler)
    torch.testing.assert_close(
        finish(scheduler, x), fewstep.sample(denoiser, table, x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "kind", ["EulerDiscreteScheduler", "DDIMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"]
)
def test_with_a_solver_the_nodes_carry_over_and_only_the_method_changes(kind):
    original = getattr(diffusers, kind)(**SD, timestep_spacing="trailing")
    original.set_timesteps(8)
    ours = TableauScheduler.from_config(original.config, solver="unipc-3")
    ours.set_timesteps(8)
    assert len(ours.timesteps) == 8
    assert "solver_order" not in ours.config
    if kind != "PNDMScheduler":
        torch.testing.assert_close(ours.timesteps.float(), original.timesteps.float())


def test_a_flow_config_goes_to_any_solver():
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    ours = TableauScheduler.from_config(config, solver="dpmpp-2m")
    ours.set_timesteps(sigmas=np.linspace(1, 0.25, 4), mu=0.5)
    s = np.linspace(1, 0.25, 4)
    np.testing.assert_allclose(ours.sigmas[:-1], 3 * s / (1 + 2 * s), rtol=1e-6)
    assert ours.sigmas[-1] == 0
    x = finish(ours, start(ours))
    assert x.isfinite().all()
    noisy = ours.scale_noise(torch.ones(2, 1), ours.timesteps[1:2].repeat(2), torch.zeros(2, 1))
    torch.testing.assert_close(noisy, torch.full((2, 1), 1 - float(ours.sigmas[1])))


def test_continuous_times_of_euler_are_logarithms():
    keys = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    original = diffusers.EulerDiscreteScheduler(**SD, **keys, use_karras_sigmas=True)
    original.set_timesteps(6)
    ours = TableauScheduler.from_config(original.config)
    ours.set_timesteps(6)
    torch.testing.assert_close(ours.timesteps, original.timesteps, rtol=1e-4, atol=1e-5)


def test_log_linear_nodes_of_euler_carry_the_times_of_their_levels():
    """Theirs are the same levels under evenly spaced times."""
    original = diffusers.EulerDiscreteScheduler(**SD, interpolation_type="log_linear")
    original.set_timesteps(6)
    ours = TableauScheduler.from_config(original.config)
    ours.set_timesteps(6)
    torch.testing.assert_close(ours.sigmas, original.sigmas[:7], rtol=1e-4, atol=1e-5)
    levels = ((1 - ours.alphas_cumprod) / ours.alphas_cumprod).sqrt()
    near = levels[ours.timesteps.round().long()]
    assert ((ours.sigmas[:-1] / near).log().abs() < 0.02).all()


def test_dynamic_shifting_takes_mu():
    scheduler = TableauScheduler(
        like="FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True, shift=3.0
    )
    with pytest.raises(ValueError, match="needs mu"):
        scheduler.set_timesteps(4)
    scheduler.set_timesteps(4, mu=1.0)
    s = np.linspace(1, 0.001, 4)
    expected = np.e / (np.e + 1 / s - 1)
    np.testing.assert_allclose(scheduler.sigmas[:-1], expected, rtol=1e-5)


def test_the_history_starts_where_the_run_begins():
    scheduler = TableauScheduler(**SD, solver="unipc-3")
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(6)
    x = start(scheduler)
    late = finish(scheduler, x, 6)
    # By value, without being told: the same rows.
    scheduler.set_timesteps(10)
    torch.testing.assert_close(finish(scheduler, x, 6), late, rtol=0, atol=0)
    assert scheduler.step_index == 10
    # As a fresh run over the nodes that are left.
    fresh = TableauScheduler(**SD, solver="unipc-3")
    fresh.set_timesteps(sigmas=scheduler.sigmas[6:].tolist())
    torch.testing.assert_close(finish(fresh, x), late, rtol=1e-5, atol=1e-5)


def test_a_timestep_is_found_by_its_place_not_by_its_value():
    """Rounded times repeat; a view into `timesteps` says which it is, on any device."""
    scheduler = TableauScheduler(**SD, use_karras_sigmas=True)
    scheduler.set_timesteps(60)
    twice = [i for i in range(59) if scheduler.timesteps[i] == scheduler.timesteps[i + 1]]
    assert twice
    assert [scheduler.index_for_timestep(scheduler.timesteps[i]) for i in twice] == twice
    assert scheduler.index_for_timestep(float(scheduler.timesteps[5])) == 5
    assert scheduler.index_for_timestep(-7) == 59
    meta = TableauScheduler(**SD)
    meta.set_timesteps(5, device="meta")
    assert [meta.index_for_timestep(t) for t in meta.timesteps] == [0, 1, 2, 3, 4]


class NoReads(TorchDispatchMode):
    """Fails on whatever copies to the host or waits for the device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "item", "_to_copy")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.FORBIDDEN), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("begin", [None, 0])
@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc-3", "heun", "deis-3", "ddim"])
def test_step_reads_nothing_back(name, begin):
    scheduler = TableauScheduler(**SD, solver=name)
    scheduler.set_timesteps(6, device="meta")
    if begin is not None:
        scheduler.set_begin_index(begin)
    x = torch.empty(2, 4, 4, 4, device="meta")
    with NoReads():
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x, return_dict=False)[0]


COMPILED = ["dpmpp-2m", "unipc-3", "heun", "sde-dpmpp-2m", "dpmpp-2s", "ab-4"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", COMPILED)
def test_step_compiles_once_for_a_whole_run(name, dtype):
    """A few graphs (the first step, the steps, the last one), not one per step."""
    torch._dynamo.reset()
    schedulers = [TableauScheduler(**SD, solver=name) for _ in range(2)]
    counter = CompileCounter()
    steps = [torch.compile(schedulers[0].step, fullgraph=True, backend=counter), schedulers[1].step]
    for scheduler in schedulers:
        scheduler.set_timesteps(20)
    states = [start(schedulers[0]).to(dtype)] * 2
    for t in schedulers[0].timesteps:
        z = start(schedulers[0], int(t))
        states = [
            step(0.5 * x.sin(), t, x, variance_noise=z, return_dict=False)[0]
            for step, x in zip(steps, states, strict=True)
        ]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 5


def test_a_compiled_run_that_begins_late_has_to_say_so():
    torch._dynamo.reset()
    scheduler = TableauScheduler(**SD)
    scheduler.set_timesteps(5)
    step = torch.compile(scheduler.step, fullgraph=True, backend="eager")
    x, t = start(scheduler), scheduler.timesteps[2]
    with pytest.raises(RuntimeError, match="set_begin_index"):
        step(network(x, t), t, x)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    late = step(x, t, x).prev_sample
    scheduler.set_timesteps(5)
    torch.testing.assert_close(late, scheduler.step(x, t, x).prev_sample)


def test_a_changed_sample_counts_where_it_was_changed():
    """In half precision the state goes on unrounded, but for what a pipeline put into it."""

    def last(change):
        scheduler = TableauScheduler(**SD, solver="ddim")
        scheduler.set_timesteps(2)
        x = start(scheduler).bfloat16()
        once = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
        given = change(once.clone())
        out = torch.zeros_like(given)
        return scheduler.step(out, scheduler.timesteps[1], given, return_dict=False)[0], once

    def masked(x):
        x[:1] = 2.0
        return x

    whole, once = last(lambda x: x)
    inpainted, _ = last(masked)
    assert torch.equal(inpainted[1:], whole[1:])
    # alpha x0 of a network that sees no noise is x itself.
    scale = (inpainted[:1] / 2).unique()
    assert len(scale) == 1
    assert torch.allclose(whole[1:], once[1:] * scale, rtol=2e-2)
    assert not torch.equal(whole[1:], once[1:] * scale)


def test_what_ddim_clips_stays_in_its_eps():
    """One step by hand: x' = alpha' clip(x0) + sigma' eps, with the eps of the network."""
    scheduler = TableauScheduler(like="DDIMScheduler", **SD, clip_sample=True)
    scheduler.set_timesteps(5)
    x, t, after = start(scheduler), *scheduler.timesteps[:2]
    eps = network(x, t)
    here, there = (scheduler.alphas_cumprod[int(each)] for each in (t, after))
    x0 = (x - (1 - here).sqrt() * eps) / here.sqrt()
    assert (x0.abs() > 1).any()
    expected = there.sqrt() * x0.clamp(-1, 1) + (1 - there).sqrt() * eps
    got = scheduler.step(eps, t, x)
    torch.testing.assert_close(got.prev_sample, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.pred_original_sample, x0.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_a_run_told_to_begin_inside_a_step_waits_for_the_next():
    """Pipelines that count in steps of one evaluation land there."""

    def late(begin):
        scheduler = TableauScheduler(**SD, like="HeunDiscreteScheduler")
        scheduler.set_timesteps(6)
        scheduler.set_begin_index(begin)
        return finish(scheduler, start(scheduler), begin)

    torch.testing.assert_close(late(3), late(4))
    assert not torch.allclose(late(4), late(6))


def test_half_samples_get_noise_of_single_precision():
    scheduler = TableauScheduler(**SD)
    x0, noise, t = torch.randn(3, 64), torch.randn(3, 64), torch.tensor([0, 500, 999])
    half = scheduler.add_noise(x0.bfloat16(), noise.bfloat16(), t)
    assert half.dtype == torch.bfloat16
    exact = scheduler.add_noise(x0.bfloat16().float(), noise.bfloat16().float(), t)
    assert torch.equal(half, exact.bfloat16())


def test_the_same_row_once_more():
    """A pipeline that takes the index back steps from the same history."""
    scheduler = TableauScheduler(**SD, solver="dpmpp-3m")
    scheduler.set_timesteps(6)
    x = start(scheduler)
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    t = scheduler.timesteps[3]
    once = scheduler.step(network(x, t), t, x).prev_sample
    scheduler._step_index -= 1
    again = scheduler.step(network(x, t), t, x).prev_sample
    assert torch.equal(once, again)


def test_learned_variances_are_left_aside_and_x0_is_in_the_output():
    scheduler = TableauScheduler(**SD)
    scheduler.set_timesteps(5)
    x, t = start(scheduler), scheduler.timesteps[0]
    out = network(x, t)
    wide = scheduler.step(torch.cat([out, out], 1), t, x)
    alpha2 = scheduler.alphas_cumprod[int(t)]
    x0 = (x - (1 - alpha2).sqrt() * out) / alpha2.sqrt()
    torch.testing.assert_close(wide.pred_original_sample, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sde-dpmpp-2m", "ddpm", "dpm-2-ancestral"])
def test_noise_is_per_sample_with_a_list_of_generators(name):
    scheduler = TableauScheduler(**SD, solver=name)

    def sampled(seeds):
        scheduler.set_timesteps(5)
        x = torch.cat([start(scheduler, seed)[:1] for seed in seeds])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return finish(scheduler, x, generator=generators)

    both = sampled([3, 4])
    torch.testing.assert_close(both[1:], sampled([4]), rtol=1e-5, atol=1e-6)


def test_given_noise_is_used():
    scheduler = TableauScheduler(**SD, solver="ddpm")
    scheduler.set_timesteps(5)
    x, t = start(scheduler), scheduler.timesteps[0]
    quiet = scheduler.step(network(x, t), t, x, variance_noise=torch.zeros_like(x)).prev_sample
    scheduler.set_timesteps(5)
    loud = scheduler.step(network(x, t), t, x, variance_noise=torch.ones_like(x)).prev_sample
    grid = scheduler._plan.table.grid
    added = float(grid.sigma[1] * np.sqrt(-np.expm1(-2 * (grid.lam[1] - grid.lam[0]))))
    torch.testing.assert_close(loud - quiet, torch.full_like(x, added), rtol=1e-4, atol=1e-5)


def test_add_noise_before_any_run_is_that_of_training():
    ours, theirs = TableauScheduler(**SD), diffusers.DDPMScheduler(**SD)
    x0, noise, t = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 500, 999])
    torch.testing.assert_close(
        ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        ours.get_velocity(x0, noise, t), theirs.get_velocity(x0, noise, t), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_networks_lose_no_more_than_in_diffusers(dtype):
    """20 steps, network and samples in half: our error is at most that of the best class."""

    def error(make):
        def sampled(dtype):
            scheduler = make()
            scheduler.set_timesteps(20)
            x = start(scheduler).to(dtype)
            for t in scheduler.timesteps:
                x = scheduler.step(0.9 * x, t, x, return_dict=False)[0]
            return x.float()

        whole = sampled(torch.float32)
        return float((sampled(dtype) - whole).norm() / whole.norm())

    theirs = min(
        error(lambda kind=kind: getattr(diffusers, kind)(**SD))
        for kind in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
    )
    for name in ("dpmpp-2m", "unipc-2"):
        assert error(lambda name=name: TableauScheduler(**SD, solver=name)) <= theirs


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"like": "EulerScheduler"}, "EulerDiscreteScheduler"),
        ({"predictor_order": 3}, "predictor_order: DPMSolverMultistepScheduler has no such key"),
        ({"solver": "unipc-3", "solver_order": 2}, "solver_order.*say how to step"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
        ({"solver": "ddim", "compat": "diffusers"}, "contradict"),
        ({"compat": "k-diffusion"}, "compat must be"),
        ({"like": "DPMSolverSDEScheduler", "noise_sampler_seed": 3}, "the generator"),
        ({"like": "HeunDiscreteScheduler", "use_flow_sigmas": True}, "choose a class"),
        ({"solver": "unipcc"}, "unknown solver"),
        ({"spacing": "karas"}, "unknown spacing"),
        ({"nfe": 2.5}, "whole number"),
    ],
)
def test_keys_that_make_no_sense_are_named(keys, message):
    with pytest.raises(ValueError, match=message):
        TableauScheduler(**keys)


def test_impossible_runs_are_refused():
    scheduler = TableauScheduler(**SD)
    with pytest.raises(ValueError, match="give num_inference_steps"):
        scheduler.set_timesteps()
    with pytest.raises(ValueError, match="at least 1 step"):
        scheduler.set_timesteps(0)
    with pytest.raises(ValueError, match="different numbers of steps"):
        scheduler.set_timesteps(5, timesteps=[900, 500])
    with pytest.raises(ValueError, match="without sigmas"):
        TableauScheduler(like="IPNDMScheduler").set_timesteps(sigmas=[0.9, 0.5])
    with pytest.raises(ValueError, match="without timesteps"):
        TableauScheduler(like="EDMEulerScheduler").set_timesteps(timesteps=[0.9, 0.5])
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="cannot begin at 3"):
        scheduler.set_begin_index(3)
    finish(scheduler, start(scheduler))
    with pytest.raises(ValueError, match="the run is over"):
        scheduler.step(torch.ones(1, 4, 4, 4), 0, torch.ones(1, 4, 4, 4))
    with pytest.raises(ValueError, match="timestep_spacing must be"):
        TableauScheduler(**SD, timestep_spacing="evenly").set_timesteps(4)
    with pytest.raises(ValueError, match="no scheduler class that is known"):
        TableauScheduler.from_config({"poem": 1})
    with pytest.warns(UserWarning, match="KDPM2"):
        TableauScheduler.from_config(diffusers.KDPM2DiscreteScheduler().config)


def test_a_thousand_steps_repeat_no_node():
    scheduler = TableauScheduler(**SD)
    scheduler.set_timesteps(1000)
    assert (scheduler.sigmas.diff() < 0).all()


def test_a_saved_scheduler_is_the_same_one(tmp_path):
    scheduler = TableauScheduler(**SD, solver="unipc-3", spacing="karras")
    scheduler.save_pretrained(tmp_path)
    again = TableauScheduler.from_pretrained(tmp_path)
    for each in (scheduler, again):
        each.set_timesteps(5)
    x = start(scheduler)
    assert torch.equal(finish(scheduler, x), finish(again, x))


def test_copies_run_alone():
    scheduler = TableauScheduler(**SD, solver="unipc-2")
    scheduler.set_timesteps(4)
    x, t = start(scheduler), scheduler.timesteps[0]
    x = scheduler.step(network(x, t), t, x).prev_sample
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        rest = finish(other, x, 1)
        assert other.step_index == 4
        assert rest.isfinite().all()
    assert scheduler.step_index == 1


def test_tables_travel_in_the_config(tmp_path):
    """A folder with tables by their number of steps is a complete scheduler."""
    schedule, _ = samplers.from_diffusers_config(SD)
    tables = {n: samplers.build("ab-4", fewstep.grid(schedule, n, "lam")) for n in (4, 6)}
    held = {str(n): table.to_dict() for n, table in tables.items()}
    TableauScheduler(**SD, tableau=held).save_pretrained(tmp_path)
    assert "weights" in json.loads((tmp_path / "scheduler_config.json").read_text())["tableau"]["4"]
    scheduler = TableauScheduler.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="4, 6 steps, not 5"):
        scheduler.set_timesteps(5)
    scheduler.set_timesteps(6)
    named = TableauScheduler(**SD, solver="ab-4", spacing="lam")
    named.set_timesteps(6)
    x = start(scheduler)
    torch.testing.assert_close(finish(scheduler, x), finish(named, x), rtol=1e-4, atol=1e-5)


LOAD = """
import fewstep, torch
from diffusers import DDPMPipeline
pipe = DDPMPipeline.from_pretrained({folder!r})
pipe.set_progress_bar_config(disable=True)
images = pipe(2, torch.Generator().manual_seed(1), 3, output_type="np").images
print(type(pipe.scheduler).__name__, float(images.sum()))
"""


def test_a_pipeline_loads_where_fewstep_is_imported(tmp_path):
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
    )
    scheduler = TableauScheduler.from_config(
        diffusers.DDPMScheduler(clip_sample=False).config, solver="dpmpp-2m"
    )
    pipe = diffusers.DDPMPipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["fewstep", "TableauScheduler"]
    images = pipe(2, torch.Generator().manual_seed(1), 3, output_type="np").images
    code = LOAD.format(folder=str(tmp_path))
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    kind, total = ran.stdout.split()
    assert kind == "TableauScheduler"
    assert float(total) == pytest.approx(float(images.sum()), abs=1e-4)
    forgotten = code.replace("import fewstep, torch", "import torch")
    ran = subprocess.run(
        [sys.executable, "-c", forgotten], capture_output=True, text=True, check=False
    )
    assert "import fewstep before calling" in ran.stderr


def test_img2img_with_two_evaluations_a_step():
    ask = Ask("HeunDiscreteScheduler", SD, 6, 4)
    ours = TableauScheduler.from_config(ask.original().config, like=ask.kind)
    assert ours.order == 2
    x, expected = run(ours, ask), run(ask.original(), ask)
    assert len(ours.timesteps) == 11
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-4)
