import pytest
import torch
from fewstep.eval.extractors.catalogue import EXTRACTORS, Entry, extractor
from fewstep.eval.extractors.extractor import Extractor
from torch import nn


def test_the_names():
    assert set(EXTRACTORS) == {
        "inception",
        "dinov2",
        "clip",
        "effnet-lite0",
        "mnist-classifier",
        "pixels",
    }
    assert all(entry.summary and callable(entry.build) for entry in EXTRACTORS.values())


def test_a_name_gives_what_it_says():
    assert extractor("pixels").name == "pixels"
    assert extractor("pixels", channels=1).channels == 1
    assert extractor("mnist-classifier").name.startswith("mnist-classifier")


def test_a_path_gives_the_exported_network(tmp_path):
    path = tmp_path / "flat.pt"
    torch.jit.save(torch.jit.script(nn.Flatten()), path)
    found = extractor(str(path), channels=1, size=5)
    assert (found.name, found.channels) == ("flat", 1)
    assert found(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).features.shape == (2, 25)


def test_it_is_on_the_device(monkeypatch):
    network = Extractor("one", nn.Linear(1, 1), abs, {})
    monkeypatch.setitem(EXTRACTORS, "one", Entry("one", lambda: network))
    assert extractor("one", "meta").network.weight.device.type == "meta"


def test_anything_else_lists_the_names(tmp_path):
    with pytest.raises(ValueError, match="there is no extractor 'incpetion'") as caught:
        extractor("incpetion")
    assert all(name in str(caught.value) for name in EXTRACTORS)
    with pytest.raises(ValueError, match="nor a file at that path"):
        extractor(str(tmp_path))


def test_the_path_of_an_exported_network_is_no_option(tmp_path):
    (path := tmp_path / "flat.pt").touch()
    with pytest.raises(ValueError, match="has no option 'path'; there is size, mean"):
        extractor(str(path), path="other.pt")
