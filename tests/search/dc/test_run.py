"""Runs of a search for ratios: what they leave, and that they do nothing twice."""

from __future__ import annotations

import numpy as np
import pytest
from fewstep import configs, samplers
from fewstep.eval.models import load_model
from fewstep.schedules import grid
from fewstep.search.dc import RatioConfig, find_ratios, run

from ...eval.models import tiny

SMALL = {"samples": 4, "held_out": 2, "substeps": 2, "batch_size": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ddpm"
    tiny.ddpm().save_pretrained(folder)
    return load_model(str(folder), "cpu")


def test_nothing_is_searched_twice(tmp_path, model, monkeypatch):
    calls = []
    real = run.searched
    monkeypatch.setattr(run, "searched", lambda *a: calls.append(a[2:]) or real(*a))
    config = RatioConfig(nfe=4, method="greedy", **SMALL)
    (first,) = find_ratios(config, model, tmp_path)
    (again,) = find_ratios(config, model, tmp_path)
    assert calls == [(4, 1.0)]
    assert again == first
    found = find_ratios(config.model_copy(update={"nfe": (3, 4)}), model, tmp_path)
    assert calls == [(4, 1.0), (3, 1.0)]
    # The folder is one of ratios, for a solver, and by the polynomial for other numbers.
    nodes = grid(model.schedule, 4)
    table = samplers.build("unipc-3", nodes, compensate=str(tmp_path))
    given = samplers.build("unipc-3", nodes, compensate=found[1].ratios)
    assert np.array_equal(table.weights, given.weights)
    assert "unipc-3" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "ratios.png").stat().st_size > 1000
    # Other settings are not mixed in.
    find_ratios(config.model_copy(update={"first_seed": 5}), model, tmp_path)
    assert len(calls) == 3
    assert list(first.errors) == ["solver", "greedy"]
    assert set(samplers.Ratios.load(tmp_path).found) == {(4, 1.0)}


def test_all_together_is_no_worse_than_step_by_step(model):
    config = RatioConfig(nfe=3, **SMALL, first=1)
    nodes = grid(model.schedule, 3, "uniform")
    course = run.course_of(config, nodes)
    lessons, held_out = run.lessons_of(config, model, nodes, 1.0)
    assert [len(each.z) for each in lessons] == [3, 1]
    step = run.greedy(course, lessons)
    assert (step[0], step[1] == 1) == (1, False)
    found = run.searched(config, model, 3, 1.0)
    assert list(found.errors) == ["solver", "greedy", "joint"]
    worst = run.end_error(course.with_ratios(step), lessons)
    assert run.end_error(course.with_ratios(found.ratios), lessons) <= worst
    # On the held-out noises.
    assert found.errors["greedy"] == pytest.approx(
        run.end_error(course.with_ratios(step), held_out)
    )


def test_what_cannot_be_compensated_is_refused(tmp_path, model):
    with pytest.raises(ValueError, match="draws noise or has stages"):
        find_ratios(RatioConfig(nfe=4, solver="ddpm", **SMALL), model, tmp_path)
    with pytest.raises(ValueError, match="on top of dualfast"):
        find_ratios(RatioConfig(nfe=4, options={"dualfast": 0.1}, **SMALL), model, tmp_path)


@pytest.mark.parametrize("name", configs.names("search/dc"))
def test_packaged_settings_are_valid(name):
    configs.checked(RatioConfig, configs.read(configs.find("search/dc", name)), name)
