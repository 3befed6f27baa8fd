"""`use` and `restore`: one line for any pipeline."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers

from .peers import SD, network


def pipeline(kind="PNDMScheduler", **config):
    return SimpleNamespace(scheduler=getattr(diffusers, kind)(**config))


def calls(scheduler, steps, **options):
    """The network evaluations of a run, and its result."""
    scheduler.set_timesteps(steps, **options)
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return len(scheduler.timesteps), x


def test_the_class_of_an_unsaved_scheduler_is_known(capsys):
    """Its config alone would be that of three classes."""
    pipe = pipeline("KDPM2DiscreteScheduler", **SD)
    scheduler = fewstep.use(pipe, "unipc-3")
    assert pipe.scheduler is scheduler
    assert scheduler.config["like"] == "KDPM2DiscreteScheduler"
    said = capsys.readouterr().out
    assert "unipc-3" in said
    assert "KDPM2DiscreteScheduler" in said


def test_restore_gives_back_the_very_scheduler():
    pipe = pipeline(**SD)
    original = pipe.scheduler
    fewstep.use(pipe, "unipc-3", verbose=False)
    fewstep.use(pipe, "dpmpp-2m", spacing="karras", verbose=False)
    assert fewstep.restore(pipe) is original
    assert pipe.scheduler is original
    with pytest.raises(ValueError, match="not from `use`"):
        fewstep.restore(pipe)
    with pytest.raises(ValueError, match="no scheduler"):
        fewstep.use(SimpleNamespace(), "ddim")


def test_leading_times_become_trailing(capsys):
    """With five steps they would begin at time 801 of 1000."""
    pipe = pipeline("DDIMScheduler", **SD, timestep_spacing="leading")
    first = fewstep.use(pipe, "ddim")
    first.set_timesteps(5)
    assert first.timesteps[0] == 999
    assert "trailing" in capsys.readouterr().out
    kept = fewstep.use(pipe, "ddim", timestep_spacing="leading", verbose=False)
    kept.set_timesteps(5)
    assert kept.timesteps[0] == 800


@pytest.mark.parametrize(("name", "evaluations"), [("unipc-3", 8), ("heun", 8), ("dpmpp-2s", 8)])
def test_nfe_holds_whatever_the_pipeline_asks_for(name, evaluations):
    pipe = pipeline(**SD)
    held = fewstep.use(pipe, name, nfe=8, verbose=False)
    made, x = calls(held, 50)
    assert made == evaluations
    free = fewstep.use(pipe, name, verbose=False)
    steps = {"heun": 4}.get(name, 8)
    assert torch.equal(calls(free, steps)[1], x)
    held.set_timesteps(50)
    with pytest.raises(ValueError, match="nfe=8 holds the run at"):
        held.set_begin_index(25)


def test_nfe_of_a_flow_pipeline_that_passes_its_ramp():
    pipe = pipeline("FlowMatchEulerDiscreteScheduler", shift=3.0)
    held = fewstep.use(pipe, "unipc-2", nfe=4, verbose=False)
    made, _ = calls(held, None, sigmas=torch.linspace(1, 1 / 28, 28).tolist())
    assert made == 4
    with pytest.raises(ValueError, match="nfe=4 holds the run"):
        held.set_timesteps(sigmas=[1.0, 0.8, 0.1])


def test_a_spacing_holds_where_a_pipeline_passes_its_ramp():
    pipe = pipeline("FlowMatchEulerDiscreteScheduler", shift=3.0)
    spaced = fewstep.use(pipe, "unipc-2", spacing="karras", verbose=False)
    spaced.set_timesteps(sigmas=torch.linspace(1, 1 / 4, 4).tolist())
    grid = fewstep.grid(fewstep.schedules.FlowMatching(3.0), 4, "karras")
    torch.testing.assert_close(spaced.sigmas, torch.tensor(grid.sigma).float())
    spaced.set_timesteps(sigmas=[1.0, 0.4])
    assert spaced.sigmas.tolist() == pytest.approx([1.0, 2 / 3, 0.0])


def test_tables(tmp_path):
    pipe = pipeline(**SD)
    schedule, _ = samplers.from_diffusers_config(SD)
    table = samplers.build("ab-3", fewstep.grid(schedule, 5, "lam"))
    table.save(tmp_path / "t.json")
    results = [
        calls(fewstep.use(pipe, held, verbose=False), 5)[1]
        for held in (table, tmp_path / "t.json", {"5": table.to_dict()})
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for held in (str(tmp_path / "t.json"), {5: table}):
        assert torch.equal(results[0], calls(fewstep.use(pipe, held, verbose=False), 5)[1])
    named = fewstep.use(pipe, "ab-3", spacing="lam", verbose=False)
    torch.testing.assert_close(results[0], calls(named, 5)[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="tables of 5 evaluations, not 6"):
        calls(fewstep.use(pipe, table, verbose=False), 6)
    assert calls(fewstep.use(pipe, table, nfe=5, verbose=False), 50)[0] == 5
    own = pipe.scheduler
    with pytest.raises(ValueError, match="nfe=3: the shortest run takes more"):
        fewstep.use(pipe, table, nfe=3, verbose=False)
    assert pipe.scheduler is own
    held = {"5": table.to_dict(), "7": table.to_dict()}
    assert calls(fewstep.use(pipe, held, nfe=6, verbose=False), 50)[0] == 5
    with pytest.raises(ValueError, match="the tableau under 7 has 5 rows"):
        calls(fewstep.use(pipe, held, verbose=False), 7)
    with pytest.raises(ValueError, match="nodes of its own"):
        calls(fewstep.use(pipe, table, verbose=False), None, sigmas=[9.0, 3.0, 2.0, 1.0, 0.5])


def test_what_is_printed_is_true(capsys):
    pipe = pipeline("DPMSolverMultistepScheduler", **SD, use_karras_sigmas=True)
    fewstep.use(pipe, "unipc-3")
    said = capsys.readouterr().out
    assert "karras" in said
    assert "linspace" not in said


def test_what_was_said_before_stays():
    own = fewstep.TableauScheduler(**SD, spacing="karras", solver="ddim", nfe=6)
    pipe = SimpleNamespace(scheduler=own)
    scheduler = fewstep.use(pipe, "unipc-3", verbose=False)
    assert (scheduler.config["spacing"], scheduler.config["nfe"]) == ("karras", 6)
    assert fewstep.restore(pipe) is own


def test_sigmas_that_look_like_a_ramp_are_meant_where_they_are_no_flow():
    pipe = pipeline("EulerDiscreteScheduler", **SD)
    spaced = fewstep.use(pipe, "unipc-2", spacing="karras", verbose=False)
    spaced.set_timesteps(sigmas=[1.0, 0.5])
    assert spaced.sigmas.tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_a_run_held_by_nfe_may_not_begin_late_in_other_steps():
    """Its place among 20 steps is another one among 8."""
    held = fewstep.use(pipeline(**SD), "unipc-3", nfe=8, verbose=False)
    held.set_timesteps(20)
    held.set_begin_index(0)
    with pytest.raises(ValueError, match="call it with num_inference_steps=8"):
        held.set_begin_index(5)
    held.set_timesteps(8)
    held.set_begin_index(5)


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("spacing", ["karras", "lam", "uniform"])
def test_spacings_and_tables_of_edm_pipelines(kind, spacing):
    pipe = pipeline(kind)
    spaced = fewstep.use(pipe, "unipc-3", spacing=spacing, verbose=False)
    grid = fewstep.grid(fewstep.schedules.EDM(), 5, spacing)
    made, x = calls(spaced, 5)
    torch.testing.assert_close(spaced.sigmas, torch.tensor(grid.sigma).float())
    table = samplers.build("unipc-3", grid)
    torch.testing.assert_close(calls(fewstep.use(pipe, table, verbose=False), made)[1], x)


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_a_table_of_another_model_is_refused(kind):
    """Its times would name other levels to the network."""
    schedule, _ = samplers.from_diffusers_config(SD)
    table = samplers.build("ab-3", fewstep.grid(schedule, 5, "lam"))
    with pytest.raises(ValueError, match="made for another noise schedule: its node"):
        fewstep.use(pipeline(kind), table, verbose=False)
    other = {**SD, "beta_schedule": "squaredcos_cap_v2"}
    with pytest.raises(ValueError, match="made for another noise schedule"):
        fewstep.use(pipeline(**other), table, verbose=False)


def test_a_learned_table_may_tell_the_network_other_times():
    schedule, _ = samplers.from_diffusers_config(SD)
    plain = samplers.build("unipc-2", fewstep.grid(schedule, 4, "uniform"))
    shift = np.array([-30.0, 40.0, 25.0, -20.0, 0.0])
    table = replace(plain, grid=replace(plain.grid, label=plain.grid.label + shift))
    scheduler = fewstep.use(pipeline(**SD), table, verbose=False)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == pytest.approx(table.grid.label[:-1], abs=1e-3)


def test_a_scheduler_says_in_a_line_what_was_set():
    schedule, _ = samplers.from_diffusers_config(SD)
    table = samplers.build("ab-3", fewstep.grid(schedule, 5, "lam"))
    said = repr(fewstep.use(pipeline(**SD), table, verbose=False))
    assert "beta_end=0.012" in said
    assert "tableau=.." in said
    assert len(said) < 400
