"""Classifiers of noisy states, on images whose posterior is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fewstep import grid, samplers, schedules
from fewstep.eval.models import NetworkModel
from fewstep.eval.sources import open_images
from fewstep.guides.classifier import NoisyClassifier, load_noisy_classifier
from fewstep.guides.learn import levels_of, stratified_split, train_classifier
from fewstep.guides.settings import ClassifierConfig
from fewstep.samplers import guidance
from fewstep.schedules.files import to_dict
from fewstep.training import TrainingSettings
from fewstep.zoo.data.labels import Labels
from torch import nn

LAW = schedules.VPLinear()
SMALL = {
    "block_out_channels": [16],
    "down_block_types": ["DownBlock2D"],
    "norm_num_groups": 4,
}


def model_of(law=LAW):
    return NetworkModel("none", nn.Linear(1, 1), law, (1, 4, 4), None, lambda labels, size: None)


@pytest.fixture
def images(tmp_path):
    """Dark and bright images: all pixels -0.5 or 0.5, with as much noise in them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    values = (labels - 0.5)[:, None, None, None] + rng.normal(0, 0.5, (600, 4, 4, 1))
    pixels = ((values + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    path = tmp_path / "images.npz"
    np.savez(path, images=pixels, labels=labels)
    return str(path)


def settings(images, **changes):
    values = {
        "model": {"id": "none", "data": images},
        "network": SMALL,
        "train_batch_size": 64,
        "held_out": 0.1,
        "max_train_steps": 4,
        "validation_steps": 2,
        "checkpointing_steps": 2,
    }
    return ClassifierConfig(**values | changes)


def posterior(x, node):
    """p(bright | x): 16 pixels of mean +- .5 alpha and variance (.5 alpha)^2 + sigma^2."""
    variance = (0.5 * node.alpha) ** 2 + node.sigma**2
    return torch.sigmoid(node.alpha * x.flatten(1).sum(1) / variance)


def test_a_trained_classifier_is_near_the_posterior(images, tmp_path):
    config = settings(
        images, max_train_steps=150, learning_rate=5e-3, validation_steps=50, train_batch_size=128
    )
    folder = train_classifier(config, model_of(), tmp_path / "run")
    found = load_noisy_classifier(folder)
    assert load_noisy_classifier(tmp_path / "run").config == found.config
    generator = torch.Generator().manual_seed(1)
    for node in grid(LAW, 6, "uniform", end="min").nodes[:-1]:
        bright = torch.randint(2, (400,), generator=generator)
        x0 = bright[:, None, None, None] - 0.5
        x0 = x0 + 0.5 * torch.randn(400, 1, 4, 4, generator=generator)
        x = node.alpha * x0 + node.sigma * torch.randn(x0.shape, generator=generator)
        true, told = posterior(x, node), found.router()(x, node)[:, 1]
        # KL(true || told) in the mean.
        true, told = (torch.stack([p, 1 - p]).double().clamp_min(1e-9) for p in (true, told))
        assert (true * (true / told).log()).sum(0).mean() < 0.03
    said = json.loads((tmp_path / "run" / "accuracy.json").read_text())
    assert said["accuracy"][-1] > 0.97
    assert said["accuracy"][0] < 0.75
    assert said["sigma_over_alpha"] == sorted(said["sigma_over_alpha"], reverse=True)
    # On another form of the same levels it sees the same states.
    x = torch.randn(5, 1, 4, 4, generator=generator)
    there = grid(LAW, 4, "uniform").nodes[2]
    edm = schedules.Grid.from_sigmas([80.0, there.sigma / there.alpha, 0.0]).nodes[1]
    torch.testing.assert_close(
        found.log_probs(x / there.alpha, edm), found.log_probs(x, there), rtol=1e-4, atol=1e-5
    )
    # And its gradient leads to what it is asked for.
    exact = samplers.exact.gaussian(np.zeros(16), std=0.7)

    def flat(x, node):
        return exact(x.flatten(1), node).reshape(x.shape)

    table = samplers.build("dpmpp-2m", grid(LAW, 10, "uniform"))
    x = torch.randn(64, 1, 4, 4, generator=generator)
    towards = torch.arange(64) % 2
    guided = guidance.classifier(flat, found.towards(towards), 2.0)
    means = samplers.sample(guided, table, x).mean((1, 2, 3))
    assert means[towards == 1].mean() > 0.1
    assert means[towards == 0].mean() < -0.1


def test_a_training_that_was_stopped_goes_on_to_the_same_end(images, tmp_path):
    config = settings(images, max_train_steps=6)
    whole = load_noisy_classifier(train_classifier(config, model_of(), tmp_path / "whole"))

    def stop(done, total, text):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(config, model_of(), tmp_path / "cut", stop)
    cut = load_noisy_classifier(train_classifier(config, model_of(), tmp_path / "cut"))
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)


def test_labels_decide_what_is_learned(images, tmp_path):
    data = open_images(images)
    Labels((data.labels + torch.arange(600)) % 3, 3, data.identity).save(tmp_path / "labels")
    found = load_noisy_classifier(
        train_classifier(
            settings(images, labels=str(tmp_path / "labels"), flip=True, shift=1),
            model_of(),
            tmp_path / "run",
        )
    )
    assert found.head.out_features == 3
    # As many of each, and not the same ones.
    Labels((data.labels + torch.arange(600)).flip(0) % 3, 3, data.identity).save(
        tmp_path / "labels"
    )
    with pytest.raises(ValueError, match="other settings"):
        train_classifier(
            settings(images, labels=str(tmp_path / "labels"), flip=True, shift=1),
            model_of(),
            tmp_path / "run",
        )
    Labels(data.labels, 2, "others").save(tmp_path / "labels")
    with pytest.raises(ValueError, match="other images"):
        train_classifier(
            settings(images, labels=str(tmp_path / "labels")), model_of(), tmp_path / "no"
        )


def test_held_out_images_are_of_every_label():
    labels = Labels(torch.tensor([0] * 90 + [1] * 8 + [2] * 2), 3, "")
    out, kept = stratified_split(labels, 0.1, 0)
    assert labels.labels[out].bincount().tolist() == [9, 1, 1]
    assert sorted([*out.tolist(), *kept.tolist()]) == list(range(100))
    with pytest.raises(ValueError, match="label 1 has 1 images"):
        stratified_split(Labels(torch.tensor([0, 0, 1]), 2, ""), 0.1, 0)


@pytest.mark.parametrize(
    ("law", "spacing"),
    [(LAW, "uniform"), (schedules.EDM(), "karras"), (schedules.FlowMatching(), "uniform")],
)
def test_levels_are_those_of_the_law(law, spacing):
    alpha, sigma, times = levels_of(law, spacing)
    assert (alpha > 0).all()
    assert (times.diff() < 0).all()
    assert sigma[0] / alpha[0] > 50
    assert sigma[-1] / alpha[-1] < 0.05


def test_what_cannot_be_is_said(images, tmp_path):
    with pytest.raises(ValueError, match="they are one each"):
        NoisyClassifier(
            2, to_dict(LAW), block_out_channels=[8, 8], down_block_types=["DownBlock2D"]
        )
    with pytest.raises(FileNotFoundError, match="train minority"):
        load_noisy_classifier(tmp_path)
    bare = np.load(images)["images"]
    np.savez(tmp_path / "bare.npz", images=bare)
    with pytest.raises(ValueError, match="no classes of its own"):
        train_classifier(settings(str(tmp_path / "bare.npz")), model_of(), tmp_path / "no")
    assert isinstance(settings(images).training, TrainingSettings)
