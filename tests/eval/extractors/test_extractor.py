import pytest
import torch
from fewstep.eval.extractors.extractor import Extractor, Outputs, unrounded, with_channels
from fewstep.eval.precision import full_precision
from torch import nn


def images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def small(channels=3, network=None, **facts):
    if network is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))
    return Extractor("small", network, lambda x: x.float() / 255, facts, channels)


def test_features_are_those_of_the_network():
    extractor, batch = small(), images(4, 3, 8, 8)
    out = extractor(batch)
    assert out.logits is None
    assert out.spatial is None
    assert not out.features.requires_grad
    assert torch.equal(out.features, extractor.network(batch.float() / 255))


def test_the_other_outputs_are_kept_in_float32():
    class Network(nn.Module):
        def forward(self, x):
            return Outputs(x.flatten(1).double(), x.mean((2, 3)).half())

    out = small(network=Network())(images(2, 3, 8, 8))
    assert out.features.dtype == out.logits.dtype == torch.float32
    assert out.logits.shape == (2, 3)
    assert out.spatial is None


def test_autocast_changes_nothing():
    extractor, batch = small(), images(4, 3, 8, 8)
    expected = extractor(batch).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert extractor.network(batch.float() / 255).dtype == torch.bfloat16
        assert torch.equal(extractor(batch).features, expected)


def test_tf32_is_off_inside_and_restored():
    seen = []

    class Network(nn.Module):
        def forward(self, x):
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            return x.flatten(1)

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        small(network=Network())(images(1, 3, 2, 2))
        after = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        with pytest.raises(KeyError), full_precision("cpu"):
            raise KeyError
        still = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    assert seen == [(False, False)]
    assert after == still == (True, True)


def test_a_gray_image_is_repeated():
    extractor, gray = small(), images(4, 1, 8, 8)
    assert torch.equal(extractor(gray).features, extractor(gray.repeat(1, 3, 1, 1)).features)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ],
    ids=["float", "int64", "one image"],
)
def test_only_batches_of_uint8_are_taken(wrong):
    with pytest.raises(ValueError, match="takes uint8 images"):
        small()(wrong)


@pytest.mark.parametrize(("found", "wanted"), [(3, 1), (4, 3), (2, 3)])
def test_other_channels_are_refused(found, wanted):
    with pytest.raises(ValueError, match=f"have {found} channels, the extractor takes {wanted}"):
        with_channels(images(2, found, 8, 8), wanted)


def test_the_fingerprint_is_of_the_name_and_all_facts():
    first = small(weights="a", resize="b").fingerprint
    assert len(first) == 16
    assert small(resize="b", weights="a").fingerprint == first
    assert small(weights="a", resize="c").fingerprint != first
    assert small(weights="a").fingerprint != first
    assert Extractor("other", nn.Identity(), abs, {"weights": "a", "resize": "b"}).fingerprint != (
        first
    )


def test_to_moves_the_network_and_keeps_the_rest():
    extractor = small(weights="a")
    moved = extractor.to("meta")
    assert next(moved.network.parameters()).device.type == "meta"
    assert (moved.name, moved.facts, moved.prepare) == (
        extractor.name,
        extractor.facts,
        extractor.prepare,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_unrounded_features_are_those_of_levels_between(channels):
    given = images(4, channels, 8, 8)
    extractor = small()
    torch.testing.assert_close(
        unrounded(extractor, given.float() / 127.5 - 1),
        extractor(given).features,
        atol=1e-5,
        rtol=0,
    )
    between = unrounded(extractor, given.float() / 127.5 - 1 + 0.001)
    assert 0 < (between - extractor(given).features).abs().max() < 0.1
