"""One number of a solver, looked for where the best is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep import configs, samplers
from fewstep.eval.models import NetworkModel
from fewstep.schedules import VPCosine, VPLinear, grid
from fewstep.search import option
from fewstep.search.lessons import end_error, lessons_of
from fewstep.search.option import CARD, OptionConfig, find_option, with_option
from torch import nn

LAW = VPLinear()
MIXTURE = samplers.exact.mixture([[1.0, -1], [0.5, 2], [-1, 0.3]], std=[0.3, 0.4, 0.35])
SMALL = {"samples": 8, "held_out": 8, "substeps": 6, "points": 5}


class Counted(nn.Module):
    """The mixture as a network of two pixels."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x, node):
        return MIXTURE(x, node)


@pytest.fixture(scope="module")
def model():
    network = Counted()
    return NetworkModel("mixture", network, LAW, (2,), None, lambda labels, size: network)


def test_the_best_value_is_found_in_the_deepest_valley(model, tmp_path):
    config = OptionConfig(option="dualfast.strength", low=-1, high=1, nfe=5, **SMALL)
    (found,) = find_option(config, model, tmp_path)
    nodes = grid(LAW, 5, "uniform")
    search, held_out = lessons_of(config, model, nodes)

    def error(value, lessons):
        return end_error(samplers.build("unipc-3", nodes, dualfast=value), lessons)

    mesh = np.linspace(-1, 1, 201)
    errors = [error(value, search) for value in mesh]
    assert error(found.value, search) <= min(errors) * (1 + 1e-4)
    assert min(errors) < 0.9 * error(0.0, search)
    assert found.error == pytest.approx(error(found.value, held_out))
    assert found.bare == pytest.approx(error(0.0, held_out))
    assert list(found.tried) == sorted(found.tried)
    assert len(found.tried) > 5
    assert '{"dualfast": {"strength":' in (tmp_path / CARD).read_text()
    assert (tmp_path / "option.png").stat().st_size > 1000


def test_nothing_is_searched_twice(model, tmp_path, monkeypatch):
    """But what would be found otherwise: other settings, another law, another file of ratios."""
    calls = []
    real = option.searched
    monkeypatch.setattr(option, "searched", lambda *a: calls.append(a[2]) or real(*a))
    path = tmp_path / "r.json"
    samplers.Ratios({(n, 1.0): (1.0,) * n for n in (3, 4)}).save(path)
    options = {"compensate": str(path)}
    sizes = {"samples": 2, "held_out": 1, "substeps": 2, "points": 3}
    config = OptionConfig(option="dualfast", low=0, high=1, nfe=(3, 4), options=options, **sizes)

    def asked(given=model, **changes):
        calls.clear()
        return find_option(config.model_copy(update=changes), given, tmp_path), [*calls]

    first, did = asked()
    assert did == [3, 4]
    assert asked() == (first, [])
    assert asked(nfe=(4,)) == (first[1:], [])
    assert asked(batch_size=3)[1] == []
    assert asked(high=0.9)[1] == [3, 4]
    assert asked() == (first, [])
    assert asked(replace(model, schedule=VPCosine()))[1] == [3, 4]
    samplers.Ratios({(n, 1.0): (1.0,) * (n - 1) + (1.3,) for n in (3, 4)}).save(path)
    assert asked()[1] == [3, 4]


def test_without_means_without_all_that_is_said_inside(model, tmp_path):
    """The example of the command's help; the card says what to paste."""
    options = {"dualfast": {"reference": "first"}, "corrector": False}
    config = OptionConfig(
        option="dualfast.strength", low=0, high=1, nfe=3, options=options, **SMALL
    )
    (found,) = find_option(config, model, tmp_path)
    _, held_out = lessons_of(config, model, grid(LAW, 3, "uniform"))
    bare = samplers.build("unipc-3", grid(LAW, 3, "uniform"), corrector=False)
    assert found.bare == pytest.approx(end_error(bare, held_out))
    said = (tmp_path / CARD).read_text()
    assert '{"dualfast": {"reference": "first", "strength": ' in said
    assert '"corrector": false}' in said
    assert ("wider" in said) == (found.value in (0, 1))


def test_ratios_of_a_file_are_those_of_the_guidance_scale(model, tmp_path):
    samplers.Ratios({(3, 1.0): (1, 1, 0.5), (3, 2.0): (1, 1, 1.5)}).save(tmp_path / "r.json")
    options = {"compensate": str(tmp_path / "r.json")}
    config = OptionConfig(option="dualfast", low=0, high=1, nfe=3, options=options, **SMALL)
    nodes = grid(LAW, 3, "uniform")
    for scale, ratio in ((1.0, 0.5), (2.0, 1.5)):
        table = option.table_with(config, nodes, scale, None)
        given = samplers.build("unipc-3", nodes, compensate=[1, 1, ratio])
        assert np.array_equal(table.weights, given.weights)


def test_options_inside_others():
    assert with_option({"a": 1}, ["b"], 2.0) == {"a": 1, "b": 2.0}
    inside = {"dualfast": {"reference": "first", "strength": 0.0}}
    after = with_option(inside, ["dualfast", "strength"], 0.5)
    assert after == {"dualfast": {"reference": "first", "strength": 0.5}}
    assert inside["dualfast"]["strength"] == 0.0
    with pytest.raises(ValueError, match=r"dualfast is 0\.1, which has no strength"):
        with_option({"dualfast": 0.1}, ["dualfast", "strength"], 0.5)


def test_what_cannot_be_looked_for_is_said(model, tmp_path):
    def find(**changes):
        asked = {"option": "dualfast", "low": 0, "high": 1, "nfe": 3, **SMALL, **changes}
        return find_option(OptionConfig(**asked), model, tmp_path)

    with pytest.raises(ValueError, match="draws noise or has stages"):
        find(solver="ddpm")
    with pytest.raises(ValueError, match=r"unipc-3 with strenght: .*strenght"):
        find(option="strenght")
    with pytest.raises(ValueError, match="low must be below high"):
        find(low=2)


@pytest.mark.parametrize("name", configs.names("search/option"))
def test_packaged_settings_are_valid(name):
    configs.checked(OptionConfig, configs.read(configs.find("search/option", name)), name)
