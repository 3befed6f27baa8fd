from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.eval.extractors import Extractor, extractor
from fewstep.eval.sources import in_memory
from fewstep.eval.statistics import check_comparable, collect_statistics, facts_of
from torch import nn

from .exact import bands, random_pixels

COUNT = 103
# Class by class: what is near in the file is alike.
PIXELS = np.sort(random_pixels(COUNT, size=4), axis=0).transpose(0, 3, 1, 2).copy()
IMAGES = in_memory("images", torch.from_numpy(PIXELS))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_moments_are_those_of_numpy(batch_size):
    found = collect_statistics(IMAGES, extractor("pixels", channels=1), batch_size=batch_size)
    truth = (PIXELS.reshape(COUNT, -1).astype(np.float32) / np.float32(255)).astype(np.float64)
    assert found.features.n == COUNT
    np.testing.assert_allclose(found.features.mean, truth.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.features.cov, np.cov(truth.T), rtol=1e-10, atol=1e-15)
    assert found.spatial is None
    assert torch.equal(found.members, torch.from_numpy(truth).float())


def test_spatial_maps_have_moments_of_their_own():
    found = collect_statistics(IMAGES, bands(), batch_size=10)
    truth = PIXELS[:, 0, :2, :3].reshape(COUNT, 6).astype(np.float64)
    np.testing.assert_allclose(found.spatial.mean, truth.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.spatial.cov, np.cov(truth.T), rtol=1e-10)
    assert found.spatial.n == COUNT


@pytest.mark.parametrize("members", [0, 1, 10, 50, COUNT, 10**6])
def test_members_are_spread_evenly(members):
    ramp = torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    found = collect_statistics(in_memory("ramp", ramp), bands(), members=members, batch_size=10)
    if members == 0:
        assert found.members is None
        return
    rows = found.members[:, 0].numpy()
    assert len(rows) == min(members, COUNT)
    gaps = np.diff([*rows, COUNT + rows[0]])
    assert gaps.max() - gaps.min() <= 1


def test_the_origin_says_which_images():
    seen = []
    found = collect_statistics(
        IMAGES, bands(), batch_size=50, progress=lambda *each: seen.append(each)
    )
    assert found.origin == {"images": "images", "count": COUNT, "size": [1, 4, 4], "lossy": False}
    assert [each[:2] for each in seen] == [(50, COUNT), (100, COUNT), (COUNT, COUNT)]


def test_features_that_are_not_finite_name_the_image():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.where(x == 7, torch.nan, x).flatten(1)

    pixels = torch.zeros(20, 1, 2, 2, dtype=torch.uint8)
    pixels[13, 0, 1, 1] = 7
    broken = Extractor("broken", Broken(), torch.Tensor.float, {}, 1)
    with pytest.raises(ArithmeticError, match="1 of 8 images, first: number 13 of zeros"):
        collect_statistics(in_memory("zeros", pixels), broken, batch_size=8)


def test_one_image_has_no_statistics():
    with pytest.raises(ValueError, match="has 1 images"):
        collect_statistics(in_memory("one", IMAGES.read([0])), bands())


def test_other_conventions_are_refused():
    first = bands(resize="tf1 to 299", weights="a")
    found = collect_statistics(IMAGES, first)
    check_comparable(found, first)
    for name, value in (("resize", "clean to 299"), ("weights", "b"), ("layer", "logits")):
        other = replace(first, facts={**first.facts, name: value})
        with pytest.raises(ValueError, match=f"{name}: '.*' there, '{value}' here"):
            check_comparable(found, other)
    with pytest.raises(ValueError, match="extractor: 'bands' there, 'other' here"):
        check_comparable(found, replace(first, name="other"))


def test_containers_of_one_network_are_comparable():
    files = [bands(container=each) for each in ("TorchScript", "state dict")]
    assert facts_of(files[0]) == facts_of(files[1])
    check_comparable(collect_statistics(IMAGES, files[0]), files[1])


def test_what_a_file_does_not_say_is_not_held_against_it():
    known = collect_statistics(IMAGES, bands(resize="tf1 to 299", weights="a"))
    silent = replace(known, facts={"extractor": "bands", "resize": "tf1 to 299"})
    check_comparable(silent, bands(resize="tf1 to 299", weights="a"))


def test_members_of_another_width_are_refused():
    found = collect_statistics(IMAGES, bands())
    with pytest.raises(ValueError, match="4 means and other features"):
        check_comparable(replace(found, members=found.members[:, :3]), bands())
