"""`fewstep train parts`, `router` and `minority`, as small as they can be."""

from __future__ import annotations

import json

import pytest
from fewstep import cli, zoo
from fewstep.eval.images import load_image
from fewstep.guides.classifier import load_noisy_classifier
from fewstep.zoo.data.labels import load_labels
from typer.testing import CliRunner

NETWORK = (
    "network={in_channels: 1, block_out_channels: [8], down_block_types: [DownBlock2D], "
    "norm_num_groups: 4}"
)
SMALL = (
    *("--set", NETWORK, "--set", "max_train_steps=2", "--set", "train_batch_size=8"),
    *("--set", "lr_warmup_steps=0"),
)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    digits = zoo.mnist()
    some = zoo.Images(digits.images[::100], digits.labels[::100])
    monkeypatch.setattr(zoo, "mnist", lambda: some)
    return some


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_parts_and_their_router(tmp_path):
    parts = tmp_path / "parts"
    said = run("train", "parts", "--set", "parts=3", "--out", parts)
    assert f"trained: {parts}" in said.replace("\n", "")
    labels = load_labels(parts)
    assert (labels.classes, len(labels.labels)) == (3, 100)
    assert load_image(parts / "parts.png").shape[0] == 1
    run("train", "router", "--set", f"labels={parts}", *SMALL, "--out", tmp_path / "router")
    assert load_noisy_classifier(tmp_path / "router").head.out_features == 3
    said = json.loads((tmp_path / "router" / "accuracy.json").read_text())
    assert len(said["accuracy"]) == 10


def test_minority(tmp_path):
    sets = ("--set", "levels=4", "--set", "draws=1", *SMALL)
    run("train", "minority", *sets, "--out", tmp_path)
    assert load_labels(tmp_path).labels.bincount().tolist() == [25] * 4
    assert load_noisy_classifier(tmp_path).head.out_features == 4
    image = tmp_path / "rare.png"
    options = ("--count", 2, "--nfe", 2, "--device", "cpu", "--out", image)
    said = run("sample", "--guidance", f"minority,folder={tmp_path}", *options)
    assert "2 network evaluations measured" in " ".join(said.split())
    assert image.exists()


def test_mistakes_are_told(tmp_path):
    said = run("train", "router", *SMALL, "--set", f"labels={tmp_path}", "--out", tmp_path, code=3)
    assert "no labels at" in said
    said = run("train", "parts", "--set", "by=classes", "--out", tmp_path, code=2)
    assert "groups of classes go with by: classes" in said
