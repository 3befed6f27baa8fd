"""Every kind of pipeline with solvers that it was not published with."""

from __future__ import annotations

import dataclasses
import itertools
import json
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from fewstep import Tableau, TableauScheduler, samplers
from fewstep.schedules import FlowMatching, Grid

from .cases import CASES, Case

STEPS = 4
SOLVERS = ("ddim", "dpmpp-2m", "unipc-3", "sde-dpmpp-2m", "heun")
LEARNED = "learned table"
BEGIN_LATE = [name for name in CASES if name.endswith(("img2img", "inpaint"))]

# Equal methods agree to SAME; solvers of higher order are DIFFERENT from DDIM, and from each other
# at least CLOSE (where the last node but one is almost clean, 2M and UniPC are much alike).
SAME, DIFFERENT, CLOSE = {"rtol": 1e-3, "atol": 1e-3}, 1e-2, 1e-4

# A solver may leave the size of what the first-order one gives, with random networks and noise, by
# this factor. Steps that fall apart leave it by thousands.
LARGEST = 50


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.disable_progress_bar()
    yield
    diffusers.utils.logging.enable_progress_bar()


def sampled(case: Case, scheduler: Any, steps: int = STEPS, **options: Any) -> torch.Tensor:
    return called(case.make(scheduler), case, steps, **options)


def called(pipe: Any, case: Case, steps: int = STEPS, **options: Any) -> torch.Tensor:
    given = {**case.inputs(steps), **options}
    return torch.as_tensor(pipe(**given, return_dict=False)[0])


def ours(case: Case, solver: str) -> TableauScheduler:
    """Our scheduler in place of the published one, as the README does it."""
    config = case.make(case.original()).scheduler.config
    if solver == LEARNED:
        return TableauScheduler.from_config(config, tableau=learned(case).to_dict())
    return TableauScheduler.from_config(config, solver=solver)


@cache
def nodes(case: Case) -> Grid:
    """The nodes of the pipeline, from what a scheduler says about its last run."""
    pipe = case.make(ours(case, "ddim"))
    called(pipe, case)
    sigmas = pipe.scheduler.sigmas.double().numpy()
    grid = Grid.from_times(FlowMatching(), sigmas) if case.flow else Grid.from_sigmas(sigmas)
    labels = pipe.scheduler.timesteps.double().numpy()
    return dataclasses.replace(grid, label=np.append(labels, 0.0))


def learned(case: Case) -> Tableau:
    """A table that no solver has, on the nodes of the pipeline."""
    table = samplers.build("dpmpp-2m", nodes(case))
    change = 1 + 0.1 * np.random.default_rng(0).standard_normal(table.weights.shape)
    return dataclasses.replace(table, weights=table.weights * change, name="learned")


@cache
def result(name: str, solver: str) -> torch.Tensor:
    """What our scheduler gives in a case."""
    return sampled(CASES[name], ours(CASES[name], solver))


@cache
def truth(name: str) -> torch.Tensor:
    """What diffusers gives to first order on the nodes of a case."""
    return sampled(CASES[name], CASES[name].euler(STEPS))


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


# --- every solver in every pipeline ------------------------------------------------------------


@pytest.mark.parametrize("solver", [*SOLVERS, LEARNED])
@pytest.mark.parametrize("name", CASES)
def test_a_solver_runs_in_a_pipeline(name, solver):
    out, own = result(name, solver), truth(name)
    assert out.shape == own.shape
    assert out.isfinite().all()
    assert out.std() < LARGEST * own.std()


@pytest.mark.parametrize("name", CASES)
def test_ddim_is_the_first_order_method_of_diffusers(name):
    torch.testing.assert_close(result(name, "ddim"), truth(name), **SAME)


@pytest.mark.parametrize("name", CASES)
def test_solvers_differ(name):
    """The scheduler of the pipeline is what samples."""
    for a, b in itertools.combinations([*SOLVERS, LEARNED], 2):
        least = DIFFERENT if a == "ddim" else CLOSE
        assert apart(result(name, a), result(name, b)) > least, (a, b)


@pytest.mark.parametrize("name", ["sd", "sd-controlnet", "pixart"])
def test_without_a_solver_the_class_of_the_config_samples(name):
    """Where that is of second order; the others are compared as "ddim"."""
    case = CASES[name]
    own = sampled(case, case.original())
    assert apart(own, truth(name)) > DIFFERENT
    scheduler = TableauScheduler.from_config(case.original().config)
    torch.testing.assert_close(sampled(case, scheduler), own, **SAME)


@pytest.mark.parametrize("name", ["sdxl", "sdxl-img2img", "sdxl-inpaint"])
def test_heun_is_that_of_diffusers(name):
    case = CASES[name]
    theirs = diffusers.HeunDiscreteScheduler.from_config(case.original().config)
    torch.testing.assert_close(result(name, "heun"), sampled(case, theirs), **SAME)


@pytest.mark.parametrize("name", CASES)
def test_a_table_in_the_config_is_the_solver_that_it_was_read_from(name):
    case = CASES[name]
    table = samplers.build("dpmpp-2m", nodes(case))
    scheduler = TableauScheduler.from_config(case.original().config, tableau=table.to_dict())
    torch.testing.assert_close(sampled(case, scheduler), result(name, "dpmpp-2m"), **SAME)


