"""Rewards by name."""

from __future__ import annotations

import pytest
import torch
from fewstep import zoo
from fewstep.eval.rewards import reward_of, total_reward


def test_statistics_of_images():
    """Of a board of -1 and 1, of a plain image, and of one half of each."""
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, 1, 4, 4)
    plain = torch.full((1, 1, 8, 8), 0.5)
    images = torch.cat([board, plain])
    assert reward_of("brightness")(images).tolist() == [0, 0.5]
    assert reward_of("contrast")(images).tolist() == pytest.approx([(64 / 63) ** 0.5, 0])
    assert reward_of("sharpness")(images).tolist() == [4, 0]
    assert reward_of("-30*brightness")(images).tolist() == [0, -15]
    assert total_reward(["brightness", "2*sharpness"])(images).tolist() == [8, 0.5]


def test_classes_of_digits(tmp_path):
    digits = zoo.mnist()
    images, labels = digits.images[::200], digits.labels[::200]
    told = torch.stack([reward_of(f"class:{k}")(images) for k in range(10)], 1)
    assert (told.argmax(1) == labels).float().mean() > 0.95
    torch.testing.assert_close(told.exp().sum(1), torch.ones(len(images)))
    with pytest.raises(FileNotFoundError, match="no classifier"):
        reward_of(f"class:3@{tmp_path}")


def test_functions_by_their_path():
    assert reward_of("torch:sum")(torch.ones(3)) == 3
    for spec in ("torch:nothing", "nowhere.at.all:f"):
        with pytest.raises(ValueError, match="no such function"):
            reward_of(spec)
    with pytest.raises(ValueError, match="is no function"):
        reward_of("torch:__version__")
