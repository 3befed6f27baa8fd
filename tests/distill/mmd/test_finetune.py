from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from fewstep import samplers
from fewstep.distill.mmd.finetune import (
    MMDConfig,
    SpaceConfig,
    classes_of,
    draw_of,
    finetune,
    images_of,
    lent,
    space_of,
)
from fewstep.eval.models import NetworkModel, load_model
from fewstep.eval.models.networks import placed, unet_model
from fewstep.eval.sources import in_memory
from fewstep.samplers import Tableau
from fewstep.samplers.denoiser import checkpointed
from fewstep.schedules import grid
from fewstep.training.journal import read
from safetensors.torch import load_file
from torch import nn

NETWORK = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


def model():
    torch.manual_seed(0)
    network = UNet2DModel(**NETWORK)
    return placed(unet_model("tiny", network, DDPMScheduler().config), torch.float32, "cpu")


@pytest.fixture
def config(tmp_path):
    images = np.random.default_rng(0).integers(100, 200, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images)

    def make(**changes):
        values = {
            "model": {"id": "tiny", "data": str(tmp_path / "images.npz")},
            "nfe": 2,
            "spaces": [{"features": "pixels"}],
            "train_batch_size": 8,
            "validation_images": 16,
            "max_train_steps": 12,
            "learning_rate": 3e-3,
            "validation_steps": 4,
        }
        return MMDConfig.model_validate({**values, **changes})

    return make


def test_settings_of_the_training_stand_by_their_names(config):
    found = config(max_grad_norm=0.7)
    assert (found.training.max_grad_norm, found.training.learning_rate) == (0.7, 3e-3)
    plain = MMDConfig.model_validate({"spaces": [{"features": "pixels"}], "seed": 4}).training
    assert (plain.learning_rate, plain.max_grad_norm, plain.seed) == (5e-6, 0.5, 4)


