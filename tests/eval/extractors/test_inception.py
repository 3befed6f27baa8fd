import importlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fewstep.eval.extractors.inception import NVIDIA, WEIGHTS, inception
from fewstep.eval.extractors.inception_graph import Inception
from fewstep.eval.extractors.resize import RESIZES
from fewstep.eval.extractors.weights import MissingWeights, sha256_of
from torch import nn

# Not the function of the same name.
module = importlib.import_module("fewstep.eval.extractors.inception")


class Detector(nn.Module):
    """What NVIDIA's file takes and returns, around three numbers: the means of the channels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 2048)[:, None] * torch.ones(3))
        self.output = nn.Parameter(torch.linspace(0, 1, 1008)[:, None] * torch.ones(2048) / 100)
        self.bias = nn.Parameter(torch.linspace(5, -5, 1008))

    def forward(
        self,
        img: torch.Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> torch.Tensor:
        theta = torch.eye(2, 3)
        theta[0, 2] = 1 / img.shape[3] - 1 / 299
        theta[1, 2] = 1 / img.shape[2] - 1 / 299
        size = [img.shape[0], 3, 299, 299]
        grid = F.affine_grid(theta.expand(img.shape[0], 2, 3), size, align_corners=False)
        x = F.grid_sample(img.to(torch.float32), grid, padding_mode="border", align_corners=False)
        x = (x - 128) / 128
        features = (x.mean([2, 3]) @ self.weight.t()).relu()
        if return_features:
            return features
        logits = features @ self.output.t()
        return (logits if no_output_bias else logits + self.bias).softmax(1)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    path = tmp_path_factory.mktemp("scripted") / "detector.pt"
    torch.jit.script(Detector()).save(str(path))
    return path


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A file of random weights that keep the size of activations."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Inception().state_dict().items()}
    path = tmp_path_factory.mktemp("state") / "weights.pth"
    generator = torch.Generator().manual_seed(0)
    numbers = {
        name: torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        if len(shape) > 1
        else torch.full(shape, float(name.endswith(("bn.weight", "running_var"))))
        for name, shape in shapes.items()
    }
    torch.save(numbers, path)
    return path


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 32, 24), dtype=torch.uint8, generator=generator)


def publish(path, monkeypatch):
    """Let a file be one of those that are published."""
    size = path.stat().st_size
    copy = replace(NVIDIA, names=(path.name,), sha256=sha256_of(path), size=size)
    monkeypatch.setattr(module, "WEIGHTS", replace(WEIGHTS, also=(NVIDIA, copy)))


def test_the_published_files():
    # Pinned by pytorch-fid, torch-fidelity and k-diffusion, the first 8 digits by the file's name.
    expected = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    assert WEIGHTS.sha256 == expected
    assert all(expected[:8] in name for name in (*WEIGHTS.names, *WEIGHTS.urls))
    expected = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    assert [version.sha256 for version in WEIGHTS.also] == [NVIDIA.sha256] == [expected]
    assert (WEIGHTS.size, NVIDIA.size) == (95_628_359, 95_607_719)


def test_of_a_state_dict(state, pixels, monkeypatch):
    publish(state, monkeypatch)
    extractor = inception(state)
    outputs = extractor(pixels)
    network = Inception()
    network.load_state_dict(torch.load(state, weights_only=True))
    with torch.no_grad():
        expected = network((RESIZES["tf1"](pixels, 299) - 128) / 128)
    torch.testing.assert_close(tuple(outputs), tuple(expected))
    assert extractor.name == "inception"
    # Both containers hold the same numbers, and statistics of one serve the other.
    assert extractor.facts["weights"] == "inception-2015-12-05"
    assert extractor.facts["container"] == "state dict"
    assert not any(p.requires_grad or p.is_meta for p in extractor.network.parameters())
    assert not extractor.network.training


@pytest.mark.parametrize("resize", RESIZES)
def test_of_torchscript(resize, scripted, pixels, monkeypatch):
    publish(scripted, monkeypatch)
    extractor = inception(scripted, resize=resize)
    outputs = extractor(pixels)
    means = ((RESIZES[resize](pixels, 299) - 128) / 128).mean((2, 3))
    features = (means.sum(1, keepdim=True) * torch.linspace(-1, 1, 2048)).relu()
    logits = features.sum(1, keepdim=True) * torch.linspace(0, 1, 1008) / 100
    # Its own grid is exact to some 0.001 of a level.
    torch.testing.assert_close(outputs.features, features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs.logits, F.log_softmax(logits, 1), rtol=1e-5, atol=1e-4)
    assert outputs.spatial is None
    assert extractor.name == "inception"
    assert extractor.facts["container"] == "TorchScript"
    assert not extractor.network.training


def test_a_probability_of_zero_has_a_logit(pixels):
    class Sure(nn.Module):
        def forward(self, x, return_features=False, no_output_bias=False):
            return torch.eye(2)

    logits = module.Scripted(Sure())(torch.zeros(2, 3, 299, 299)).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.softmax(1), torch.eye(2))


@pytest.mark.parametrize("kind", ["scripted", "state"])
def test_other_weights_are_refused_before_they_run(kind, request, monkeypatch):
    path = request.getfixturevalue(kind)

    def fail(*args, **kwargs):
        pytest.fail("a file of an unknown hash was opened")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(torch.jit, "load", fail)
    with pytest.raises(ValueError, match=sha256_of(path)):
        inception(path)


@pytest.mark.parametrize("kind", ["scripted", "state"])
def test_unverified_weights_have_another_name(kind, request):
    path = request.getfixturevalue(kind)
    extractor = inception(path, allow_unverified=True)
    assert extractor.name == "inception-unverified"
    assert extractor.facts["weights"] == sha256_of(path)


def test_without_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("FEWSTEP_INCEPTION_WEIGHTS", raising=False)
    with pytest.raises(MissingWeights, match="FEWSTEP_INCEPTION_WEIGHTS") as caught:
        inception(offline=True)
    for part in (*WEIGHTS.urls, *NVIDIA.urls, "effnet-lite0", "pixels", tmp_path / "k-diffusion"):
        assert str(part) in str(caught.value)


@pytest.mark.parametrize("resize", RESIZES)
def test_the_resize_decides_and_is_a_fact(resize, state, scripted, pixels):
    resized = RESIZES[resize](pixels, 299)
    extractor = inception(state, resize=resize, allow_unverified=True)
    torch.testing.assert_close(extractor.prepare(pixels), (resized - 128) / 128)
    assert extractor.facts["resize"] == f"{resize} to 299"
    # NVIDIA's file gets what it resizes as published.
    extractor = inception(scripted, resize=resize, allow_unverified=True)
    expected = pixels.float() if resize == "tf1" else resized
    torch.testing.assert_close(extractor.prepare(pixels), expected)


def test_an_unknown_resize_is_refused(state):
    with pytest.raises(ValueError, match=r"one of tf1, clean, torch, torch-antialias, got 'pil'"):
        inception(state, resize="pil", allow_unverified=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc.weight": torch.zeros(1008, 2048)}, "does not hold"),
        ({"state_dict": {}, "epoch": 3}, "does not hold"),
        ([1, 2], "does not hold"),
        (None, "neither a state dict nor TorchScript"),
    ],
    ids=["part", "checkpoint", "list", "text"],
)
def test_a_file_of_something_else_is_refused(content, message, tmp_path):
    path = tmp_path / "file.pth"
    if content is None:
        path.write_text("no weights at all")
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        inception(path, allow_unverified=True)
