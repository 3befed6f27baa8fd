"""Runs that begin late: the noise is that of the beginning, and laws take it there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.eval.bench import check_plan, run_bench
from fewstep.eval.bench.round import rounds
from fewstep.samplers import GaussianData, exact
from fewstep.samplers.teleport import beginning

from .fakes import CLASSES, SCHEDULE, SHAPE, SPREAD, config, endpoint, model, ready

pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")

MEANS = np.array([-0.8, 0.0, 0.8])
MOST = float(SCHEDULE.nsr(SCHEDULE.t_max))


@pytest.fixture(scope="module")
def laws(tmp_path_factory):
    """Files of the very laws of the data, and of one that is wrong."""
    folder = tmp_path_factory.mktemp("laws")
    means = np.repeat(MEANS[:, None], 16, 1)
    GaussianData(exact.mixture(means, std=SPREAD), SHAPE, "class").save(folder / "c.safetensors")
    GaussianData(exact.gaussian(means[0], std=2.0), SHAPE).save(folder / "a.safetensors")
    return folder


def late(path, skip, **more):
    return {"name": "ddim", "start": {"teleport": str(path), "skip": skip}, **more}


def test_the_law_of_the_label_takes_noise_of_the_beginning_to_the_skip(laws, tmp_path):
    """Of exact laws nothing is lost on the way, and fewer steps are wrong by less."""
    solvers = ["ddim", late(laws / "c.safetensors", 0.2, label="late")]
    run = run_bench(
        config(solvers=solvers, nfe=[4]), tmp_path, lambda asked: ready(model(), metrics=())
    )
    bare, begun = (each.record for each in run.results)
    assert begun["start"] == f"{laws / 'c.safetensors'} to 0.2"
    assert bare["start"] == ""
    assert begun["nfe"] == bare["nfe"] == 4
    errors = [each["values"]["rmse"]["value"] for each in (bare, begun)]
    assert errors[1] < errors[0] / 3
    (turn,) = rounds(config(solvers=solvers, nfe=[200]), ready(), tmp_path)
    job = turn.job_of(turn.cells[1])
    images = job.model.images(job.table, job.draw)
    whole = beginning(SCHEDULE)
    x = samplers.noise(whole, SHAPE, range(40)).numpy()
    means = MEANS[np.arange(40) % CLASSES].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(images, endpoint(x, means, whole), atol=3e-3)


def test_skipping_nothing_is_the_bare_solver_bit_by_bit(laws, tmp_path):
    solvers = ["dpmpp-2m", late(laws / "c.safetensors", MOST, name="dpmpp-2m", label="late")]
    run = run_bench(config(solvers=solvers, nfe=[4]), tmp_path, lambda asked: ready())
    bare, begun = run.results
    assert torch.equal(bare.pixels, begun.pixels)
    assert bare.record["values"] == begun.record["values"]


def test_other_laws_are_other_samples(laws, tmp_path):
    def key(*paths):
        solvers = [late(laws / path, 3.0, label=str(i)) for i, path in enumerate(paths)]
        (turn,) = rounds(config(solvers=solvers, nfe=[4]), ready(), tmp_path)
        return [turn.job_of(cell).sampler_key for cell in turn.cells]

    one, other, again = key("c.safetensors", "a.safetensors", "c.safetensors")
    assert one == again != other


def test_laws_of_another_model_are_found_before_the_first_sample(tmp_path):
    settings = config(solvers=[late("mnist", 10.0)])
    with pytest.raises(ValueError, match=r"shape \(1, 28, 28\), and the model's have \(1, 4, 4\)"):
        check_plan(settings, "gaussian", model())
