import pytest
import torch
from fewstep import zoo
from fewstep.eval.extractors.bundled import mnist_classifier, pixels


def digits(count):
    images, labels = zoo.mnist()
    return ((images[:count] + 1) * 127.5).round().to(torch.uint8), labels[:count]


def test_pixels_are_the_features():
    batch = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 2, 2) * 10
    out = pixels()(batch).features
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.arange(24.0).reshape(2, 12) * 10 / 255)
    assert pixels(1)(batch[:, :1]).features.shape == (2, 4)
    assert pixels(1).fingerprint != pixels(3).fingerprint


def test_too_many_pixels_are_refused():
    assert pixels(1)(torch.zeros(1, 1, 64, 64, dtype=torch.uint8)).features.shape == (1, 4096)
    with pytest.raises(ValueError, match=r"12288 numbers, too many .* \(at most 4096\)"):
        pixels()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_the_classifier_reads_digits():
    batch, labels = digits(200)
    out = mnist_classifier()(batch)
    assert out.features.shape == (200, 64)
    assert (out.logits.argmax(1) == labels).float().mean() > 0.97


def test_the_features_are_those_of_the_bundled_classifier():
    batch, _ = digits(20)
    classifier = zoo.mnist_classifier()
    inputs = batch.float() / 127.5 - 1
    out = mnist_classifier()(batch)
    assert torch.allclose(out.features, classifier.features(inputs), atol=1e-6)
    assert torch.allclose(out.logits, classifier(inputs), atol=1e-5)


def test_the_classifier_says_what_it_is(monkeypatch):
    first = mnist_classifier()
    assert (first.name, first.channels) == ("mnist-classifier-64", 1)
    other = zoo.mnist_classifier()
    other.head.bias += 1
    monkeypatch.setattr(zoo, "mnist_classifier", lambda: other)
    assert mnist_classifier().fingerprint != first.fingerprint


def test_the_classifier_refuses_other_images():
    with pytest.raises(ValueError, match="28 x 28, not 32 x 32"):
        mnist_classifier()(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="have 3 channels"):
        mnist_classifier()(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))