def test_other_nodes_are_told_as_those_of_the_class():
    """The network of Stable Video Diffusion is told log(sigma) / 4, wherever the nodes are."""
    config = CASES["svd"].original().config
    scheduler = TableauScheduler.from_config(config, solver="unipc-3", spacing="lam")
    scheduler.set_timesteps(STEPS)
    expected = scheduler.sigmas[:-1].log() / 4
    torch.testing.assert_close(scheduler.timesteps, expected, rtol=1e-4, atol=1e-4)


def refused(name: str, solver: str) -> bool:
    """Whether solvers in eps must refuse: a network that is shown pure noise says nothing of x0."""
    return solver.startswith("pndm") and CASES[name].flow


def extrapolates(name: str, solver: str) -> bool:
    """Whether a method of third or fourth order steps from next to pure noise (nsr = 3,000).

    It takes differences of x0 there, times that; nothing keeps a random network's small.
    """
    return name == "sana" and solver in ("dpm-3s", "pndm-rk4")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_solvers_run_in_a_pipeline(name):
    wrong = {}
    for solver in [each.name for each in samplers.solvers()]:
        try:
            size = float(result(name, solver).std() / truth(name).std())
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            if not (refused(name, solver) and "pure noise" in str(error)):
                wrong[solver] = repr(error)
        else:
            if not size < LARGEST and not extrapolates(name, solver):
                wrong[solver] = f"{size:.3g} times the size of the first-order result"
    assert wrong == {}


# --- runs that begin late ----------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS[1:])
@pytest.mark.parametrize("name", [name for name in BEGIN_LATE if "inpaint" in name])
def test_inpainting_keeps_what_is_not_masked(name, solver):
    """Half of the latents, bit for bit: the last of them come from the image."""
    kept = (result(name, solver) == truth(name)).float().mean()
    assert 0.5 <= kept < 0.6


def first_time(case: Case, solver: str, strength: float) -> float:
    """The time of the first evaluation."""
    seen: list[float] = []

    def note(pipe: Any, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(float(t))
        return tensors

    sampled(case, ours(case, solver), strength=strength, callback_on_step_end=note)
    return seen[0]


# In the pipelines of Flux the strength is a share of evaluations, which ends inside a step.
@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", [name for name in BEGIN_LATE if "flux" not in name])
def test_a_solver_of_two_stages_begins_where_others_do(name, strength):
    case = CASES[name]
    assert first_time(case, "heun", strength) == first_time(case, "ddim", strength)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
def test_a_refiner_goes_on_where_the_base_stopped(solver):
    """The two halves of a run of SDXL; of multistep solvers the second starts its history anew."""
    case = CASES["sdxl"]
    base = case.make(ours(case, solver))
    half = called(base, case, denoising_end=0.5)
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**base.components)
    refiner.set_progress_bar_config(disable=True)
    given = {**case.inputs(STEPS), "image": half, "denoising_start": 0.5}
    for size in ("height", "width"):
        given.pop(size)
    whole = refiner(**given, return_dict=False)[0]
    if solver == "ddim":
        torch.testing.assert_close(whole, result("sdxl", "ddim"), **SAME)
    else:
        assert apart(whole, result("sdxl", solver)) > DIFFERENT
        assert whole.std() < LARGEST * truth("sdxl").std()


# --- the same again ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_next_call_knows_nothing_of_the_one_before(name):
    """With the same seed the same bits, whatever was sampled in between."""
    case = CASES[name]
    pipe = case.make(ours(case, "sde-dpmpp-2m"))
    for seed, steps in enumerate((STEPS, 3, STEPS)):
        # Of no effect: noise comes from the generator of the call, or the inputs seed this one.
        torch.manual_seed(seed)
        out = called(pipe, case, steps)
        assert out.isfinite().all()
        assert torch.equal(out, result(name, "sde-dpmpp-2m")) == (steps == STEPS)


def test_a_list_of_generators_gives_every_image_its_own_noise():
    case = CASES["sd"]
    pipe = case.make(ours(case, "sde-dpmpp-2m"))
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 7)]
    both = called(pipe, case, num_images_per_prompt=2, generator=seeds)
    torch.testing.assert_close(both[1:], result("sd", "sde-dpmpp-2m"), **SAME)
    assert apart(both[0], both[1]) > DIFFERENT


SAVED = {"sd": LEARNED, "flux": "unipc-3", "sdxl-inpaint": "heun"}


@pytest.mark.parametrize(
    "name",
    [name if name in SAVED else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_a_saved_pipeline_is_the_same_one(name, tmp_path):
    case, solver = CASES[name], SAVED.get(name, "sde-dpmpp-2m")
    case.make(ours(case, solver)).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["fewstep", "TableauScheduler"]
    assert index["_class_name"] == case.pipeline
    again = getattr(diffusers, case.pipeline).from_pretrained(tmp_path, **case.absent)
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is TableauScheduler
    out = called(again, case)
    torch.testing.assert_close(out, result(name, solver), **SAME)
    # Weights that were loaded lie elsewhere in memory, and products may be summed in another order:
    # only with the same network are the bits the same.
    again.scheduler = ours(case, solver)
    assert torch.equal(called(again, case), out)
