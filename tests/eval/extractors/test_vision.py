import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep.eval.extractors.vision import (
    bicubic,
    central,
    clip,
    dinov2,
    hub_file,
    pillow_bicubic,
    positions_at,
    weights_file,
)
from fewstep.eval.extractors.weights import MissingWeights, sha256_of
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")


def images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def saved(model, folder):
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model, str(folder)


@pytest.fixture
def dino(tmp_path):
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14
    )
    return saved(transformers.Dinov2Model(config), tmp_path)


@pytest.fixture
def clip_model(tmp_path):
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=12,
        image_size=56,
        patch_size=14,
    )
    return saved(transformers.CLIPVisionModelWithProjection(config), tmp_path)


def test_dinov2_is_the_class_token_after_the_norm(dino):
    model, folder = dino
    extractor, batch = dinov2(folder), images(2, 3, 40, 30)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    seen = torch.nn.functional.interpolate(
        batch.float(), (224, 224), mode="bicubic", antialias=True
    )
    with torch.no_grad():
        out = model((seen / 255 - mean) / std, output_hidden_states=True)
    features = extractor(batch).features
    assert features.shape == (2, 24)
    assert torch.allclose(features, out.last_hidden_state[:, 0], atol=1e-5)
    assert not torch.allclose(features, out.hidden_states[-1][:, 0], atol=0.1)


def test_positions_are_interpolated_as_by_the_authors():
    # A ramp along the rows: cubic interpolation gives back the position it looks at, inside.
    side, grid = 37, 16
    ramp = torch.arange(float(side)).repeat_interleave(side)
    positions = torch.cat([torch.full((1,), -7.0), ramp])[None, :, None]
    out = positions_at(positions, grid)[0, :, 0]
    looked_at = (torch.arange(grid) + 0.5) * side / (grid + 0.1) - 0.5
    assert out[0] == -7
    rows = out[1:].reshape(grid, grid)
    # Each cubic weight is of a = -3/4, which is off a straight line by less than 0.1.
    assert (rows - looked_at[:, None])[1:-1].abs().max() < 0.1
    assert torch.allclose(rows, rows[:, :1].expand_as(rows), atol=1e-4)
    exact = cubic(torch.arange(float(side)), looked_at)
    assert torch.allclose(rows[:, 0], exact, atol=1e-3)


def cubic(values, at, a=-0.75):
    """Keys' cubic convolution at positions `at`, ends repeated."""
    low = at.floor()
    total = torch.zeros_like(at)
    for k in range(-1, 3):
        d = (at - (low + k)).abs()
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        index = (low + k).long().clamp(0, len(values) - 1)
        total += torch.where(d <= 1, near, far) * values[index]
    return total


def test_dinov2_of_another_grid_has_those_positions(tmp_path):
    config = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=280, patch_size=14
    )
    model, folder = saved(transformers.Dinov2Model(config), tmp_path)
    network = dinov2(folder).network.model
    expected = positions_at(model.embeddings.position_embeddings, 16)
    assert torch.allclose(network.embeddings.position_embeddings, expected)
    assert expected.shape == (1, 257, 12)


