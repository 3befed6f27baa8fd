from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from fewstep import configs, zoo
from fewstep.cli.tasks import train
from fewstep.zoo import train as module
from fewstep.zoo.data import identity
from fewstep.zoo.data.labels import Labels
from fewstep.zoo.train import (
    TrainConfig,
    denoising_loss,
    drift,
    keep_scale,
    learning_rate_factor,
    stratified_timesteps,
    train_denoiser,
)

NETWORK = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
    "num_class_embeds": 11,
    "add_attention": False,
}


def config(**changes):
    values = {"data": "mnist", "network": NETWORK, "noise": {}, "batch_size": 4, "steps": 6}
    return TrainConfig(**values | {"checkpoint_every": 2, "warmup": 1} | changes)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    images, labels = zoo.mnist()
    monkeypatch.setattr(module.datasets, "mnist", lambda: zoo.Images(images[:50], labels[:50]))


def weights(folder):
    return zoo.load_diffusion_model(folder).network.state_dict()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = weights(train_denoiser(config(), tmp_path / "whole"))

    def interrupt(done, total, text):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_denoiser(config(), tmp_path / "cut", interrupt)
    assert not (tmp_path / "cut" / "model").exists()
    steps = []
    cut = weights(train_denoiser(config(), tmp_path / "cut", lambda done, *_: steps.append(done)))
    assert steps[0] in (3, 4)
    assert steps[-1] == 6
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=1e-6)


def test_the_result_is_a_pipeline(tmp_path):
    folder = train_denoiser(config(steps=1), tmp_path)
    pipeline = DDPMPipeline.from_pretrained(folder)
    assert pipeline.unet.config.num_class_embeds == 11
    model = zoo.load_diffusion_model(folder)
    assert model.scheduler_config["num_train_timesteps"] == 1000
    assert not model.network.training


def test_learning_rate_is_a_trapezoid():
    settings = config(steps=100, warmup=10, cooldown=0.4)
    factors = [learning_rate_factor(step, settings) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:60] == [1.0] * 51
    assert factors[80] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.05


def test_timesteps_fill_every_stratum():
    times = stratified_timesteps(50, 1000, torch.Generator().manual_seed(3))
    assert (times // 20).tolist() == list(range(50))


def test_drift_is_an_error_of_the_mean_in_x0():
    nsr = torch.tensor([0.01, 0.5, 20.0]).repeat_interleave(20000)
    offsets = drift(nsr, 0.05, torch.Generator().manual_seed(0))
    assert offsets.shape == (60000, 1, 1, 1)
    spread = offsets.reshape(3, -1).std(1)
    torch.testing.assert_close(spread, torch.tensor([1.0, 0.1, 0.0025]), rtol=0.02, atol=0)
    none = drift(nsr, 0.0, torch.Generator())
    assert not none.any()


def test_a_task_is_found_by_name_and_its_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="there is minority, mnist, mnist-classifier"):
        train("cifar", tmp_path, {})
    with pytest.raises(ValueError, match="stepz"):
        train("mnist", tmp_path, {"stepz": 3})
    with pytest.raises(ValueError, match="epochs"):
        train("mnist-classifier", tmp_path, {"epochs": 0})
    with pytest.raises(ValueError, match="classifier, denoiser, text"):
        train("mnist", tmp_path, {"task": "poem"})
    raw = configs.read(configs.find("train", "mnist"))
    raw.pop("task", None)
    assert configs.checked(TrainConfig, raw, "mnist").steps > 1000


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="unet"):
        zoo.load_diffusion_model(tmp_path)


def strength_through_the_last_norm(ratio: float) -> float:
    """How much of a 1.5 times stronger signal arrives behind the last GroupNorm."""
    torch.manual_seed(0)
    network = UNet2DModel(**NETWORK)
    x, t, labels = torch.randn(16, 1, 28, 28), torch.arange(16) * 60, torch.arange(16) % 10
    bias = network.up_blocks[-1].resnets[-1].conv2.bias
    before = bias.detach().clone()
    plain = network(x, t, class_labels=labels).sample
    keep_scale(network, x, t, labels, ratio)
    # The network stays roughly what it was: the same size, now with the spread it lets through.
    changed = network(x, t, class_labels=labels).sample
    assert (changed - plain).norm() < 0.6 * plain.norm()
    offset = (bias.detach() - before)[:, None, None]
    seen = []
    network.conv_norm_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(x, t, class_labels=labels)
    weak, strong = (network.conv_norm_out(offset + s * (seen[0] - offset)) for s in (1.0, 1.5))
    return float(strong.norm() / weak.norm())


