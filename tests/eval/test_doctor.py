from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fewstep.eval import doctor
from fewstep.eval.extractors import EXTRACTORS, MissingWeights
from fewstep.eval.extractors.catalogue import Entry

CPU = torch.device("cpu")


def located(monkeypatch, locate):
    monkeypatch.setitem(EXTRACTORS, "mine", Entry("what it is", lambda: None, locate))
    return dict(doctor.examine(CPU)["Weights of extractors"])["mine"]


def fail(error):
    def locate():
        raise error

    return locate


def test_every_extractor_is_listed_and_nothing_is_fetched(monkeypatch):
    def forbidden(*each, **more):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", forbidden)
    monkeypatch.setattr("urllib.request.urlopen", forbidden)
    found = doctor.examine(CPU)
    assert [name for name, _ in found["Weights of extractors"]] == list(EXTRACTORS)
    assert all(isinstance(x, str) for rows in found.values() for row in rows for x in row)
    assert dict(found["This machine"])["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("offline", "fate"), [("1", "would fail, being offline"), ("0", "would be downloaded")]
)
def test_missing_weights_say_what_would_happen(offline, fate, monkeypatch):
    for name in doctor.OFFLINE:
        monkeypatch.setenv(name, offline)
    text = located(monkeypatch, fail(MissingWeights("the weights: no copy found\nlooked for\n  a")))
    assert text == f"not found, {fate}: the weights: no copy found\nlooked for\n  a"
    rows = dict(doctor.examine(CPU)["Network"])
    assert rows["downloads"].startswith("off" if offline == "1" else "on")
    assert rows[doctor.OFFLINE[0]] == offline


def test_the_other_states_of_weights(monkeypatch):
    assert located(monkeypatch, None) == "bundled: what it is"
    assert located(monkeypatch, lambda: Path("/a/b")) == "found at /a/b: what it is"
    assert located(monkeypatch, fail(ImportError("pip install x"))) == (
        "needs packages: pip install x"
    )
    assert located(monkeypatch, fail(ValueError("another sha256"))) == "wrong: another sha256"


def test_packages_that_are_lacking_say_what_for(monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-package": "nothing", "torch": "all"})
    rows = dict(doctor.examine(CPU)["Optional packages"])
    assert rows["no-such-package"] == "not installed: nothing"
    assert rows["torch"].endswith(": all")
    assert "not installed" not in rows["torch"]