def test_samples_come_nearer_and_the_result_is_a_pipeline(tmp_path, config):
    tuned = finetune(config(), model(), tmp_path / "out")
    assert tuned.after["kd_pixels"] < 0.9 * tuned.before["kd_pixels"]
    assert [
        e["validation_kd_pixels"] for e in read(tmp_path / "out") if "validation_kd_pixels" in e
    ]
    assert len(list((tmp_path / "out" / "previews").glob("*.png"))) == 3
    pipe = DDPMPipeline.from_pretrained(tuned.folder)
    assert type(pipe.scheduler).__name__ == "TableauScheduler"
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipe(2, generator=generator, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    again = load_model(str(tuned.folder))
    card = (tuned.folder / "README.md").read_text()
    assert f"{tuned.before['kd_pixels']:.5f} | {tuned.after['kd_pixels']:.5f}" in card
    assert Tableau.load(tuned.folder / "table.json").nfe == 2
    assert again.fingerprint != model().fingerprint


def test_a_stopped_training_goes_on_as_if_it_had_not(tmp_path, config):
    steps = {"checkpointing_steps": 2, "use_ema": True, "dropout": True}
    whole, parts = model(), model()
    finetune(config(**steps), whole, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        finetune(config(**steps), parts, tmp_path / "b", stop_at(4))
    parts = model()
    finetune(config(**steps), parts, tmp_path / "b")
    for name, value in whole.network.state_dict().items():
        assert torch.equal(parts.network.state_dict()[name], value), name


def stop_at(step):
    def progress(done, total, text):
        if text.startswith("loss") and done == step:
            raise KeyboardInterrupt

    return progress


def test_adapters_are_trained_and_merged(tmp_path, config):
    tuned = finetune(config(lora=2), model(), tmp_path / "out")
    assert tuned.after["kd_pixels"] < tuned.before["kd_pixels"]
    assert load_model(str(tuned.folder)).network.state_dict().keys() == (
        model().network.state_dict().keys()
    )


def test_a_judge_decides_which_weights_are_kept(tmp_path, config):
    network = model()
    tuned = finetune(config(judge={"id": "pixels", "options": {"channels": 1}}), network, tmp_path)
    name = next(iter(tuned.after))
    assert name == "judge_kd_pixels"
    key = f"validation_{name}"
    lines = {entry["step"]: entry[key] for entry in read(tmp_path) if key in entry}
    best = min(lines, key=lambda step: lines[step])
    card = (tuned.folder / "README.md").read_text()
    assert f"those after {best}." in card
    for key, value in load_file(tmp_path / "best.safetensors").items():
        assert torch.equal(network.network.state_dict()[key], value)


def test_a_network_has_the_weights_of_another_for_a_while():
    one, other = nn.Linear(2, 1), nn.Linear(2, 1)
    own = one.weight.clone()
    with lent(one, other):
        assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.weight, own)


@pytest.fixture
def drawn(monkeypatch):
    """What is asked of the model, and whether its dropout is on."""
    seen = []
    sampled = NetworkModel.sampled

    def watched(self, table, draw, wrap=None):
        seen.append((draw, self.network.training, torch.is_grad_enabled(), wrap))
        return sampled(self, table, draw, wrap)

    monkeypatch.setattr(NetworkModel, "sampled", watched)
    return seen


def test_noises_that_train_choose_and_judge_are_different_ones(tmp_path, config, drawn):
    chosen = config(first_seed=10_000, max_train_steps=4)
    finetune(chosen, model(), tmp_path)
    trained = [s for draw, _, grad, _ in drawn if grad for s in draw.seeds]
    others = [s for draw, _, grad, _ in drawn if not grad for s in draw.seeds]
    assert sorted(trained) == list(range(10_000, 10_032))
    # 16 that judge, before and after; 16 that choose; and the pictures, of all of these.
    assert {others.count(s) for s in range(9968, 9984)} == {3}
    assert {others.count(s) for s in range(9984, 10_000)} == {2}
    assert set(others) == set(range(9960, 10_000))


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_on_in_training_alone_and_when_asked_for(tmp_path, config, drawn, dropout):
    finetune(config(dropout=dropout, max_train_steps=4, use_ema=True), model(), tmp_path)
    assert {training for _, training, grad, _ in drawn if grad} == {dropout}
    assert {training for _, training, grad, _ in drawn if not grad} == {False}


def test_labels_guidance_and_checkpointing_are_those_asked_for(config, monkeypatch):
    seen = []
    monkeypatch.setattr(NetworkModel, "sampled", lambda *asked: seen.append(asked))
    network = replace(model(), classes=3)
    table = samplers.build("ddim", grid(network.schedule, 2))
    for calls in (True, False):
        chosen = config(labels=[1, 0, 2], guidance=1.5, gradient_checkpointing=calls)
        images_of(chosen, network, table)(range(300))
    (*_, draw, wrap), (*_, unwrapped) = seen
    assert torch.bincount(draw.labels, minlength=3).tolist() == pytest.approx([100, 0, 200], abs=25)
    assert (draw.guidance, wrap, unwrapped) == (1.5, checkpointed, None)


def test_classes_count_by_the_shares_that_they_are_drawn_with(config):
    network = replace(model(), classes=3)
    labels, shares = classes_of(config(labels=[1, 0, 2]), network)(range(50))
    assert shares.tolist() == [1, 0, 2]
    draw = draw_of(config(labels=[1, 0, 2]), network, range(50))
    assert torch.equal(labels, draw.labels)
    for rule in ("random", "balanced"):
        assert classes_of(config(labels=rule), network)(range(5))[1].tolist() == [1, 1, 1]
    assert classes_of(config(labels=2), network)(range(5)) is None
    assert classes_of(config(), model())(range(5)) is None


@pytest.mark.parametrize("kernel", ["cubic", "rbf"])
def test_features_have_unit_power_in_the_kernel(kernel):
    pixels = torch.randint(60, (9, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    chosen = SpaceConfig(features="pixels", kernel=kernel)
    found = space_of(chosen, in_memory("dark", pixels.to(torch.uint8)), torch.device("cpu"))
    power = (pixels.flatten(1) / 255).numpy()
    # A radial kernel has no use for where they are.
    power = power.var(0, ddof=1) if kernel == "rbf" else power**2
    assert found.unit == pytest.approx(power.mean() ** 0.5, rel=1e-5)
    assert found.real.shape == (9, 16)


def test_features_that_are_all_the_same_have_a_unit_too():
    same = in_memory("same", torch.full((4, 1, 2, 2), 7, dtype=torch.uint8))
    chosen = SpaceConfig(features="pixels", kernel="rbf")
    assert space_of(chosen, same, torch.device("cpu")).unit == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"id": "tiny"}}, "which real images"),
        ({"solver": "heun", "nfe": 4}, "heun takes 3 evaluations, not 4"),
        ({"solver": {"name": "ddim", "scale_eps": 1.5}}, "solver.scale_eps: what is saved runs"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, config, changes, said):
    with pytest.raises(ValueError, match=said):
        finetune(config(**changes), model(), tmp_path / "out")
