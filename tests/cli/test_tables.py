"""The command, as a person types it."""

from __future__ import annotations

import json

import fewstep
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from fewstep import cli
from PIL import Image
from typer.testing import CliRunner

pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Consoles that write where the runner looks, 200 columns wide."""
    monkeypatch.setattr(cli, "out", cli.Console(width=200))
    monkeypatch.setattr(cli, "err", cli.Console(width=200, stderr=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with an untrained digit model of a few hundred parameters."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=[4],
        layers_per_block=1,
        down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"],
        norm_num_groups=2,
        num_class_embeds=11,
        add_attention=False,
    )
    folder = tmp_path_factory.mktemp("zoo") / "model"
    DDPMPipeline(unet=network, scheduler=DDPMScheduler()).save_pretrained(folder)
    return folder


def test_help_names_every_command():
    text = run("--help")
    for name in ("bench", "sample", "show", "solvers", "train", "card"):
        assert name in text
        assert len(run(name, "--help")) > 300


def test_solvers_lists_all():
    text = run("solvers")
    for solver in fewstep.samplers.solvers():
        assert solver.name in text


def test_show_prints_the_numbers_of_the_table(tmp_path):
    text = run("show", "dpmpp-2m", "--nfe", 5, "--out", tmp_path / "a.png")
    grid = fewstep.grid(cli.SCHEDULES["discrete"], 5, "lam")
    table = fewstep.build("dpmpp-2m", grid)
    assert "m[n-1]" in text
    assert f"{table.weights[3, 2]:.4f}" in text
    assert f"{table.carry[3]:.4f}" in text
    assert Image.open(tmp_path / "a.png").width > 300


def test_show_stays_within_the_nfe():
    assert "NFE 7" in run("show", "heun", "--nfe", 8)
    assert "z[n]" in run("show", "ddpm", "--nfe", 3, "--schedule", "edm")


@pytest.mark.parametrize("schedule", ["discrete", "edm", "flow"])
def test_show_has_a_spacing_for_every_schedule(schedule):
    assert "NFE 4" in run("show", "unipc-2", "--nfe", 4, "--schedule", schedule)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nope"], "unknown solver 'nope'"),
        (["show", "ddim", "--schedule", "nope"], "unknown schedule"),
        (["show", "ddim", "--spacing", "nope"], "unknown spacing"),
        (["bench", "nope"], "no configuration 'nope'"),
        (["bench", "--solvers", "ddim,ddim"], "twice"),
        (["sample", "--model", "nope"], "unknown model 'nope'"),
        (["train", "nope"], "no configuration 'nope'"),
        (["train", "mnist", "--set", "steps"], "key=value"),
        (["train", "mnist", "--set", "steps=0"], "steps"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, message):
    text = run(*arguments, code=2)
    assert message in text
    assert text.startswith(f"fewstep {arguments[0]}: ")
    assert "Traceback" not in text


def test_sample_draws_the_labels_it_was_asked_for(model, tmp_path):
    path = tmp_path / "s.png"
    text = run("sample", "--model", model, "--nfe", 2, "--count", 7, "--label", 3, "--out", path)
    assert "7 images by unipc-3, NFE 2" in text
    assert Image.open(path).size == (2 * (7 * 30 + 2), 2 * 32)
    assert "label 10" in run("sample", "--model", model, "--label", 10, code=2)


def test_guidance_changes_the_samples(model, tmp_path):
    for scale in (1, 3):
        run("sample", "--model", model, "--nfe", 2, "--count", 2, "--guidance", scale,
            "--out", tmp_path / f"{scale}.png")  # fmt: skip
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "3.png").read_bytes()


@pytest.fixture
def bench_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "name: tiny\nimages: 6\nsolvers: [ddim, heun]\nnfe: [3, 2]\n"
        "reference: {steps: 4, check_images: 2}\n"
    )
    return path


def test_bench_writes_a_run_and_options_override(model, bench_file, tmp_path):
    text = run("bench", bench_file, "--model", model, "--nfe", "2,4", "--out", tmp_path / "runs")
    assert "Frechet distance (mnist-classifier-64 features)" in text
    folder = tmp_path / "runs" / "tiny"
    for name in ("report.html", "report.md", "results.csv", "rmse-vs-nfe.png", "samples.png"):
        assert (folder / name).stat().st_size > 100
    record = json.loads((folder / "results.json").read_text())
    assert record["config"]["nfe"] == [2, 4]
    assert {cell["curve"] for cell in record["cells"]} == {"ddim", "heun"}


def test_an_interrupted_bench_says_so_and_goes_on(model, bench_file, tmp_path, monkeypatch):
    arguments = ("bench", bench_file, "--model", model, "--out", tmp_path / "runs")
    measure = fewstep.eval.bench.measure

    def interrupt(subject, cell, *rest):
        if cell.slug == "heun-003":
            raise KeyboardInterrupt
        return measure(subject, cell, *rest)

    monkeypatch.setattr(fewstep.eval.bench, "measure", interrupt)
    assert "interrupted with 1 cells to go" in run(*arguments, code=130)
    monkeypatch.setattr(fewstep.eval.bench, "measure", measure)
    assert "interrupted with" not in run(*arguments)


def test_train_and_its_overrides(tmp_path, monkeypatch):
    images, labels = fewstep.zoo.mnist()
    few = fewstep.zoo.Images(images[:300], labels[:300])
    monkeypatch.setattr(fewstep.zoo.classifier.datasets, "mnist", lambda: few)
    out = tmp_path / "c"
    text = run("train", "mnist-classifier", "--set", "epochs=1", "--set", "seed=3", "--out", out)
    assert f"trained: {out}" in text.replace("\n", "")
    assert json.loads((out / "config.json").read_text())["config"]["epochs"] == 1
    assert fewstep.zoo.load_classifier(out).width == 64
