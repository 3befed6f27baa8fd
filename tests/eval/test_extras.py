"""What runs do besides their tables, in a benchmark and one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.eval.bench import check_plan, run_bench
from fewstep.eval.bench.round import rounds
from fewstep.eval.extras import extras_of
from fewstep.eval.models import Draw, NetworkModel
from fewstep.eval.models.extras import NONE, Extras
from fewstep.eval.settings import Planned, SolverConfig, planned
from fewstep.schedules import FlowMatching
from torch import nn

from .bench.fakes import CLASSES, SCHEDULE, SHAPE, SPREAD, config, ready

pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")

SHIFT = {"window": 40, "cutoff": 300, "data_variance": SPREAD**2}
ERROR = 1.01


class TooMuchNoise(nn.Module):
    """The eps of N(0, SPREAD^2), each sample at its own label, too large by a hundredth."""

    def __init__(self, error=ERROR):
        super().__init__()
        self.error = nn.Parameter(torch.tensor(error), requires_grad=False)

    def forward(self, x, label):
        time = SCHEDULE.time_of(label.double().numpy())
        alpha, sigma = SCHEDULE.alpha(time), SCHEDULE.sigma(time)
        gain = torch.from_numpy(np.asarray(sigma / (alpha**2 * SPREAD**2 + sigma**2)))
        return x * self.error * gain.expand(len(x)).view(-1, 1, 1, 1).to(x)


def model(error=ERROR):
    network = TooMuchNoise(error)
    plain = samplers.denoiser(network, SCHEDULE, "eps")
    return NetworkModel("off", network, SCHEDULE, SHAPE, CLASSES, lambda labels, size: plain)


def drawn(given, **settings):
    """The images of 40 seeds, and the job that made them."""
    asked = config(solvers=[{"name": "dpmpp-2m", **settings}], nfe=[8], reference=None)
    (turn,) = rounds(asked, ready(given), None)
    job = turn.job_of(turn.cells[0])
    return given.images(job.table, job.draw), job


def test_shifted_times_are_those_of_the_sampler():
    images, job = drawn(model(), shift=SHIFT)
    bare, plain = drawn(model())
    shift = samplers.time_shift("dpmpp-2m", plain.table.grid, **SHIFT)
    x = samplers.noise(plain.table.grid, SHAPE, range(40))
    denoiser = samplers.denoiser(TooMuchNoise(), SCHEDULE, "eps")
    expected = samplers.sample(denoiser, shift.table, x, row_map=shift)
    assert torch.equal(images, expected)
    assert not torch.equal(images, bare)
    assert np.array_equal(job.table.weights, plain.table.weights)


@pytest.mark.parametrize(
    "name", ["heun", "dpmpp-3s", "dpm-2s", "pndm", "dpm-2", "deis-rho-kutta3", "sa-2", "ipndm-4"]
)
def test_the_shifted_table_is_that_of_the_run(name):
    """Also of solvers whose stages are inserted in a grid, or are nodes of it."""
    for nfe in (5, 8, 9):
        found = planned(SCHEDULE, SolverConfig(name=name, shift=SHIFT), nfe, "lam", "min")
        assert found.shift is not None
        for ours, run in zip(found.shift.table.rows(), found.table.rows(), strict=True):
            assert np.array_equal(ours, run)
        assert np.array_equal(found.shift.table.grid.lam, found.table.grid.lam)


def test_ratios_of_a_file_are_those_of_the_guidance_scale_in_shifted_tables(tmp_path):
    ratios = {(4, 2.0): (1, 1, 1.1, 0.9), (4, 1.0): (1, 1, 0.7, 1.3)}
    samplers.Ratios(ratios).save(tmp_path / "r.json")
    options = {"compensate": str(tmp_path / "r.json")}
    asked = SolverConfig(name="dpmpp-2m", shift=SHIFT, options=options)
    found = planned(SCHEDULE, asked, 4, "lam", "min", 2.0)
    assert np.array_equal(found.shift.table.weights, found.table.weights)
    other = planned(SCHEDULE, asked, 4, "lam", "min", 1.0)
    assert not np.array_equal(other.table.weights, found.table.weights)


def test_scaled_noise_mends_a_network_with_too_much_of_it():
    exact, _ = drawn(model(1.0))
    mended, _ = drawn(model(), scale_eps=ERROR)
    wrong, _ = drawn(model())
    torch.testing.assert_close(mended, exact, atol=1e-5, rtol=0)
    assert (wrong - exact).abs().max() > 1e-3
    sloped, _ = drawn(model(), scale_eps={"base": ERROR, "slope": 0.1})
    assert (sloped - exact).abs().max() > 1e-3


def test_reports_say_what_was_done_besides(tmp_path):
    solvers = [
        "ddim",
        {"name": "ddim", "label": "shifted", "shift": SHIFT},
        {"name": "ddim", "label": "smaller", "scale_eps": {"base": 1.01, "slope": 0.001}},
    ]
    asked = config(solvers=solvers, nfe=[4], reference=None)
    run = run_bench(asked, tmp_path, lambda _: ready(model(), metrics=()))
    said = {each.record["curve"]: each.record for each in run.results}
    assert said["ddim"]["shift"] == said["ddim"]["scale_eps"] == ""
    assert said["shifted"]["shift"] == "source by 40 above 300, data of variance 0.09"
    assert said["smaller"]["scale_eps"] == "1.01 +0.001 n"


def test_other_extras_are_other_samples():
    solvers = [
        {"name": "ddim", "label": str(i), **extra}
        for i, extra in enumerate(
            [
                {},
                {"shift": SHIFT},
                {"shift": {**SHIFT, "window": 20}},
                {"shift": {**SHIFT, "cutoff": 200}},
                {"shift": {**SHIFT, "data_variance": 0.2}},
                {"shift": {**SHIFT, "resolution": 2.0}},
                {"shift": {**SHIFT, "mode": "model"}},
                {"scale_eps": 1.01},
                {"scale_eps": {"slope": 1.01}},
                {"scale_eps": 1.0},
            ]
        )
    ]
    (turn,) = rounds(config(solvers=solvers, nfe=[4], reference=None), ready(model()), None)
    keys = [turn.job_of(cell).sampler_key for cell in turn.cells]
    assert keys[0] == keys[-1]
    assert len(set(keys)) == len(keys) - 1
    assert not NONE
    assert Extras(eps=(1.0, 0.1))


def test_what_cannot_be_is_found_before_the_first_sample():
    wide = config(solvers=[{"name": "ddim", "shift": {**SHIFT, "window": 900}}], nfe=[8])
    with pytest.raises(ValueError, match="overlap"):
        check_plan(wide, "gaussian", model())
    for change, match in (
        ({"scale_eps": {"slope": -0.5}}, "divided by -2.5 is not smaller"),
        ({"name": "mnist-learned", "shift": SHIFT}, "no shift of times"),
    ):
        with pytest.raises(ValueError, match=match):
            drawn(model(), **change)
    with pytest.raises(ValueError, match="finite"):
        SolverConfig(name="ddim", scale_eps={"slope": math.inf})
    with pytest.raises(ValueError, match="valid dictionary"):
        SolverConfig(name="ddim", scale_eps=True)
    pure = planned(FlowMatching(), SolverConfig(name="ddim", scale_eps=1.1), 4, "uniform", "zero")
    asked = SolverConfig(name="ddim", scale_eps=1.1)
    with pytest.raises(ValueError, match="the first node is pure noise"):
        extras_of(asked, pure, model())
    assert extras_of(SolverConfig(name="ddim", scale_eps={"slope": 0.1}), pure, model()).eps[1]
    table = planned(SCHEDULE, SolverConfig(name="ddim"), 4, "lam", "min")
    pipeline = SimpleNamespace(name="sd", shape=SHAPE, classes=None)
    for extra in ({"shift": SHIFT}, {"scale_eps": 1.1}, {"start": {"teleport": "a", "skip": 1}}):
        with pytest.raises(ValueError, match=r"sd is a whole pipeline"):
            extras_of(SolverConfig(name="ddim", **extra), table, pipeline)
    images = Planned(replace(table.table, weights=table.table.weights[..., None, None, None]))
    with pytest.raises(ValueError, match=r"are images, and what sd is given here are numbers"):
        extras_of(SolverConfig(name="ddim"), images, pipeline)
    assert not Draw(range(2)).extras
