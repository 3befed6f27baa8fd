from __future__ import annotations

import numpy as np
import pytest
from fewstep import TableauScheduler, samplers, use

from ..eval.models import tiny
from .typed import run, wide  # noqa: F401 - a fixture

QUICK = (
    "--samples",
    8,
    "--held_out",
    4,
    "--search",
    8,
    "--set",
    "teacher_steps=12",
    "--set",
    "batch_size=8",
    "--device",
    "cpu",
)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipe") / "tiny"
    tiny.ddpm().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", [("fit",), ("distill", "table", "--set", "moves=1")])
def test_tables_are_learned_shown_and_sampled_with(tmp_path, pipe, command):
    said = run(*command, "--model", pipe, "--nfe", "3,2", *QUICK, "--out", tmp_path)
    assert "distance to the teacher" in said
    path = tmp_path / "tables.json"
    assert str(path) in said
    assert list(samplers.load_family(path)) == [2, 3]
    assert "NFE 3" in run("show", path, "--nfe", 3)
    card = (tmp_path / "README.md").read_text()
    assert "| 3 |" in card
    assert '"teacher_steps": 12' in card
    loaded = TableauScheduler.from_pretrained(tmp_path / "scheduler")
    loaded.set_timesteps(3)
    table = samplers.load_family(path)[3]
    assert loaded.timesteps.tolist() == pytest.approx(table.grid.label[:-1])
    with pytest.raises(ValueError, match="3"):
        loaded.set_timesteps(7)
    said = run(
        "sample", "--model", pipe, "--solver", path, "--nfe", 3, "--count", 2,
        "--out", tmp_path / "a.png", "--device", "cpu",
    )  # fmt: skip
    assert f"by {tmp_path.name}, NFE 3" in said
    pipeline = tiny.ddpm()
    scheduler = use(pipeline, path, verbose=False)
    scheduler.set_timesteps(2)
    assert len(scheduler.timesteps) == 2
    assert pipeline(num_inference_steps=3, output_type="np").images.shape[0] == 1


def test_mistakes_are_explained(tmp_path, pipe):
    options = ("--model", pipe, *QUICK, "--out", tmp_path)
    assert "no such key; did you mean moves?" in run("fit", *options, "--set", "movez=1", code=2)
    for wrong in ("0", "-3", "four", "3.5"):
        said = run("fit", *options, f"--nfe={wrong}", code=2)
        assert f"nfe: whole numbers from 1, such as 3,5,8, not '{wrong}'" in said
        assert said.count("nfe") == 1
    assert "unknown solver 'unipcc'" in run("fit", *options, "--base", "unipcc", code=2)
    assert "guidance.0" in run("fit", *options, "--guidance=-2", code=2)
    said = run("distill", "table", *options, "--learning_rate", "1e-3", code=2)
    assert "learning_rate: of a descent, which there is only with max_train_steps" in said
    assert "--set wants key=value" in run("fit", *options, "--set", "moves", code=2)
    assert "there are tables of" not in run("fit", *options, "--nfe", 2)
    said = run("show", tmp_path / "tables.json", "--nfe", 1, code=2)
    assert "tables of 2 evaluations, and none within 1" in said


def test_a_pipeline_with_a_loop_of_its_own_is_refused(tmp_path):
    tiny.stable_diffusion().save_pretrained(tmp_path / "sd")
    said = run("fit", "--model", tmp_path / "sd", "--out", tmp_path / "out", code=2)
    assert "prompts" in said


def test_settings_have_the_names_of_diffusers_scripts(tmp_path, pipe):
    options = ("--model", pipe, *QUICK, "--out", tmp_path, "--nfe", 2)
    flags = ("--learning-rate=1e-3", "--moves", 0, "--train-batch-size", 4)
    run("distill", "table", *options, "--max_train_steps", 2, *flags)
    (journal,) = tmp_path.glob("training-002-*/metrics.jsonl")
    assert len(journal.read_text().splitlines()) == 2
    # The first word may be a setting, too.
    assert "training.learning_rate" in run(
        "distill", "table", "--learning_rate", "fast", "--max_train_steps", 2, *options, code=2
    )
    assert "unexpected argument '7'" in run("fit", *options, "--moves", 1, 7, code=2)
    assert "is more than the 8 samples" in run("fit", *options, "--max_train_steps", 1, code=2)
    assert "did you mean max_train_steps" in run("fit", *options, "--max_train_step", 1, code=2)


def test_a_network_is_tuned(tmp_path):
    tiny.ddpm().save_pretrained(tmp_path / "pipe")
    size = tiny.ddpm().unet.config.sample_size
    channels = tiny.ddpm().unet.config.in_channels
    pixels = np.random.default_rng(0).integers(0, 255, (20, size, size, channels), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", pixels)
    options = (
        "--model", tmp_path / "pipe", "--data", tmp_path / "images.npz", "--nfe", 2,
        "--train_batch_size", 4, "--max_train_steps", 2, "--validation_images", 4,
        "--gradient_accumulation_steps", 1, "--set", "spaces=[{features: pixels}]",
        "--device", "cpu", "--out", tmp_path / "out",
    )  # fmt: skip
    said = run("distill", "mmd", "mmd-mnist", *options)
    assert "kd_pixels" in said
    assert (tmp_path / "out" / "model" / "model_index.json").exists()
    assert "no configuration 'nope'; there is mmd-mnist, or give" in run(
        "distill", "mmd", "nope", code=2
    )
    assert "`fewstep train mnist-classifier" in run(
        "distill",
        "mmd",
        "mmd-mnist",
        "--set",
        "spaces=[{features: {id: mnist-classifier, options: {path: nowhere}}}]",
        code=3,
    )


def test_discrete_samplers_are_learned(tmp_path):
    options = ("--samples", 64, "--train_batch_size", 32, "--max_train_steps", 2)
    said = run("distill", "lsd", "lsd-countdown", "--nfe", "3,2", *options, "--out", tmp_path)
    assert "KL" in said
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        "jumps-002.json",
        "jumps-003.json",
    ]
    assert "objective" in run("distill", "lsd", "lsd-countdown", "--objective", "kl", code=2)
    options = (*options, "--teacher_steps", 4, "--judged", 64, "--out", tmp_path / "text")
    said = run("distill", "lsd", "lsd-text", "--nfe", 2, *options)
    assert "data_bits" in said
