from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, ScoreSdeVeScheduler
from fewstep.eval.models import Draw, NetworkModel, load_model, pick_device
from fewstep.eval.models.hub import check_law
from fewstep.eval.models.pipeline import PipelineModel
from fewstep.eval.settings import SolverConfig, table_within
from fewstep.zoo.edm import save_edm

from . import tiny


def image_of(model):
    table = table_within(model.schedule, SolverConfig(name="ddim"), 3, "lam", "zero")
    labels = None if model.classes is None else torch.tensor([1, 0])
    return model.images(table, Draw([0, 1], labels))


def saved(pipe, folder):
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def test_the_bundled_digits():
    model = load_model("mnist")
    assert (model.name, model.classes, model.shape) == ("mnist", 10, (1, 28, 28))
    assert not model.network.training
    assert not any(weight.requires_grad for weight in model.network.parameters())


@pytest.mark.parametrize("make", [tiny.ddpm, tiny.ldm])
def test_unconditional_pipelines_are_their_networks(tmp_path, make):
    pipe = make()
    model = load_model(str(saved(pipe, tmp_path / "pipe")))
    assert isinstance(model, NetworkModel)
    assert (model.decode is None) == (make is tiny.ddpm)
    assert model.name == "pipe"
    assert not any(weight.requires_grad for weight in model.network.parameters())
    assert image_of(model).shape == (2, 3, 8, 8)
    assert torch.equal(image_of(load_model(str(tmp_path / "pipe"))), image_of(model))


def test_other_pipelines_stay_whole(tmp_path):
    model = load_model(str(saved(tiny.dit(), tmp_path / "dit")))
    assert isinstance(model, PipelineModel)
    assert image_of(model).shape == (2, 3, tiny.PIXELS, tiny.PIXELS)
    text = str(saved(tiny.stable_diffusion(), tmp_path / "sd"))
    model = load_model(text, prompts=("a cat", "a dog"), call={"height": 8, "width": 8})
    assert model.classes == 2
    assert image_of(model).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="makes images from text"):
        load_model(text)


def test_a_folder_of_network_and_scheduler(tmp_path):
    folder = saved(tiny.ddpm(), tmp_path / "own")
    whole = load_model(str(folder))
    (folder / "model_index.json").unlink()
    model = load_model(str(folder))
    assert torch.equal(image_of(model), image_of(whole))
    assert model.fingerprint == whole.fingerprint


def test_converted_edm_networks(tmp_path):
    network = tiny.edm(label_dim=4)
    save_edm(network, tmp_path / "edm")
    model = load_model(str(tmp_path / "edm"))
    assert (model.name, model.classes) == ("edm", 4)
    with pytest.raises(ValueError, match="compute in float32, not in bfloat16"):
        load_model(str(tmp_path / "edm"), dtype="bfloat16")


def test_a_dtype_is_that_of_the_weights(tmp_path):
    folder = str(saved(tiny.ddpm(), tmp_path / "pipe"))
    model = load_model(folder, dtype="bfloat16")
    assert next(model.network.parameters()).dtype == torch.bfloat16
    assert image_of(model).dtype == torch.float32
    assert load_model(folder, dtype="float16").network.dtype == torch.float16
    assert model.fingerprint != load_model(folder).fingerprint


@pytest.mark.parametrize("dtype", ["fp32", "int8", "float8_e4m3fn", "nn"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=f"float32, bfloat16, float16, not '{dtype}'"):
        load_model("mnist", dtype=dtype)


def test_what_is_no_model(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"is no model: a folder must hold model_index.json"):
        load_model(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        load_model(str(tmp_path / "none.pkl"))
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["a"]}')
    with pytest.raises((FileNotFoundError, ValueError)):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match="no prompts, no call"):
        load_model("mnist", prompts=("a cat",))


def test_what_the_hub_does_not_have(monkeypatch):
    import diffusers

    def missing(*arguments, **options):
        assert options["use_safetensors"] is True
        raise OSError("no such repository (see `revision`)")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", missing)
    with pytest.raises(
        FileNotFoundError, match=r"no model 'no/such': not one of mnist.*repository$"
    ):
        load_model("no/such")
    for name in ("./none", "/no/such/folder", "~/none"):
        with pytest.raises(FileNotFoundError, match="there is no such folder"):
            load_model(name)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(ValueError, match="no device 'nope'"):
        pick_device("nope")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what is not there")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no device 'cuda'"):
        pick_device("cuda")


@pytest.mark.parametrize(("rank", "index"), [(None, 0), ("3", 3)])
def test_each_process_takes_its_own_accelerator(monkeypatch, rank, index):
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert pick_device() == torch.device("cuda", index)


def test_a_scheduler_of_an_unknown_law_is_refused():
    with pytest.raises(ValueError, match="ScoreSdeVeScheduler are not known"):
        check_law("x", ScoreSdeVeScheduler())
    check_law("x", DDPMScheduler())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_bundled_model_is_for_float32(dtype):
    with pytest.raises(ValueError, match="mnist computes in float32"):
        load_model("mnist", dtype=dtype)
