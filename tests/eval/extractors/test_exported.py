import pytest
import torch
from fewstep.eval.extractors.exported import exported
from fewstep.eval.extractors.resize import RESIZES
from fewstep.eval.extractors.weights import sha256_of
from torch import nn


def images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


class Small(nn.Module):
    def __init__(self, channels=3, pool=True):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3)
        self.drop = nn.Dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(1) if pool else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.drop(self.conv(x)))


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1), x


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3))


def scripted(network, folder):
    path = folder / "net.pt"
    torch.jit.save(torch.jit.script(network), path)
    return path


def test_a_torchscript_file_is_the_network(tmp_path):
    network = Small()
    extractor, batch = exported(scripted(network, tmp_path)), images(4, 3, 9, 9)
    network.eval()
    expected = network(batch.float() / 127.5 - 1).flatten(1)
    features = extractor(batch).features
    assert extractor.name == "net"
    assert features.shape == (4, 6)
    # In evaluation mode, though it was saved in training mode.
    assert torch.allclose(features, expected, atol=1e-6)


def test_a_torch_export_file_is_the_network(tmp_path):
    network, batch = Small().eval(), images(4, 3, 9, 9)
    path = tmp_path / "net.pt2"
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(
        torch.export.export(network, (torch.randn(2, 3, 9, 9),), dynamic_shapes=shapes), path
    )
    features = exported(path, name="mine")(batch).features
    assert torch.allclose(features, network(batch.float() / 127.5 - 1).flatten(1), atol=1e-6)


def test_the_declared_preprocessing_is_what_the_network_sees(tmp_path):
    path = scripted(nn.Flatten(), tmp_path)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    batch = images(2, 3, 8, 8)
    seen = exported(path, size=12, mean=mean, std=std, resize="tf1")(batch).features
    expected = RESIZES["tf1"](batch.float(), 12) / 255
    expected = (expected - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(seen, expected.flatten(1), atol=1e-6)


def test_one_channel(tmp_path):
    extractor = exported(scripted(Small(1), tmp_path), channels=1)
    assert extractor(images(2, 1, 8, 8)).features.shape == (2, 6)
    with pytest.raises(ValueError, match="have 3 channels"):
        extractor(images(2, 3, 8, 8))


def test_the_facts_are_of_the_file_and_the_preparation(tmp_path):
    path = scripted(Small(), tmp_path)
    first = exported(path, size=8)
    assert first.facts["weights"] == sha256_of(path)
    others = [
        exported(path),
        exported(path, size=9),
        exported(path, size=8, resize="tf1"),
        exported(path, size=8, mean=(0.4,)),
        exported(path, size=8, std=(0.4,)),
        exported(path, size=8, channels=1),
        exported(path, size=8, name="other"),
    ]
    assert len({each.fingerprint for each in (first, *others)}) == 8


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (Small(pool=False), r"not \[2, 6, 6, 6\] for 2 images"),
        (Mean(), r"not \[2\] for 2 images"),
        (nn.Sequential(nn.Flatten(0, 1), nn.Flatten()), r"not \[6, 64\] for 2 images"),
        (Pair(), "one tensor .* not a tuple"),
    ],
    ids=["map", "mean", "merged", "pair"],
)
def test_another_output_is_refused(network, match, tmp_path):
    extractor = exported(scripted(network, tmp_path))
    with pytest.raises(ValueError, match=match):
        extractor(images(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"resize": "nearest", "size": 8}, "resize must be one of tf1"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "1 or 3 numbers, not 2"),
    ],
)
def test_wrong_declarations_are_refused(options, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        exported(scripted(Small(), tmp_path), **options)


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_other_files_are_refused(name, tmp_path, caplog):
    path = tmp_path / name
    path.write_bytes(b"not a network")
    with pytest.raises(ValueError, match="neither a TorchScript file nor"):
        exported(path)
    # torch.export would log a traceback.
    assert caplog.text == ""
    # Weights without a network.
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="neither a TorchScript file nor"):
        exported(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no exported network at"):
        exported(path)
