"""Image data for trainings: the packaged digits, and files like them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep import zoo
from fewstep.eval.sources import open_images
from fewstep.zoo.data import identity, load_images


def test_the_digits_are_those_of_the_evaluations():
    digits = load_images("mnist")
    assert torch.equal(digits.images, zoo.mnist().images)
    assert identity(digits) == open_images("mnist").identity


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_files_like_them(channels, tmp_path):
    rng = np.random.default_rng(0)
    shape = (5, 4, 6) if channels is None else (5, 4, 6, channels)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "images.npz"
    np.savez(path, images=pixels, labels=np.arange(5))
    found = load_images(str(path))
    assert found.images.shape == (5, channels or 1, 4, 6)
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    expected = pixels.reshape(5, 4, 6, -1).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(found.images.numpy(), expected, atol=1e-6)
    assert identity(found) == open_images(str(path)).identity


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((2, 3, 3), np.float32), "labels": np.arange(2)},
        {"images": np.zeros((2, 3, 3), np.uint8), "labels": np.arange(3)},
        {"images": np.zeros((2, 3, 3), np.uint8), "labels": np.array([0.5, 1])},
        {"images": np.zeros((2, 3, 3), np.uint8), "labels": np.array([0, -1])},
        {"images": np.zeros((2, 3, 3), np.uint8)},
        {"images": np.zeros(4, np.uint8), "labels": np.arange(4)},
    ],
)
def test_other_files_are_refused(arrays, tmp_path):
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(ValueError, match=r"neither mnist nor an \.npz"):
        load_images(str(tmp_path / "images.npz"))
    with pytest.raises(ValueError, match="neither mnist"):
        load_images("cifar")
