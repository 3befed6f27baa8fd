from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from fewstep import zoo
from fewstep.cli import bench as command
from fewstep.eval.bench import runner
from fewstep.eval.images import quantise
from fewstep.storage import read_json, write_json

from ..eval.models import tiny
from .typed import environment, run, wide  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")


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


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A file of few real images, whose features are made in no time."""
    path = tmp_path_factory.mktemp("data") / "digits.npy"
    np.save(path, quantise(zoo.mnist().images[:500]).numpy())
    return path


def written(folder):
    """A small benchmark's file."""
    path = folder / "tiny.yaml"
    path.write_text(
        "name: tiny\nimages: 6\nsolvers: [ddim, heun]\nnfe: [3, 2]\n"
        "reference: {steps: 4, check_images: 2}\n"
    )
    return path


@pytest.fixture
def bench_file(tmp_path):
    return written(tmp_path)


def test_bench_writes_a_run_and_options_override(model, bench_file, tmp_path):
    text = run(
        *("bench", bench_file, "--model", model, "--nfe", "2,4", "--out", tmp_path / "runs"),
        *("--metrics", "frechet,score", "--set", "batch_size=4", "--guidance", "1,2"),
    )
    assert "Frechet distance (mnist-classifier-64 features) (guidance 2)" in text
    folder = tmp_path / "runs" / "tiny"
    for name in ("report.html", "report.md", "results.csv", "rmse-vs-nfe-guidance-1.png"):
        assert (folder / name).stat().st_size > 100
    record = json.loads((folder / "results.json").read_text())
    assert record["config"]["nfe"] == [2, 4]
    assert record["config"]["batch_size"] == 4
    assert record["config"]["models"][0]["data"] == "mnist"
    assert {cell["curve"] for cell in record["cells"]} == {"ddim", "heun"}
    assert len(record["cells"]) == 8


def test_bench_of_errors_and_times_alone_needs_no_data(model, bench_file, tmp_path):
    text = run("bench", bench_file, "--model", model, "--out", tmp_path, "--set", "metrics=[]")
    assert "RMSE" in text
    assert "Frechet" not in text
    assert not (tmp_path / "tiny" / "statistics").exists()


def test_a_dry_run_says_what_would_run_and_makes_nothing(model, bench_file, tmp_path):
    text = run("bench", bench_file, "--model", model, "--out", tmp_path / "runs", "--dry-run")
    assert "heun " in text
    # ddim 2 and 3, heun 1 and 3: 9 evaluations of 6 images.
    assert "54 evaluations x images" in text
    assert f"{tmp_path / 'runs' / 'tiny'}" in text
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_bench_says_so_and_goes_on(model, digits, bench_file, tmp_path, monkeypatch):
    options = ("--model", model, "--data", digits, "--out", tmp_path / "runs")
    arguments = ("bench", bench_file, *options)
    whole = runner.run_cell

    def interrupt(turn, task, *rest):
        if task.cell.slug == "heun-003":
            raise KeyboardInterrupt
        return whole(turn, task, *rest)

    monkeypatch.setattr(runner, "run_cell", interrupt)
    assert "interrupted with 1 cells to go" in run(*arguments, code=4)
    assert "INCOMPLETE" in (tmp_path / "runs" / "tiny" / "report.md").read_text()
    monkeypatch.setattr(runner, "run_cell", whole)
    assert "interrupted with" not in run(*arguments)


def test_samples_that_are_not_finite_are_code_5_with_a_report(model, digits, bench_file, tmp_path):
    broken = tmp_path / "broken"
    pipe = DDPMPipeline.from_pretrained(model)
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    pipe.save_pretrained(broken)
    arguments = (
        "bench",
        bench_file,
        "--model",
        broken,
        "--data",
        digits,
        "--out",
        tmp_path,
        "--set",
        "reference=null",
    )
    assert "samples that are not finite in" in run(*arguments, code=5)
    assert "diverged" in (tmp_path / "tiny" / "report.md").read_text()
    assert json.loads((tmp_path / "tiny" / "results.json").read_text())["cells"][0]["not_finite"]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["bench", "nope"], "no configuration 'nope'", 2),
        (["bench", "--solvers", "ddim,ddim"], "twice", 2),
        (["bench", "--set", "images"], "key=value", 2),
        (["bench", "--metrics", "frechet,fid"], "unknown metric 'fid'", 2),
        (["bench", "--metrics", "spatial"], "spatial", 2),
        (["bench", "--device", "gpu"], "no device 'gpu'", 2),
        (["bench", "--set", "extractors=[nope]"], "no extractor 'nope'", 2),
        (["bench", "--model", "no/such-model"], "no model 'no/such-model'", 3),
        (["bench", "--data", "nowhere"], "no images at nowhere", 3),
        (["report", "nowhere"], "no results in nowhere", 3),
        (["report", "a", "b", "c"], "compares two runs", 2),
    ],
)
def test_mistakes_are_said_before_anything_runs(arguments, message, code, tmp_path):
    if arguments[0] == "bench":
        arguments = [*arguments, "--out", tmp_path]
    text = run(*arguments, code=code)
    assert message in text
    assert text.startswith(f"fewstep {arguments[0]}: ")
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("shards"))


