from __future__ import annotations

import pytest
import torch
from fewstep import zoo
from fewstep.zoo import classifier as module
from fewstep.zoo.classifier import (
    Classifier,
    ClassifierConfig,
    accuracy,
    fit_classifier,
    load_classifier,
    shifted,
    train_classifier,
)


@pytest.fixture
def few(monkeypatch):
    """Train on 300 digits only."""
    images, labels = zoo.mnist()
    monkeypatch.setattr(module.datasets, "mnist", lambda: zoo.Images(images[:300], labels[:300]))


def test_the_packaged_digits():
    images, labels = zoo.mnist()
    assert images.shape == (10000, 1, 28, 28)
    assert (images.min(), images.max()) == (-1, 1)
    # Background dominates, and no class is rare.
    assert images.mean() < -0.6
    assert labels.bincount().min() > 800


def test_the_bundled_classifier_reads_digits_it_has_not_seen():
    images, labels = zoo.mnist()
    order = torch.randperm(10000, generator=torch.Generator().manual_seed(ClassifierConfig().seed))
    held_out = order[:1000]
    classifier = zoo.mnist_classifier()
    assert accuracy(classifier, images[held_out], labels[held_out]) >= 0.98
    features = classifier.features(images[:5])
    assert features.shape == (5, classifier.width)
    torch.testing.assert_close(classifier.head(features), classifier(images[:5]))


@pytest.mark.parametrize("architecture", ["pooled", "lenet"])
def test_architectures(architecture):
    classifier = Classifier(architecture, classes=7)
    images = torch.randn(3, 1, 28, 28)
    assert classifier(images).shape == (3, 7)
    assert 64 <= classifier.features(images).shape[1] <= 128


def test_shifts_move_each_image_and_bring_in_background():
    images = torch.full((200, 1, 28, 28), -1.0)
    images[:, 0, 10, 20] = 1
    moved = shifted(images, 2, torch.Generator().manual_seed(0))
    assert (moved.flatten(1).sum(1) == images.flatten(1).sum(1)).all()
    spots = {tuple(spot.tolist()) for spot in (moved[:, 0] == 1).nonzero()[:, 1:]}
    assert spots == {(10 + i, 20 + j) for i in range(-2, 3) for j in range(-2, 3)}
    assert torch.equal(shifted(images, 0, torch.Generator()), images)


def test_training_is_reproducible_and_leaves_the_global_stream(few):
    config = ClassifierConfig(epochs=3, batch_size=50)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, score = fit_classifier(config)
    assert torch.equal(torch.rand(3), expected)
    second, again = fit_classifier(config)
    assert score == again > 0.3
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_saved_classifier_is_the_same(few, tmp_path):
    seen = []
    config = ClassifierConfig(architecture="lenet", epochs=1)
    folder = train_classifier(
        config, tmp_path / "new", lambda done, total, text: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    classifier = load_classifier(folder)
    expected, _ = fit_classifier(config)
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(classifier(images), expected(images))
    assert not classifier.training


def test_smoothed_labels_keep_probabilities_from_the_ends(monkeypatch):
    """Without smoothing a classifier that has learned its images by heart is surer of them."""
    images, labels = zoo.mnist()
    some = zoo.Images(images[::100], labels[::100])
    monkeypatch.setattr(module.datasets, "mnist", lambda: some)

    def sure(smoothing):
        config = ClassifierConfig(epochs=25, batch_size=30, shift=0, label_smoothing=smoothing)
        classifier, _ = fit_classifier(config)
        return float(classifier(some.images).softmax(1).amax(1).mean())

    assert sure(0.0) > sure(0.3) + 0.05
