from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fewstep.eval.bench.contestant import check_plan, contestant, real_images
from fewstep.eval.progress import silent
from fewstep.eval.settings import ModelConfig
from fewstep.eval.sources import in_memory
from fewstep.eval.statistics import collect_statistics

from .fakes import config, data, model, ready, rows


def test_guidance_needs_something_to_guide():
    free = replace(model(), classes=None)
    check_plan(config(guidance=[1, 2]), "gaussian", model())
    check_plan(config(), "gaussian", free)
    with pytest.raises(ValueError, match="guidance 2: gaussian has no classes"):
        check_plan(config(guidance=[1, 2]), "gaussian", free)


def test_two_extractors_of_one_name_are_refused():
    known = collect_statistics(in_memory("gauss", data()), rows())
    with pytest.raises(ValueError, match="two extractors are called rows-4"):
        contestant("gaussian", model(), [(rows(), known), (rows(), known)], ("frechet",))


def test_a_key_sees_every_part_of_the_statistics():
    one = ready(metrics=("frechet", "kernel"))
    assert ready(metrics=("frechet", "kernel")).key == one.key
    known = one.statistics["rows-4"]
    for changed in (
        replace(known, members=known.members[:-1]),
        replace(known, features=replace(known.features, n=599)),
        replace(known, features=replace(known.features, cov=2 * known.features.cov)),
        replace(known, spatial=known.features),
    ):
        assert replace(one, statistics={"rows-4": changed}).key != one.key
    assert ready(metrics=("frechet",)).key != one.key


@pytest.mark.parametrize("convention", ["clean", "torch"])
def test_the_resize_behind_a_foreign_file_can_be_said(tmp_path, convention):
    np.savez(tmp_path / "edm.npz", mu=np.zeros(4), sigma=np.eye(4))
    asked = ModelConfig(id="m", statistics=tmp_path / "edm.npz", convention=convention)
    inception = replace(rows(), name="inception")
    found = real_images(asked, inception, tmp_path, 10, silent)
    assert found.facts["resize"] == f"{convention} to 299"


def test_statistics_of_two_options_of_an_extractor_stand_side_by_side(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=data()[:60].permute(0, 2, 3, 1).numpy())
    asked = ModelConfig(id="m", data=str(tmp_path / "images.npz"))
    for layer in ("means", "sums", "means"):
        found = real_images(asked, replace(rows(), facts={"layer": layer}), tmp_path, 10, silent)
        assert found.facts["layer"] == layer
    assert len(list((tmp_path / "statistics").iterdir())) == 2
