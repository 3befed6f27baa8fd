from __future__ import annotations

import json

import numpy as np
import pytest
from fewstep import configs
from fewstep.samplers import ModelStatistics, Ratios
from fewstep.schedules import Placed, VPDiscrete, betas
from fewstep.search.grids import config_of
from fewstep.search.s3 import SearchConfig
from fewstep.search.statistics import StatisticsConfig

from ..eval.models import tiny
from .typed import run, wide  # noqa: F401 - a fixture

LAW = VPDiscrete(betas())


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ddpm"
    tiny.ddpm().save_pretrained(folder)
    return folder


def test_a_grid_is_found_and_used(tmp_path, pipe):
    out = tmp_path / "found"
    sizes = ("--set", "candidates=6", "--set", "samples=4", "--device", "cpu")
    for method in ("dm", "gits", "ays"):
        options = sizes if method != "dm" else ("--device", "cpu")
        said = run(
            "search",
            "grid",
            method,
            "--model",
            pipe,
            "--nfe",
            "2,3",
            *options,
            "--out",
            out / method,
        )
        assert "cost, and that of common spacings" in said
        assert Placed.load(out / method).steps == (2, 3)
        shown = run("show", "unipc-3", "--nfe", 3, "--spacing", out / method)
        assert f"{Placed.load(out / method).lams[1][1]:.3f}" in shown
    said = run(
        "bench", "mnist", "--model", pipe, "--solvers", "ddim", "--spacings",
        f"uniform,{out / 'dm'},{out / 'gits' / 'spacing.json'}", "--nfe", 2, "--metrics", "",
        "--images", 4, "--set", "reference=null", "--set", "extractors=[]", "--name", "b",
        "--out", tmp_path, "--device", "cpu",
    )  # fmt: skip
    assert all(name in said for name in ("ddim@uniform", "ddim@dm", "ddim@gits"))


def test_statistics_of_a_model_are_estimated_and_used(tmp_path, pipe):
    out, sizes = tmp_path / "v3", ("--set", "lams=4", "--set", "samples=6", "--set", "steps=3")
    said = run("search", "v3", "--model", pipe, *sizes, "--out", out, "--device", "cpu")
    assert "means over all pixels" in said
    found = ModelStatistics.load(out)
    assert len(found.lams) == 4
    assert found.schedule == LAW
    assert found.meta["samples"] == 6
    again = tmp_path / "again"
    run("search", "v3", "--model", pipe, *sizes, "--set", "difference=0.01", "--out", again,
        "--set", "batch_size=4", "--device", "cpu")  # fmt: skip
    np.testing.assert_allclose(ModelStatistics.load(again).l, found.l, atol=1e-2)
    said = run(
        "bench", "mnist", "--model", pipe, "--set",
        f"solvers=[{{name: dpm-v3, options: {{statistics: '{out}'}}}}]",
        "--spacings", "uniform", "--nfe", 2, "--metrics", "", "--images", 4, "--set",
        "reference=null", "--set", "extractors=[]", "--name", "b", "--out", tmp_path,
        "--device", "cpu",
    )  # fmt: skip
    assert "dpm-v3" in said


def test_a_number_of_a_solver_is_found(tmp_path, pipe):
    out = tmp_path / "found"
    said = run(
        "search", "option", "--model", pipe, "--nfe", 3, "--set", "samples=2", "--held_out", 2,
        "--substeps", 2, "--points", 3, "--out", out, "--device", "cpu",
    )  # fmt: skip
    assert "RMSE on held-out noises" in said
    (found,) = json.loads((out / "option.json").read_text())["found"]
    assert f"{found['value']:.4g}" in said
    assert "low must be below high" in run("search", "option", "--low", 3, code=2)


def test_what_is_wrong_is_said(tmp_path, pipe):
    assert "there is ays, dm, gits" in run("search", "grid", "nope", code=2)
    assert "growt: no such key; did you mean growth?" in run(
        "search", "grid", "gits", "--set", "growt=1", code=2
    )
    assert "there is no file" in run("show", "ddim", "--spacing", tmp_path / "no.json", code=3)


