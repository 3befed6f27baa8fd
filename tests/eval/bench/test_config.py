from __future__ import annotations

import pytest
from fewstep import configs, samplers
from fewstep.eval.bench import BenchConfig, panels, plan
from fewstep.eval.settings import ModelConfig
from fewstep.schedules import EDM, VPDiscrete, betas, grid

LATENT = VPDiscrete(betas("scaled_linear", 1000, 0.00085, 0.012))


def packaged(name="mnist"):
    path = configs.find("bench", name)
    return configs.checked(BenchConfig, configs.read(path), str(path))


def cells(config, schedule):
    return [cell for panel in panels(config) for cell in plan(config, schedule, panel, 0)]


def test_the_packaged_run_fits_five_minutes():
    """Measured on 2 CPU cores: about 2 ms per image and network call."""
    config = packaged()
    calls = sum(cell.table.nfe for cell in cells(config, VPDiscrete(betas()))) * config.images
    calls += config.reference.steps * (config.images + config.reference.check_images)
    assert calls <= 115_000
    assert config.images >= 400
    assert len(config.solvers) >= 6
    assert (config.nfe[0], config.nfe[-1]) == (3, 20)


def test_nfe_is_sorted_and_names_are_solvers():
    config = BenchConfig(name="a", solvers=["ddim", {"name": "heun"}], nfe=[9, 3, 9])
    assert config.nfe == (3, 9)
    assert [solver.name for solver in config.solvers] == ["ddim", "heun"]


def test_there_is_no_cell_where_a_solver_fits_no_evaluations(tmp_path):
    law = VPDiscrete(betas())
    tables = {n: samplers.build("unipc-3", grid(law, n)) for n in (4, 6)}
    samplers.save_family(tables, tmp_path / "mine" / "tables.json")
    solvers = ["ddim", str(tmp_path / "mine"), {"name": "heun", "label": "h"}]
    found = cells(BenchConfig(name="a", solvers=solvers, nfe=[1, 3, 5, 6]), law)
    by = {name: [cell.nfe for cell in found if cell.curve == name] for name in ("mine", "h")}
    assert by == {"mine": [5, 6], "h": [1, 3, 5]}
    assert [cell.table.nfe for cell in found if cell.curve == "mine"] == [4, 6]
    with pytest.raises(ValueError, match=r"mine: there are tables of 4, 6 .* none within 3"):
        cells(BenchConfig(name="a", solvers=solvers, nfe=[1, 3]), law)


def test_one_stands_for_a_list_and_the_singular_for_the_plural():
    config = BenchConfig.model_validate(
        {"name": "a", "model": "mnist", "seed": 3, "solvers": ["ddim"], "nfe": 5, "guidance": 2}
    )
    assert config.models == (ModelConfig(id="mnist", data="mnist"),)
    assert (config.seeds, config.nfe, config.guidance) == ((3,), (5,), (2.0,))


def test_the_bundled_model_brings_its_data_and_others_bring_none():
    assert ModelConfig.model_validate("mnist").data == "mnist"
    assert ModelConfig.model_validate({"id": "mnist", "data": "x.npz"}).data == "x.npz"
    assert ModelConfig.model_validate("google/ddpm-cifar10-32").data is None
    assert ModelConfig.model_validate("google/ddpm-cifar10-32").name == "ddpm-cifar10-32"


def test_prompts_come_from_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n a dog \n")
    assert ModelConfig.model_validate({"id": "sd", "prompts": str(path)}).prompts == (
        "a cat",
        "a dog",
    )


PAPER = {"source": "a paper", "values": {"ddim": {3: 1.0}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imagse": 3}, "imagse: no such key; did you mean images?"),
        ({"extractors": [{"name": "pixels"}]}, "extractors.0.name: no such key; there is id, opt"),
        ({"reference": {"step": 3}}, "reference.step: no such key; did you mean steps?"),
        ({"models": ["a", "b"], "published": [PAPER]}, "a paper: say of which model"),
        ({"published": [PAPER | {"model": "mnits"}]}, "there is no model 'mnits', only mnist"),
        ({"guidance": [1, 2], "published": [PAPER]}, "a paper: say of which guidance"),
        ({"images": 0}, "images"),
        ({"nfe": []}, "nfe"),
        ({"name": "../up"}, "name"),
        ({"solvers": ["ddim", "ddim"]}, "ddim is there twice"),
        ({"models": ["a/x", "b/x"]}, "x is there twice"),
        ({"model": "mnist", "models": ["mnist"]}, "say the same"),
        ({"images": 50, "seeds": [0, 49]}, "seeds 0 and 49 overlap"),
        ({"images": 50, "seeds": [2**32 - 49]}, "seeds must be below 2"),
        ({"noise_device": "gpu"}, "noise_device"),
        ({"models": [{"id": "a", "prompts": "nowhere.txt"}]}, "no file nowhere.txt"),
    ],
)
def test_bad_settings_are_named(change, message):
    values = {"name": "a", "solvers": ["ddim"], "nfe": [3]} | change
    with pytest.raises(ValueError, match=message):
        configs.checked(BenchConfig, values, "here")


def test_names_and_files_are_found(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: 1")
    assert configs.read(configs.find("bench", str(path))) == {"a": 1}
    with pytest.raises(ValueError, match=r"there is .*mnist"):
        configs.find("bench", "imagenet")
    path.write_text("- 1")
    with pytest.raises(ValueError, match="key: value"):
        configs.read(path)
    with pytest.raises(ValueError, match="cannot read"):
        configs.read(tmp_path / "absent.yaml")


def test_a_solver_that_cannot_spend_an_nfe_gets_the_most_below_it_once():
    config = BenchConfig(name="a", solvers=["heun"], nfe=[3, 4, 5])
    found = cells(config, VPDiscrete(betas()))
    assert [(cell.nfe, cell.table.nfe) for cell in found] == [(3, 3), (5, 5)]


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("cifar10-ddpm", VPDiscrete(betas())), ("cifar10-edm", EDM()), ("sd-rmse", LATENT)],
)
def test_published_runs_have_a_cell_for_every_value(name, schedule, tmp_path, monkeypatch):
    """Each published value belongs to a curve of the run, at an NFE that it spends exactly."""
    (tmp_path / "prompts.txt").write_text("a cat")
    monkeypatch.chdir(tmp_path)
    config = packaged(name)
    there = {(cell.curve, cell.table.nfe) for cell in cells(config, schedule)}
    assert config.images == 50_000 or config.metrics == ()
    for each in config.published:
        wanted = {(curve, nfe) for curve, values in each.values.items() for nfe in values}
        assert wanted
        assert wanted <= there


def test_all_packaged_runs_are_legal(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a cat")
    monkeypatch.chdir(tmp_path)
    names = [path.stem for path in configs.find("bench", "mnist").parent.glob("*.yaml")]
    assert len(names) == 8
    assert all(packaged(name).name == name for name in names)


def test_nodes_are_placed_uniformly_unless_said_otherwise():
    assert BenchConfig(name="a", solvers=["ddim"], nfe=[3]).spacings == ("uniform",)
