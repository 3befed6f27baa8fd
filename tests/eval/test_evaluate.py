from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.eval.evaluate import (
    first_outputs,
    is_statistics,
    outputs_of,
    reference_statistics,
    score_images,
    statistics_of,
    with_members,
)
from fewstep.eval.formats import save_statistics
from fewstep.eval.metrics import Moments, frechet_distance, moments
from fewstep.eval.progress import silent
from fewstep.eval.settings import ModelConfig
from fewstep.eval.sources import in_memory
from fewstep.eval.statistics import Statistics, collect_statistics

from .bench.fakes import data, rows
from .exact import bands, random_pixels


def images(count=40, seed=0):
    pixels = random_pixels(count, seed=seed).transpose(0, 3, 1, 2)
    return in_memory("noise", torch.from_numpy(pixels.copy()))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_outputs_are_those_of_all_images_in_order(batch_size):
    seen = []
    found = outputs_of(images(), bands(), batch_size, lambda *each: seen.append(each))
    whole = bands()(images().read(range(40)))
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))
    assert seen[-1] == (40, 40, "bands: noise")
    plain = outputs_of(images(), bands(more=False), batch_size)
    assert plain.logits is None
    assert plain.spatial is None
    assert torch.equal(plain.features, whole.features)


def test_the_first_outputs_are_of_two_images_or_one():
    assert len(first_outputs(images(), bands()).features) == 2
    assert len(first_outputs(images(1), bands()).features) == 1


def test_a_score_is_that_of_the_features():
    real = collect_statistics(images(seed=1), bands())
    found = score_images(images(), real, bands(), ("frechet",), batch_size=9)
    sides = (moments(bands()(images(seed=seed).read(range(40))).features) for seed in (0, 1))
    assert found["frechet"].value == pytest.approx(frechet_distance(*sides), rel=1e-9)


def test_consecutive_chunks_are_to_be_had():
    # Two classes, one after the other: in each chunk there is one.
    pixels = torch.zeros(40, 1, 4, 4, dtype=torch.uint8)
    pixels[:20, :, 0], pixels[20:, :, 1] = 1, 1
    real = collect_statistics(images(seed=1), bands())
    sorted_set = in_memory("sorted", pixels)
    in_order, shuffled = (
        score_images(sorted_set, real, bands(), ("score",), shuffle=shuffle)["score"].value
        for shuffle in (False, True)
    )
    assert in_order == pytest.approx(1)
    assert shuffled > 1.3


def test_what_is_wrong_is_found_out_before_the_last_image_is_read():
    real = collect_statistics(images(), bands(more=False))
    seen = []
    with pytest.raises(ValueError, match="score needs logits"):
        score_images(
            images(),
            real,
            bands(more=False),
            ["score"],
            progress=lambda *each: seen.append(each),
        )
    assert not seen


def test_a_reference_is_a_file_or_images(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=random_pixels(40))
    made = reference_statistics(str(tmp_path / "images.npz"), bands(), members=7)
    assert made.members.shape == (7, 4)
    save_statistics(made, tmp_path / "made.npz")
    found = reference_statistics(str(tmp_path / "made.npz"), bands())
    assert torch.equal(found.features.cov, made.features.cov)
    small = reference_statistics(str(tmp_path / "images.npz"), bands(), size=4)
    assert small.origin["size"] == [1, 4, 4]
    with pytest.raises(ValueError, match="are images: the extractor resizes them"):
        reference_statistics(str(tmp_path / "images.npz"), bands(), convention="clean")


def test_what_holds_statistics(tmp_path):
    for name in ("mu", "sigma", "pool_3", "feats", "arr_0"):
        np.savez(tmp_path / f"{name}.npz", **{name: np.zeros(3), "other": np.zeros(2)})
        assert is_statistics(tmp_path / f"{name}.npz") == (name != "arr_0")
    assert is_statistics(tmp_path / "absent.pkl")
    assert not is_statistics(tmp_path / "absent.npz")
    assert not is_statistics(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        is_statistics(tmp_path / "a.npz")


def test_images_beside_moments_give_features_too(tmp_path):
    """As in ADM's files: moments of everything, and 10,000 of the images."""
    path = tmp_path / "VIRTUAL.npz"
    pixels = random_pixels(12)
    np.savez(path, mu=np.zeros(4), sigma=np.eye(4), arr_0=pixels)
    real = Statistics({"extractor": "bands"}, Moments(None, torch.zeros(4).double(), COV))
    found = with_members(real, str(path), bands(), batch_size=5)
    assert torch.equal(found.members, outputs_of(images(12), bands()).features)
    assert found.features is real.features
    # What is there stays, and what is not cannot be had.
    assert with_members(found, str(path), bands()) is found
    np.savez(path, mu=np.zeros(4), sigma=np.eye(4))
    assert with_members(real, str(path), bands()) is real


COV = torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize("convention", ["clean", "torch"])
def test_the_resize_behind_a_foreign_file_can_be_said(tmp_path, convention):
    np.savez(tmp_path / "edm.npz", mu=np.zeros(4), sigma=np.eye(4))
    asked = ModelConfig(id="m", statistics=tmp_path / "edm.npz", convention=convention)
    inception = replace(rows(), name="inception")
    found = statistics_of(asked, inception, tmp_path, 10, silent)
    assert found.facts["resize"] == f"{convention} to 299"


def test_statistics_of_two_options_of_an_extractor_stand_side_by_side(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=data()[:60].permute(0, 2, 3, 1).numpy())
    asked = ModelConfig(id="m", data=str(tmp_path / "images.npz"))
    for layer in ("means", "sums", "means"):
        found = statistics_of(asked, replace(rows(), facts={"layer": layer}), tmp_path, 10, silent)
        assert found.facts["layer"] == layer
    assert len(list((tmp_path / "statistics").iterdir())) == 2
