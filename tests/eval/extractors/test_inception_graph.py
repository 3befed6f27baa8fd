import importlib

import pytest
import torch
from fewstep.eval.extractors.inception_graph import MANIFEST, TRUNK, Inception, Mixed, manifest


def random_state(network):
    """Weights that keep the size of activations, in an order that does not depend on ours."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in sorted(network.state_dict().items()):
        draw = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            state[name] = draw * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = 1 + 0.5 * draw.tanh()
        else:
            state[name] = 0.1 * draw
    return state


@pytest.fixture(scope="module")
def network():
    network = Inception().eval().requires_grad_(False)
    network.load_state_dict(random_state(network), strict=True)
    return network


@pytest.fixture(scope="module")
def pixels():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8, generator=generator)


def test_names_and_shapes_are_the_published_ones():
    # Of the 472 tensors of pytorch-fid's file.
    with torch.device("meta"):
        state = Inception().state_dict()
    assert len(state) == 472
    assert sum(value.numel() for value in state.values()) == 23_885_392
    expected = "bd04e829988dd22dd0bbf9e499a87af311ed57c1b4309a9d20a907d8ed4123d4"
    assert manifest(state) == MANIFEST == expected
    assert manifest(dict(reversed(state.items()))) == expected
    assert manifest({**state, "fc.bias": state["fc.bias"][:-1]}) != expected


@pytest.fixture(scope="module")
def seen(network, pixels):
    """What one pass returns, and the whole map that `spatial` is cut from."""
    maps = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: maps.append(call[-1]))
    outputs = network((pixels.float() - 128) / 128)
    hook.remove()
    return outputs, maps[0]


def test_shapes(seen):
    assert [list(part.shape) for part in seen[0]] == [[2, 2048], [2, 1008], [2, 2023]]
    assert all(part.isfinite().all() for part in seen[0])


def test_features_and_logits_are_known(seen):
    # torch-fidelity 0.4.0 with these weights on the first image: 2048 and logits_unbiased.
    features, logits = seen[0].features[0, [0, 1000, 2040]], seen[0].logits[0, [0, 500, 1007]]
    expected = torch.tensor([15.0894747, 0.0728381, 13.5054684])
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    expected = torch.tensor([-20.5107746, 4.9975338, 32.3402367])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_spatial_is_pixel_by_pixel_seven_channels(seen):
    outputs, whole = seen
    assert whole.shape == (2, 192, 17, 17)
    spatial = outputs.spatial.view(2, 17, 17, 7)
    assert (spatial > 0).any((0, 1, 2)).all()
    assert torch.equal(spatial.permute(0, 3, 1, 2), whole[:, :7])


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 299, 299), (3, 299, 299)])
def test_images_of_another_shape_are_refused(network, shape):
    with pytest.raises(ValueError, match="Inception takes images"):
        network(torch.zeros(shape))


def pooled(name, x):
    """The first channel of `x` after the pool of a block, whose convolution passes it on."""
    block = Mixed(x.shape[1], TRUNK[name]).requires_grad_(False)
    block.branch_pool.conv.weight.zero_()[0, 0] = 1
    # The normalisation divides by sqrt(variance + 0.001), and variance is 1.
    return block(x)[:, block.width - block.branch_pool.width] * 1.001**0.5


AVERAGED = [name for name in TRUNK if name.startswith("Mixed") and name[-2:] not in "6a 7a 7c"]


@pytest.mark.parametrize("name", AVERAGED)
def test_an_average_is_over_pixels_that_exist(name):
    assert len(AVERAGED) == 8
    torch.testing.assert_close(pooled(name, torch.ones(1, 3, 8, 8)), torch.ones(1, 8, 8))
    spike = torch.zeros(1, 3, 8, 8)
    spike[..., 4, 4] = 1
    expected = torch.zeros(1, 8, 8)
    expected[:, 3:6, 3:6] = 1 / 9
    torch.testing.assert_close(pooled(name, spike), expected)


def test_the_last_block_takes_the_maximum():
    spike = torch.zeros(1, 3, 8, 8)
    spike[..., 4, 4] = 1
    expected = torch.zeros(1, 8, 8)
    expected[:, 3:6, 3:6] = 1
    torch.testing.assert_close(pooled("Mixed_7c", spike), expected)


def test_normalisation_does_not_learn(network, pixels):
    x = (pixels[:1].float() - 128) / 128
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network.Conv2d_1a_3x3(x)
    network.train()
    torch.testing.assert_close(network.Conv2d_1a_3x3(x), expected, rtol=0, atol=0)
    network.eval()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_features_are_those_of_torch_fidelity(network, pixels, tmp_path):
    # Its import fails without torchvision.
    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    theirs = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    oracle = theirs.FeatureExtractorInceptionV3(
        "oracle", ["2048", "logits_unbiased"], str(tmp_path / "weights.pth")
    )
    outputs = network((pixels.float() - 128) / 128)
    for found, expected in zip(outputs, oracle(pixels), strict=False):
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