def test_the_last_norm_lets_the_strength_of_noise_through():
    """Without the offsets a GroupNorm hides it: any strength comes out as one."""
    assert strength_through_the_last_norm(64.0) == pytest.approx(1.5, abs=0.02)
    assert strength_through_the_last_norm(1e-4) == pytest.approx(1.0, abs=0.05)


class Silent(torch.nn.Module):
    """A network that predicts no noise at all: its error is |eps|^2."""

    def forward(self, x, t, class_labels):
        return SimpleNamespace(sample=torch.zeros_like(x))


def test_the_loss_counts_noisy_times_more_and_has_mean_one():
    scheduler, x0 = DDPMScheduler(), torch.zeros(1000, 1, 4, 4)
    labels, t, eps = (
        torch.zeros(1000, dtype=torch.long),
        torch.arange(1000),
        torch.ones(1000, 1, 4, 4),
    )

    def loss(cap, rows):
        batch = (x0[rows], labels[rows], t[rows], eps[rows])
        return float(denoising_loss(Silent(), scheduler, *batch, cap))

    every = slice(None)
    assert loss(25.0, every) == pytest.approx(1, rel=1e-5)
    assert loss(1.0, slice(0, 1)) == pytest.approx(1, rel=1e-5)
    # From clean (1 / alpha^2 = 1) to the cap.
    assert loss(25.0, slice(999, 1000)) / loss(25.0, slice(0, 1)) == pytest.approx(25, rel=1e-3)


def test_the_loss_of_a_network_that_predicts_v():
    """0 for the true v = alpha eps - sigma x0, and the mean square of what is missing."""
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(6, 1, 4, 4, generator=generator) for _ in range(2))
    labels, t = torch.zeros(6, dtype=torch.long), torch.tensor([0, 100, 400, 700, 900, 999])
    alpha = scheduler.alphas_cumprod[t].sqrt()[:, None, None, None]
    v = alpha * eps - (1 - alpha**2).sqrt() * x0

    def loss(error):
        def network(x, t, class_labels):
            torch.testing.assert_close(x, alpha * x0 + (1 - alpha**2).sqrt() * eps)
            return SimpleNamespace(sample=v + error)

        return float(denoising_loss(network, scheduler, x0, labels, t, eps, 25.0))

    assert loss(0.0) == pytest.approx(0, abs=1e-10)
    assert loss(0.3) == pytest.approx(0.09, rel=1e-5)


def test_other_predictions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="epsilon or v_prediction, not 'sample'"):
        train_denoiser(config(noise={"prediction_type": "sample"}), tmp_path)
    found = train_denoiser(config(noise={"prediction_type": "v_prediction"}), tmp_path / "v")
    assert zoo.load_diffusion_model(found).scheduler_config["prediction_type"] == "v_prediction"


def test_an_expert_learns_its_part_alone(tmp_path, monkeypatch):
    """Only images of its label are seen, and it is the training on these as a set of their own."""
    images, labels = module.datasets.mnist()
    parts = torch.arange(len(labels)) % 3
    Labels(parts, 3, identity(zoo.Images(images, labels))).save(tmp_path / "parts")
    told = {"labels": str(tmp_path / "parts"), "part": 1}
    expert = weights(train_denoiser(config(**told), tmp_path / "expert"))
    own = zoo.Images(images[parts == 1], labels[parts == 1])
    monkeypatch.setattr(module.datasets, "mnist", lambda: own)
    alone = weights(train_denoiser(config(), tmp_path / "alone"))
    assert all(torch.equal(expert[name], alone[name]) for name in alone)
    with pytest.raises(ValueError, match="other images"):
        train_denoiser(config(**told), tmp_path / "x")


def test_parts_that_are_not_there_are_told(tmp_path):
    images, labels = module.datasets.mnist()
    Labels(labels * 0, 2, identity(zoo.Images(images, labels))).save(tmp_path)
    with pytest.raises(ValueError, match="part 1 has no images"):
        train_denoiser(config(labels=str(tmp_path), part=1), tmp_path / "x")
    with pytest.raises(ValueError, match="go together"):
        train_denoiser(config(part=1), tmp_path / "x")
