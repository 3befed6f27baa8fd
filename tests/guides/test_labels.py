"""Labels that data get: levels of rarity, parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep import samplers, schedules, zoo
from fewstep.eval.models import NetworkModel
from fewstep.eval.sources import open_images
from fewstep.guides import labels as module
from fewstep.guides.labels import label_minority, label_parts, quantile_labels
from fewstep.guides.settings import MinorityConfig, PartsConfig
from fewstep.zoo.data import identity
from fewstep.zoo.data.labels import Labels, load_labels
from torch import nn

LAW = schedules.VPLinear()


def normal_model(calls=None):
    """A model of images that are standard normal but for their mean, -0.5, known in closed form."""
    exact = samplers.exact.gaussian(np.full(16, -0.5), std=0.2)

    def denoiser(labels, size):
        def call(x, node):
            if calls is not None:
                calls.append(len(x))
            return exact(x.flatten(1), node).reshape(x.shape)

        return call

    return NetworkModel("normal", nn.BatchNorm1d(1), LAW, (1, 4, 4), None, denoiser)


@pytest.fixture
def images(tmp_path):
    """Forty images near the mean and ten far from it, as a file."""
    rng = np.random.default_rng(0)
    near = rng.normal(-0.5, 0.2, (40, 4, 4, 1))
    far = rng.normal(0.5, 0.2, (10, 4, 4, 1))
    pixels = ((np.concatenate([near, far]) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    path = tmp_path / "images.npz"
    np.savez(path, images=pixels, labels=np.arange(50) % 2)
    return str(path)


def test_levels_are_of_equal_size_and_rise():
    scores = torch.randn(103, generator=torch.Generator().manual_seed(0))
    labels = quantile_labels(scores, 10)
    counts = labels.bincount()
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 1
    order = scores.argsort()
    assert (labels[order].diff() >= 0).all()
    # Thresholds belong to the level below: q_(j-1) < l <= q_j.
    assert quantile_labels(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), 2).tolist() == [0, 0, 0, 1, 1]


def test_levels_within_groups():
    scores = torch.cat([torch.arange(20.0), 100 + torch.arange(20.0)])
    groups = torch.arange(40) // 20
    assert quantile_labels(scores, 2, groups).tolist() == ([0] * 10 + [1] * 10) * 2
    assert quantile_labels(scores, 2).tolist() == [0] * 20 + [1] * 20
    with pytest.raises(ValueError, match="too few for 30 levels"):
        quantile_labels(scores, 30, groups)


def test_rare_images_are_in_the_last_levels(images, tmp_path):
    """Scores are those of the closed form, and images far from the mean have the greatest."""
    config = MinorityConfig(model={"id": "normal", "data": images}, levels=5, draws=20, time=0.5)
    found = label_minority(config, normal_model(), tmp_path / "out")
    assert found.labels[40:].tolist() == [4] * 10
    assert (tmp_path / "out" / "levels.png").exists()
    with np.load(tmp_path / "out" / "scores.npz") as file:
        scores = file["scores"]
    # l = |(1 - alpha g)(x0 - mean)|^2 + sigma^2 D g^2, g = alpha v / (alpha^2 v + sigma^2).
    alpha, sigma, v = float(LAW.alpha(0.5)), float(LAW.sigma(0.5)), 0.04
    g = alpha * v / (alpha**2 * v + sigma**2)
    x0 = open_images(images).read(range(50)).double() / 127.5 - 1
    expected = (1 - alpha * g) ** 2 * (x0 + 0.5).square().flatten(1).sum(1) + sigma**2 * 16 * g**2
    assert np.abs(scores / expected.numpy() - 1).max() < 0.1
    assert np.abs((scores / expected.numpy()).mean() - 1) < 0.01
    again = load_labels(tmp_path / "out", open_images(images).identity)
    assert torch.equal(again.labels, found.labels)
    assert again.classes == 5
    assert again.facts["draws"] == 20


def test_scores_that_are_there_are_not_made_again(images, tmp_path):
    config = MinorityConfig(model={"id": "normal", "data": images}, levels=2, draws=2, batch_size=8)
    whole = label_minority(config, normal_model(), tmp_path / "whole")

    def stop(done, total, text):
        if done >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_minority(config, normal_model(), tmp_path / "cut", stop)
    calls = []
    cut = label_minority(config, normal_model(calls), tmp_path / "cut")
    assert sum(calls) == 2 * (50 - 24)
    assert torch.equal(whole.labels, cut.labels)
    other = config.model_copy(update={"time": 0.3})
    calls.clear()
    label_minority(other, normal_model(calls), tmp_path / "cut")
    assert sum(calls) == 2 * 50


def test_levels_within_the_classes_of_the_data(images, tmp_path):
    config = MinorityConfig(
        model={"id": "normal", "data": images}, levels=5, draws=2, per_class=True
    )
    found = label_minority(config, normal_model(), tmp_path)
    for each in (0, 1):
        assert found.labels[each::2].bincount().tolist() == [5] * 5


def test_images_of_another_shape_are_refused(images, tmp_path):
    config = MinorityConfig(model={"id": "normal", "data": "mnist"}, levels=5)
    with pytest.raises(ValueError, match=r"samples of \[1, 4, 4\].*\[1, 28, 28\]"):
        label_minority(config, normal_model(), tmp_path)
    config = MinorityConfig(model={"id": "normal"}, levels=5)
    with pytest.raises(ValueError, match="which images"):
        label_minority(config, normal_model(), tmp_path)


@pytest.fixture
def few(monkeypatch):
    digits = zoo.mnist()
    some = zoo.Images(digits.images[::25], digits.labels[::25])
    monkeypatch.setattr(zoo, "mnist", lambda: some)
    return some


def test_parts_of_classes(few, tmp_path):
    groups = ((0, 6), (1, 2), (3, 5, 8), (4, 7, 9))
    found = label_parts(PartsConfig(by="classes", groups=groups), tmp_path)
    for k, group in enumerate(groups):
        assert {*few.labels[found.labels == k].tolist()} == {*group}
    assert found.data == identity(few)
    assert (tmp_path / "parts.png").exists()
    with pytest.raises(ValueError, match="class 9 is in none"):
        label_parts(PartsConfig(by="classes", groups=((0, 1, 2, 3, 4), (5, 6, 7, 8))), tmp_path)


@pytest.mark.parametrize("fine", [3, 40, 1000])
def test_parts_by_features_are_clusters(monkeypatch, tmp_path, fine):
    """Three clouds far apart are three parts, whatever the number of centroids in between."""
    rng = np.random.default_rng(1)
    which = rng.integers(0, 3, 300)
    cloud = torch.from_numpy(np.array([[0, 0], [9, 0], [0, 9]])[which] + rng.normal(size=(300, 2)))
    monkeypatch.setattr(module, "outputs_of", lambda *given: type("O", (), {"features": cloud}))
    monkeypatch.setattr(module, "picture", lambda *given: None)
    found = label_parts(PartsConfig(parts=3, fine=fine), tmp_path)
    for each in range(3):
        assert len({*found.labels[torch.from_numpy(which == each)].tolist()}) == 1
    assert len({*found.labels.tolist()}) == 3
    again = label_parts(PartsConfig(parts=3, fine=fine), tmp_path)
    assert torch.equal(again.labels, found.labels)


def test_parts_that_cannot_be(few, tmp_path):
    with pytest.raises(ValueError, match="too few for 500 parts"):
        label_parts(PartsConfig(parts=500), tmp_path)
    with pytest.raises(ValueError, match="go with by: classes"):
        PartsConfig(groups=((1,),))
    with pytest.raises(ValueError, match="is in one of them"):
        PartsConfig(by="classes", groups=((1, 2), (2, 3)))


def test_labels_are_checked_and_damage_is_said(tmp_path):
    labels = Labels(torch.tensor([0, 2, 1]), 3, "abc", {"said": [1]})
    labels.save(tmp_path)
    again = load_labels(tmp_path / "labels.safetensors", "abc")
    assert (again.labels.tolist(), again.classes, again.facts) == ([0, 2, 1], 3, {"said": [1]})
    assert again.shares.tolist() == pytest.approx([1 / 3] * 3)
    with pytest.raises(ValueError, match="other images"):
        load_labels(tmp_path, "other")
    with pytest.raises(FileNotFoundError, match="train parts"):
        load_labels(tmp_path / "no")
    with pytest.raises(ValueError, match="each 0 to 1"):
        Labels(torch.tensor([0, 2]), 2, "abc")
    path = tmp_path / "labels.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged"):
        load_labels(tmp_path)
