from __future__ import annotations

import pickle

import pytest
import torch
from fewstep import cli
from fewstep.cli import console
from fewstep.eval.images import quantise, tile
from fewstep.eval.models import Draw, load_model
from fewstep.eval.settings import SolverConfig, table_within
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from ..eval.models import tiny


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr(console, "out", Console(width=200))
    monkeypatch.setattr(console, "err", Console(width=200, stderr=True))


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [*map(str, arguments), *device(arguments)])
    assert result.exit_code == code, result.output
    return result.output


def device(arguments):
    return ("--device", "cpu") if arguments[0] == "sample" else ()


def test_sample_draws_what_was_asked(tmp_path):
    path = tmp_path / "new" / "digits.png"
    options = ("--label", 3, "--label", 7, "--count", 3, "--seed", 5, "--guidance", 2)
    said = run("sample", "--solver", "ddim", "--nfe", 2, *options, "--out", path)
    assert "3 images by ddim, NFE 2" in said
    model = load_model("mnist")
    table = table_within(model.schedule, SolverConfig(name="ddim"), 2, "uniform", "zero")
    images = quantise(model.images(table, Draw(range(5, 8), torch.tensor([3, 7, 3]), 2.0)))
    picture = torch.from_numpy(tile(images)).int()
    found = torch.tensor(list(Image.open(path).convert("L").tobytes()))
    found = found.view(2 * picture.shape[0], 2 * picture.shape[1])[::2, ::2]
    assert (found - picture).abs().max() <= 1


def test_sample_takes_any_model(tmp_path):
    tiny.ddpm().save_pretrained(tmp_path / "tiny")
    options = ("--model", tmp_path / "tiny", "--solver", "ddim", "--nfe", 2, "--count", 2)
    run("sample", *options, "--out", tmp_path / "a.png")
    # Two images of 8 x 8 in a row, 2 pixels around each, doubled.
    assert Image.open(tmp_path / "a.png").size == (2 * (2 + 8 + 2 + 8 + 2), 2 * (2 + 8 + 2))
    said = run("sample", *options, "--label", 1, "--out", tmp_path / "b.png", code=2)
    assert "--label 1: tiny has no classes" in said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--label", 10), 2, "label 10 is not one of 0 to 9"),
        (("--solver", "nope"), 2, "unknown solver 'nope'"),
        (("--spacing", "nope"), 2, "unknown spacing"),
        (("--model", "no/such-model"), 3, "no model 'no/such-model'"),
    ],
)
def test_mistakes_are_explained(tmp_path, options, code, said):
    out = tmp_path / "a.png"
    assert said in run("sample", "--nfe", 2, "--count", 1, *options, "--out", out, code=code)
    assert not out.exists()


def test_convert_writes_a_folder_that_loads(tmp_path, monkeypatch):
    network = tiny.edm(label_dim=4)
    asked = []

    def read(path, *, trust_pickle):
        asked.append((path.name, trust_pickle))
        return network

    monkeypatch.setattr("fewstep.cli.models.read_edm", read)
    assert "converted" in run("convert", tmp_path / "a.pkl", "--out", tmp_path / "edm")
    run("convert", tmp_path / "b.pkl", "--out", tmp_path / "edm", "--trust-pickle")
    assert asked == [("a.pkl", False), ("b.pkl", True)]
    model = load_model(str(tmp_path / "edm"))
    for name, weight in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], weight)


def test_convert_runs_nothing_of_a_file(tmp_path):
    class Malicious:
        def __reduce__(self):
            return open, (str(tmp_path / "touched"), "w")

    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"ema": Malicious()}))
    said = run("convert", path, "--out", tmp_path / "edm", code=2)
    assert "bad.pkl" in said
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "edm").exists()
    assert "none.pkl" in run("convert", tmp_path / "none.pkl", "--out", tmp_path / "e", code=3)