@pytest.fixture(scope="module")
def two_runs(model, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, spacing in (("a", "uniform"), ("b", "lam")):
        run("bench", written(folder), "--model", model, "--data", digits, "--name", name,
            "--spacings", spacing, "--out", folder)  # fmt: skip
    return folder / "a", folder / "b"


def test_report_compares_two_runs(two_runs, tmp_path):
    a, b = two_runs
    text = run("report", a, b, "--out", tmp_path / "both.html")
    assert "B - A" in text
    assert "ddim-003" in text
    assert (tmp_path / "both.html").read_text().startswith("<!doctype html>")
    run("report", a, b, "--out", tmp_path / "both.md")
    assert "| B - A |" in (tmp_path / "both.md").read_text()
    assert ".txt" in run("report", a, b, "--out", tmp_path / "both.txt", code=2)
    alone = run("report", a)
    assert "milliseconds per image" in alone


def test_report_refuses_other_features(two_runs, tmp_path):
    a, b = two_runs[0], shutil.copytree(two_runs[1], tmp_path / "b")
    record = read_json(b / "results.json")
    record["models"]["model"]["extractors"]["mnist-classifier-64"]["fingerprint"] = "0" * 16
    write_json(b / "results.json", record)
    assert "not comparable" in run("report", a, b, code=2)


def test_options_override_settings_in_the_singular(model, digits, bench_file, tmp_path):
    bench_file.write_text(bench_file.read_text() + "seed: 3\nmodel: mnist\nmetric: frechet\n")
    options = ("--model", model, "--data", digits, "--seed", "5", "--nfe", 2)
    options = (*options, "--set", "metric=score")
    run("bench", bench_file, *options, "--out", tmp_path)
    record = json.loads((tmp_path / "tiny" / "results.json").read_text())["config"]
    assert (record["seeds"], record["metrics"]) == ([5], ["score"])


def test_the_first_model_is_changed_and_keeps_its_data(tmp_path):
    values = {"models": "mnist", "images": 3}
    assert command.with_model(values, "x/y", None) == {
        "images": 3,
        "models": [{"id": "x/y", "data": "mnist"}],
    }
    stats = tmp_path / "s.npz"
    np.savez(stats, mu=np.zeros(2), sigma=np.eye(2))
    many = {"models": [{"id": "a", "data": "d"}, "b"]}
    assert command.with_model(many, None, str(stats))["models"] == [
        {"id": "a", "statistics": str(stats)},
        "b",
    ]
    assert many["models"][0] == {"id": "a", "data": "d"}


@pytest.mark.slow
def test_two_processes_find_the_same_numbers_as_one(model, bench_file, tmp_path):
    bench_file.write_text(
        "name: tiny\nimages: 90\nbatch_size: 16\nshard_size: 32\nsolvers: [ddim, ddpm]\nnfe: [3]\n"
        "metrics: [frechet, kernel, score, neighbours]\nguidance: [1, 2]\n"
        "reference: {steps: 4, check_images: 2}\n"
    )
    options = ("bench", str(bench_file), "--model", str(model), "--out")
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    whole = [*launch, "-m", "fewstep.cli"]
    done = subprocess.run(
        [*whole, *options, str(tmp_path / "two")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report:") == 1
    alone = [sys.executable, "-m", "fewstep.cli"]
    subprocess.run([*alone, *options, str(tmp_path / "one")], env=environment(), check=True)
    two, one = (read_json(tmp_path / name / "tiny" / "results.json") for name in ("two", "one"))
    assert (two["processes"], one["processes"]) == (2, 1)
    assert len(two["cells"]) == 4
    for a, b in zip(two["cells"], one["cells"], strict=True):
        assert a["values"] == b["values"]
    assert [r["values"] for r in two["references"]] == [r["values"] for r in one["references"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solvers", "ddim,nope"], "unknown solver 'nope'"),
        (["--spacings", "nope"], "unknown spacing 'nope'"),
        (["--set", "labels=12"], "label 12 is not one of 0 to 9"),
        (["--set", "noise_device=cuda"], "cuda"),
        (["--set", "reference={solver: ddpm}"], "ddpm draws noise"),
        (["--set", "models=[{id: mnist, statistics: {nope: x.npz}}]"], "statistics of nope"),
        (["--set", "nfe={"], "no value that YAML knows"),
    ],
)
def test_what_cannot_be_is_said_before_real_images_are_read(
    arguments, message, model, bench_file, tmp_path
):
    text = run("bench", bench_file, "--model", model, "--out", tmp_path, *arguments, code=2)
    assert message in text
    assert not list(tmp_path.rglob("*.npz"))


def test_a_dry_run_asks_the_model_what_it_can_do(bench_file, tmp_path):
    tiny.ddpm().save_pretrained(tmp_path / "free")
    options = ("bench", bench_file, "--model", tmp_path / "free", "--dry-run")
    assert "All of this" in run(*options)
    said = run(*options, "--guidance", 2, code=2)
    assert "guidance 2: free has no classes" in " ".join(said.split())


def test_other_data_take_the_place_of_statistics():
    values = {"models": [{"id": "a", "statistics": "old.npz"}]}
    assert command.with_model(values, None, "new")["models"] == [{"id": "a", "data": "new"}]