@pytest.mark.parametrize("name", configs.names("search/grid"))
def test_packaged_settings_are_good(name):
    path = configs.find("search/grid", name)
    assert config_of(configs.read(path), str(path)).method == name.partition("-")[0]


@pytest.mark.parametrize("name", configs.names("search/v3"))
def test_packaged_statistics_are_good(name):
    path = configs.find("search/v3", name)
    configs.checked(StatisticsConfig, configs.read(path), str(path))


def test_schedules_are_searched_and_sampled_with(tmp_path, pipe):
    out = tmp_path / "found"
    given = ("search", "s3", "--model", pipe, "--nfe", 2, "--evaluations", 6, "--samples", 3,
             "--set", "first=6", "--validation", 2, "--finalists", 1, "--converged_steps", 3,
             "--strategy", "random", "--device", "cpu", "--out", out)  # fmt: skip
    said = run(*given)
    assert "mnist-s3 has families, measures, space for its own model" in said
    assert "the best schedules" in said
    assert " 6 " in said
    assert (out / "search-002.html").stat().st_size > 100
    run("show", out, "--nfe", 2)
    # Nothing is done again, but what was not.
    assert " 7 " in run(*given, "--evaluations", 7)
    assert "other settings (strategy" in run(*given, "--strategy", "evolution", code=2)
    assert "did you mean strategy?" in run(*given, "--stratgy", "random", code=2)
    assert "'predictor', 'evolution' or 'random'" in run(*given, "--strategy", "luck", code=2)


def test_a_file_keeps_what_it_says_of_a_model(tmp_path, pipe):
    """Only runs that come with fewstep are of a model of their own."""
    (tmp_path / "mine.yaml").write_text(
        "families: [mnist-learned]\nsamples: 3\nmeasures: [{kind: rmse, weight: 2}]\n"
    )
    said = run("search", "s3", tmp_path / "mine.yaml", "--model", pipe, "--nfe", 2, code=2)
    assert "families: mnist-learned holds tables of 3, 4, 5, 6, 8, 10 evaluations" in said


@pytest.mark.parametrize("name", configs.names("search/s3"))
def test_packaged_searches_are_good(name, monkeypatch, tmp_path):
    # One names a file of prompts that is the user's.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    path = configs.find("search/s3", name)
    config = configs.checked(SearchConfig, configs.read(path), str(path))
    assert config.space_of(LAW, config.nfe[0]).nfe == config.nfe[0]


def test_ratios_are_found_and_taken_by_a_solver(tmp_path, pipe):
    out = tmp_path / "dc"
    sizes = [f"--set={each}" for each in ("samples=3", "held_out=2", "substeps=2", "method=greedy")]
    said = run(
        "search", "dc", "--model", pipe, "--nfe", "3,4", "--device", "cpu", *sizes, "--out", out
    )  # fmt: skip
    assert "RMSE on held-out noises" in said
    assert f"ratios: {out / 'ratios.json'}" in said.replace("\n", "")
    assert sorted(Ratios.load(out).found) == [(3, 1.0), (4, 1.0)]
    entry = f"{{name: unipc-3, label: dc, options: {{compensate: {out}}}}}"
    said = run(
        "bench", "mnist", "--model", pipe, "--set", f"solvers=[ddim, {entry}]", "--nfe", 4,
        "--metrics", "", "--images", 4, "--set", "reference=null", "--set", "extractors=[]",
        "--name", "b", "--out", tmp_path, "--device", "cpu",
    )  # fmt: skip
    record = json.loads((tmp_path / "b" / "results.json").read_text())
    assert {cell["curve"] for cell in record["cells"]} == {"ddim", "dc"}
    assert "samle: no such key; did you mean samples?" in run(
        "search", "dc", "--set", "samle=1", code=2
    )
