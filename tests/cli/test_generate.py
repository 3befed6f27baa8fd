from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from fewstep import cli
from fewstep.cli import console
from fewstep.cli.generate import seed_range
from fewstep.eval.models import Draw, load_model
from fewstep.eval.settings import SolverConfig, table_within
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from ..eval.models import tiny
from .typed import environment

FAST = ("--solver", "ddim", "--nfe", 2, "--shard-size", 4, "--device", "cpu")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr(console, "out", Console(width=200))
    monkeypatch.setattr(console, "err", Console(width=200, stderr=True))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """The folder of a tiny unconditional pipeline."""
    folder = tmp_path_factory.mktemp("pipe") / "tiny"
    tiny.ddpm().save_pretrained(folder)
    return folder


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, ["generate", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def command(*arguments):
    return [*map(str, arguments), *map(str, FAST)]


def names(folder):
    return sorted(path.name for path in folder.rglob("*.png"))


def test_images_of_a_folder(tmp_path, pipe):
    said = run(*FAST, "--model", pipe, "--seeds", "3-8", "--out", tmp_path)
    assert "6 images by ddim, NFE 2 (2 network evaluations measured)" in said
    assert names(tmp_path) == [f"{seed:06d}.png" for seed in range(3, 9)]
    run(*FAST, "--model", pipe, "--seeds", "3-9", "--out", tmp_path)
    assert len(names(tmp_path)) == 7


def test_digits_with_features_and_labels(tmp_path):
    options = ("--labels", 7, "--keep", "npz", "--extractors", "pixels", "--guidance", 2)
    said = run(*FAST, "--seeds", "0-4", "--out", tmp_path, *options)
    assert "(4 network evaluations measured)" in said
    with np.load(tmp_path / "samples.npz") as file:
        pixels = file["arr_0"]
    model = load_model("mnist")
    table = table_within(model.schedule, SolverConfig(name="ddim"), 2, "uniform", "zero")
    images = model.images(table, Draw(range(5), torch.full((5,), 7), 2.0))
    expected = (images * 127.5 + 128).clamp(0, 255).byte().movedim(1, -1).numpy()
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    with np.load(tmp_path / "shards" / "00000000.features-pixels.npz") as file:
        assert file["pixels/features"].shape[0] == 4


def test_prompts_are_lines_of_a_file(tmp_path):
    tiny.stable_diffusion().save_pretrained(tmp_path / "sd")
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    options = ("--model", tmp_path / "sd", "--seeds", "0-2", "--spacing", "lam")
    said = run(*FAST, *options, "--out", tmp_path / "out", "--prompts", tmp_path / "prompts.txt")
    assert "3 images by ddim" in said
    picture = Image.open(tmp_path / "out" / "000000" / "000001.png")
    assert picture.size == (tiny.PIXELS, tiny.PIXELS)
    said = run(*FAST, *options, "--out", tmp_path / "no", code=2)
    assert "give prompts, one a line in a file (--prompts FILE" in said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--model", "no/such-model"), 3, "no model 'no/such-model'"),
        (("--model", "none.pkl"), 3, "none.pkl"),
        (("--model", "."), 2, "is no model"),
        (("--seeds", "9-3"), 2, "the last comes before the first"),
        (("--seeds", "a-b"), 2, "FIRST-LAST such as 0-999, not 'a-b'"),
        (("--seeds", "0-4294967296"), 2, "seeds end at 4294967295"),
        (("--labels", "most"), 2, "labels are balanced, random or one number, not 'most'"),
        (("--labels", "-1"), 2, "not '-1'"),
        (("--labels", "1,2"), 2, "labels [1.0, 2.0] are not shares of 10 classes"),
        (("--labels", "1,most"), 2, "'1,most' has parts that are not numbers"),
        (("--labels", "10"), 2, "label 10 is not one of 0 to 9"),
        (("--keep", "none"), 2, "keeps nothing"),
        (("--keep", "gif"), 2, "keep"),
        (("--extractors", "nope"), 2, "nope"),
        (("--prompts", "none.txt"), 2, "no file none.txt"),
        (("--noise-device", "moon"), 2, "noise_device"),
        (("--dtype", "fp32"), 2, "dtype must be one of float32, bfloat16, float16"),
        (("--device", "moon"), 2, "no device 'moon'"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, options, code, said):
    monkeypatch.chdir(tmp_path)
    assert said in run(*FAST, *options, "--out", tmp_path / "out", code=code)
    assert not (tmp_path / "out").exists()


def test_other_settings_need_force(tmp_path, pipe):
    options = (*FAST, "--model", pipe, "--seeds", "0-3", "--out", tmp_path)
    run(*options)
    assert "nfe: 2 there, 3 asked for" in run(*options, "--nfe", 3, code=2)
    assert "NFE 3" in run(*options, "--nfe", 3, "--force")


def test_guidance_without_classes(tmp_path, pipe):
    options = ("--model", pipe, "--guidance", 2, "--out", tmp_path)
    assert "tiny has no classes to guide" in run(*FAST, *options, code=2)


def test_numbers_that_are_not_finite(tmp_path):
    broken = tiny.ddpm()
    with torch.no_grad():
        next(broken.unet.parameters()).fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    options = ("--model", tmp_path / "broken", "--seeds", "5-7", "--out", tmp_path / "out")
    said = run(*FAST, *options, code=5)
    assert "3 samples are not finite (NaN or infinite), seeds 5, 6, 7" in said


def test_seeds_are_a_range_or_one():
    assert seed_range("0-999") == (0, 1000)
    assert seed_range("7") == (7, 1)
    for wrong in ("", "-1", "1-", "1-2-3", "²"):
        with pytest.raises(ValueError, match="FIRST-LAST"):
            seed_range(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on(tmp_path, pipe, number):
    options = ("--model", pipe, "--seeds", "0-9999", "--nfe", 50, "--out", tmp_path)
    whole = command(sys.executable, "-m", "fewstep.cli", "generate")
    child = subprocess.Popen([*whole, *map(str, options)], env=environment())
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("shards/*.png.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(number)
    assert child.wait(30) == (-9 if number == signal.SIGKILL else 4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shards/*.png.npz")}
    assert len(before) >= 2
    seeds = f"0-{4 * len(before) + 3}"
    run(*FAST, *options[:2], "--seeds", seeds, *options[4:])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(tmp_path.glob("shards/*.png.npz"))) == len(before) + 1


def launched(processes, *options, code=0):
    # What `accelerate launch` does for GPUs; on CPUs it would ask for MPI.
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
    whole = command(*launch, processes, "-m", "fewstep.cli", "generate")
    done = subprocess.run(
        [*whole, *map(str, options)], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


def arrays(folder):
    """Everything in the shards of a folder but the time it took."""
    found = {}
    for path in sorted(folder.glob("shards/*.npz")):
        with np.load(path) as file:
            found[path.name] = {k: file[k] for k in file.files if k != "seconds"}
    return found


@pytest.mark.slow
def test_two_processes_make_the_same_bits_as_one(tmp_path, pipe):
    options = ("--model", pipe, "--seeds", "0-1002", "--batch-size", 64, "--shard-size", 128)
    options = (*options, "--extractors", "pixels", "--keep", "npz")
    done = launched(2, *options, "--out", tmp_path / "two")
    assert done.stdout.count("1003 images") == 1
    run(*FAST, *options, "--out", tmp_path / "one")
    two, one = arrays(tmp_path / "two"), arrays(tmp_path / "one")
    assert two.keys() == one.keys()
    for name, shard in one.items():
        assert two[name].keys() == shard.keys()
        for key, value in shard.items():
            np.testing.assert_array_equal(two[name][key], value, err_msg=f"{name} {key}")
    with np.load(tmp_path / "two" / "samples.npz") as file:
        assert file["seeds"].tolist() == list(range(1003))


@pytest.mark.slow
def test_two_processes_name_what_is_not_finite(tmp_path):
    broken = tiny.ddpm()
    with torch.no_grad():
        next(broken.unet.parameters()).fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    options = ("--model", tmp_path / "broken", "--seeds", "0-7", "--out", tmp_path / "out")
    done = launched(2, *options, code=1)
    assert done.stderr.count("8 samples are not finite") == 2
    assert "exitcode  : 5" in done.stderr


@pytest.mark.slow
def test_two_processes_refuse_other_settings_at_once(tmp_path, pipe):
    options = ("--model", pipe, "--seeds", "0-7", "--out", tmp_path)
    run(*FAST, *options)
    start = time.monotonic()
    done = launched(2, *options, "--labels", "random", code=1)
    assert "labels: balanced there, random asked for" in done.stderr
    # Nobody waits for one that has left.
    assert time.monotonic() - start < 25


def test_images_may_begin_late(tmp_path):
    """By the law of each digit, on the bundled model."""
    most = float(load_model("mnist").schedule.nsr(999))
    late = ("--teleport", "mnist", "--per-class")
    for name, options in (
        ("bare", ()), ("same", (*late, "--skip", most)), ("late", (*late, "--skip", 10)),
    ):  # fmt: skip
        run(*FAST, *options, "--seeds", "0-1", "--out", tmp_path / name)
    bare, same, begun = (
        [(tmp_path / name / "000000" / f"00000{k}.png").read_bytes() for k in range(2)]
        for name in ("bare", "same", "late")
    )
    assert bare == same
    assert begun[0] != bare[0]
    said = run(*FAST, "--teleport", "mnist", "--out", tmp_path / "x", code=2)
    assert "--teleport and --skip go together" in said
    assert "begin where sigma / alpha is 200" in run(*FAST, *late, "--skip", 200, code=2)
