from __future__ import annotations

import pytest
from fewstep import configs
from fewstep.eval import BenchConfig
from fewstep.eval.plan import plan
from fewstep.schedules import VPDiscrete, betas


def packaged():
    path = configs.find("bench", "mnist")
    return configs.checked(BenchConfig, configs.read(path), str(path))


def test_the_packaged_run_fits_five_minutes():
    """Measured on 2 CPU cores: about 2 ms per image and network call."""
    config = packaged()
    calls = sum(cell.table.nfe for cell in plan(config, VPDiscrete(betas()))) * config.images
    calls += config.reference.steps * (config.images + config.reference.check_images)
    assert calls <= 115_000
    assert config.images >= 400
    assert len(config.solvers) >= 6
    assert (config.nfe[0], config.nfe[-1]) == (3, 20)


def test_nfe_is_sorted_and_names_are_solvers():
    config = BenchConfig(name="a", solvers=["ddim", {"name": "heun"}], nfe=[9, 3, 9])
    assert config.nfe == (3, 9)
    assert [solver.name for solver in config.solvers] == ["ddim", "heun"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imagse": 3}, "imagse"),
        ({"images": 0}, "images"),
        ({"nfe": []}, "nfe"),
        ({"name": "../up"}, "name"),
        ({"solvers": ["ddim", "ddim"]}, "ddim is there twice"),
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
    with pytest.raises(ValueError, match="there is mnist"):
        configs.find("bench", "cifar")
    path.write_text("- 1")
    with pytest.raises(ValueError, match="key: value"):
        configs.read(path)
    with pytest.raises(ValueError, match="cannot read"):
        configs.read(tmp_path / "absent.yaml")