def test_clip_is_the_embedding_of_length_one(clip_model):
    model, folder = clip_model
    batch = images(3, 3, 60, 80)
    features = clip(folder)(batch).features
    assert features.shape == (3, 12)
    assert torch.allclose(features.norm(dim=-1), torch.ones(3))
    # What the processor of the model makes of Pillow's images is an independent preparation.
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()[:, 10:70]) for x in batch]
    resized = np.stack([np.asarray(p.resize((56, 56), Image.Resampling.BICUBIC)) for p in pictures])
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    seen = torch.from_numpy(((resized / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(seen).image_embeds
    assert torch.allclose(features, expected / expected.norm(dim=-1, keepdim=True), atol=2e-3)


@pytest.mark.parametrize("side", [28, 64, 400])
def test_the_resize_of_clip_is_pillows(side):
    batch = images(1, 3, side, side)
    picture = Image.fromarray(batch[0].permute(1, 2, 0).numpy())
    expected = np.asarray(picture.resize((336, 336), Image.Resampling.BICUBIC)).astype(np.float32)
    off = (pillow_bicubic(batch.float(), 336)[0].permute(1, 2, 0).numpy() - expected).__abs__()
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-3


@pytest.mark.parametrize("resize", [bicubic, pillow_bicubic, central])
def test_a_constant_image_stays_one(resize):
    out = resize(torch.full((1, 3, 30, 20), 77.0), 50)
    assert out.shape == (1, 3, 50, 50)
    assert torch.allclose(out, torch.full_like(out, 77), atol=1e-3)


def test_the_resize_of_dinov2_is_not_clipped():
    edge = torch.zeros(1, 1, 8, 8)
    edge[..., 4:] = 255
    assert bicubic(edge, 224).max() > 255
    assert pillow_bicubic(edge, 224).max() == 255


@pytest.mark.parametrize(("height", "width"), [(10, 20), (20, 10), (10, 21)])
def test_the_crop_is_central(height, width):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    out = central(torch.stack([rows, columns])[None].float(), 10)[0]
    top, left = (height - 10) // 2, (width - 10) // 2
    assert torch.equal(out[0, :, 0], torch.arange(10.0) + top)
    assert torch.equal(out[1, 0], torch.arange(10.0) + left)


@pytest.mark.parametrize("build", [dinov2, clip])
def test_the_facts_are_of_the_file_and_the_preparation(build, request):
    folder = request.getfixturevalue("dino" if build is dinov2 else "clip_model")[1]
    extractor = build(folder)
    file = f"{folder}/model.safetensors"
    assert extractor.facts["weights"] == sha256_of(Path(file))
    assert {"layer", "resize", "mean", "std"} <= set(extractor.facts)
    assert ("normalised" in extractor.facts) == (build is clip)
    assert not any(p.requires_grad for p in extractor.network.parameters())
    assert not extractor.network.training


def test_half_precision_weights_are_used_in_float32(dino):
    model, folder = dino
    model.half().save_pretrained(folder)
    assert {p.dtype for p in dinov2(folder).network.parameters()} == {torch.float32}


def test_a_file_that_lacks_weights_is_refused(dino):
    _, folder = dino
    state = load_file(f"{folder}/model.safetensors")
    del state["layernorm.weight"]
    save_file(state, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of a Dinov2Model.*layernorm\.weight"):
        dinov2(folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("facebook/dinov2-large", "not in the cache"),
        ("no/such/folder", "Repo id"),
        (".", "the folder has no model"),
    ],
    ids=["offline", "no name", "folder"],
)
def test_missing_weights_say_what_helps(name, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_OFFLINE", "1")
    monkeypatch.setattr("fewstep.eval.extractors.vision.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingWeights) as caught:
        dinov2(name, revision="abc")
    text = str(caught.value)
    for part in (
        f"no weights of {name} --revision abc: {reason}",
        "model.safetensors",
        str(tmp_path),
        f"hf download {name} --revision abc",
        "--extractor effnet-lite0",
        "--extractor pixels",
    ):
        assert part in text


def test_being_offline_downloads_nothing(monkeypatch):
    asked = []

    def download(name, file, revision, local_files_only=False):
        asked.append(local_files_only)
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        return file

    monkeypatch.setattr("fewstep.eval.extractors.vision.hf_hub_download", download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("FEWSTEP_OFFLINE", "1")
    with pytest.raises(FileNotFoundError):
        hub_file("a/b", "config.json", None, offline=False)
    assert asked == [True]
    monkeypatch.delenv("FEWSTEP_OFFLINE")
    with pytest.raises(FileNotFoundError):
        hub_file("a/b", "config.json", None, offline=True)
    assert asked == [True, True]
    assert hub_file("a/b", "config.json", None, offline=False).name == "config.json"
    assert asked == [True, True, True, False]


def test_weights_published_as_bin_only_are_read(dino, tmp_path):
    folder = tmp_path / "older"
    folder.mkdir()
    (folder / "config.json").write_text((Path(dino[1]) / "config.json").read_text())
    torch.save(load_file(Path(dino[1]) / "model.safetensors"), folder / "pytorch_model.bin")
    assert weights_file(str(folder)).name == "pytorch_model.bin"
    batch = images(2, 3, 30, 30)
    expected = dinov2(dino[1])(batch).features
    torch.testing.assert_close(dinov2(str(folder))(batch).features, expected)


def test_the_error_without_transformers_says_what_to_install(dino, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        dinov2(dino[1])
