"""Runs: what they leave, and that they do nothing twice."""

from __future__ import annotations

import json

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.eval.models import load_model
from fewstep.schedules import EDM, FlowMatching, Placed
from fewstep.search.grids import config_of, find_grids, run

from ...eval.models import tiny

SMALL = {"candidates": 8, "samples": 5, "batch_size": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ddpm"
    tiny.ddpm().save_pretrained(folder)
    return load_model(str(folder), "cpu")


def counted(monkeypatch):
    calls = []
    monkeypatch.setattr(
        run, "batch_costs", lambda *a, real=run.batch_costs: calls.append(a) or real(*a)
    )
    return calls


@pytest.mark.parametrize("method", ["gits", "ays"])
def test_nothing_is_computed_twice(tmp_path, model, monkeypatch, method):
    calls = counted(monkeypatch)
    config = config_of({"method": method, "nfe": [3], **SMALL})
    (first,) = find_grids(config, model, tmp_path).values()
    assert len(calls) == 2
    (again,) = find_grids(config, model, tmp_path).values()
    assert (again.placed, again.record["key"]) == (first.placed, first.record["key"])
    # Other steps are found in the same costs, and join the others.
    found = find_grids(config.model_copy(update={"nfe": (2, 3)}), model, tmp_path)
    assert len(calls) == 2
    assert Placed.load(tmp_path).steps == (2, 3)
    assert found[3].placed == first.placed
    # What a stopped run has left is taken up.
    (tmp_path / "costs" / "000003.npz").unlink()
    (tmp_path / "grid-003.json").unlink()
    assert find_grids(config, model, tmp_path)[3].placed == first.placed
    assert len(calls) == 3
    # Other settings are not mixed in.
    find_grids(config.model_copy(update={"first_seed": 7}), model, tmp_path)
    assert len(calls) == 5
    assert Placed.load(tmp_path).steps == (3,)


def test_batches_make_no_difference(tmp_path, model):
    for method in ("gits", "ays"):
        costs = []
        for size in (2, 5):
            config = config_of({"method": method, "nfe": [3], **SMALL, "batch_size": size})
            made = run.measured(config, model, tmp_path / f"{method}-{size}", "", run.silent)
            costs.append(made.cost)
        np.testing.assert_allclose(*costs, rtol=1e-4, atol=1e-4)


def test_a_run_leaves_a_spacing_a_card_and_a_picture(tmp_path, model, monkeypatch):
    config = config_of({"method": "dm", "nfe": [2, 4], "power": 2})
    found = find_grids(config, model, tmp_path)
    assert found[4].record["cost"] < min(found[4].record["usual"].values())
    for end in ("zero", "min"):
        nodes = fewstep.grid(model.schedule, 4, str(tmp_path), end=end)
        np.testing.assert_allclose(nodes.lam[:-1], found[4].placed.lams[0][:-1], atol=1e-9)
        for solver in ("ddim", "unipc-3", "heun"):
            x = fewstep.noise(nodes, (3,), seeds=range(2))
            table = samplers.build(solver, nodes)
            denoiser = samplers.exact.gaussian(np.zeros(3), std=1.0)
            assert torch.isfinite(fewstep.sample(denoiser, table, x)).all()
    card = (tmp_path / "README.md").read_text()
    assert "Nodes by DM-NonUniform" in card
    assert '"power": 2.0' in card
    assert (tmp_path / "nodes.png").stat().st_size > 1000
    monkeypatch.setattr(run, "nonuniform", None)
    assert find_grids(config, model, tmp_path)[4].placed == found[4].placed
    said = json.loads((tmp_path / "grid-004.json").read_text())["found"]
    assert said["model"] == model.fingerprint


def test_common_spacings_are_measured_at_the_nearest_candidates():
    fine = fewstep.grid(EDM(), 20, "karras")
    assert run.nearest(fine, 20, "karras") == tuple(range(21))
    # Even in sigma, the last ones all fall between the first candidates.
    assert run.nearest(fine, 15, "uniform") is None
    assert run.nearest(fewstep.grid(FlowMatching(), 9, "uniform"), 3, "lam") is None
    assert run.nearest(fewstep.grid(FlowMatching(), 9, "uniform"), 3, "uniform") == (0, 3, 6, 9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "method must be one of dm, gits, ays, not None"),
        ({"method": "dp"}, "not 'dp'"),
        ({"method": "dm", "samples": 3}, "samples: no such key"),
        ({"method": "dm", "solver": "unipcc"}, "unknown solver 'unipcc'"),
        ({"method": "ays", "teacher": "x"}, "unknown solver 'x'"),
        ({"method": "ays", "growth": 1.1}, "growth: no such key"),
        ({"method": "gits", "nfe": 0}, "whole numbers from 1"),
        ({"method": "gits", "measure": "l3"}, "measure"),
        ({"method": "gits", "first_seed": 2**32}, "first_seed: must leave room"),
    ],
)
def test_settings_that_say_nothing_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        config_of(values)


def test_more_steps_than_candidates_are_refused(tmp_path, model):
    config = config_of({"method": "ays", "nfe": [9], **SMALL})
    with pytest.raises(ValueError, match="8 candidates are too few for 9 steps"):
        find_grids(config, model, tmp_path)
