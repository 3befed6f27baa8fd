"""Networks of every prediction type, on grids of every form, are the same denoiser."""

from __future__ import annotations

import dataclasses

import fewstep
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from fewstep.samplers import denoiser, exact, from_diffusers, from_diffusers_config, guidance
from fewstep.samplers.denoiser import checkpointed, several
from fewstep.schedules import EDM, FlowMatching, Grid, VPDiscrete, VPLinear, betas

TRUTH = exact.mixture([[1.0, -1], [0.5, 2]], std=[0.3, 0.6])


def oracle(schedule, prediction, sigma_data=0.5):
    """A network that returns what a perfect one would, from the textbook definitions."""

    def network(x, label, bias=0.0):
        out = []
        for sample, value in zip(x, label.double(), strict=True):
            # The label alone must tell the noise level.
            times = torch.linspace(schedule.t_min, schedule.t_max, 200_001).double().numpy()
            time = np.interp(float(value), schedule.label(times), times)
            node = Grid.from_times(schedule, [time, schedule.t_zero]).nodes[0]
            a, s = node.alpha, node.sigma
            if prediction == "edm":
                state = sample[None] * np.hypot(s, sigma_data)
                x0 = TRUTH(state, node)
                c_skip = sigma_data**2 / (s**2 + sigma_data**2)
                c_out = s * sigma_data / np.hypot(s, sigma_data)
                out.append((x0 - c_skip * state) / c_out)
                continue
            x0 = TRUTH(sample[None], node)
            eps = (sample[None] - a * x0) / s
            out.append({"eps": eps, "x0": x0, "v": a * eps - s * x0, "flow": eps - x0}[prediction])
        return torch.cat(out) + bias

    return network


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (VPLinear(), "eps"),
        (VPLinear(), "x0"),
        (VPLinear(), "v"),
        (VPDiscrete(betas()), "eps"),
        (FlowMatching(3.0), "flow"),
        (EDM(), "eps"),
        (EDM(), "edm"),
    ],
)
@pytest.mark.parametrize("form", [VPLinear(), EDM(), FlowMatching()])
def test_any_network_on_any_grid(schedule, prediction, form):
    """A network of one schedule driven by a grid in another form gives the exact x0."""
    wrapped = denoiser(oracle(schedule, prediction), schedule, prediction)
    for lam in (-2.0, 0.0, 2.5):
        node = Grid.from_lams(form, [lam, 4.0]).nodes[0]
        x = torch.randn((3, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        torch.testing.assert_close(wrapped(x, node), TRUTH(x, node), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow", "edm"])
@pytest.mark.parametrize("form", [VPLinear(), EDM(), FlowMatching()])
def test_samples_at_their_own_nodes(prediction, form):
    """In one batch as one by one: labels, scales and predictions are each sample's."""
    schedule, seen = VPLinear(), []

    def network(x, label):
        seen.append(label)
        return torch.tanh(x + label.double().view(-1, 1, 1) / 700)

    wrapped = denoiser(network, schedule, prediction)
    nodes = Grid.from_lams(form, [-2.0, 0.0, 2.5, 4.0]).nodes[:3]
    x = torch.randn((3, 2, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone = torch.cat([wrapped(x[i : i + 1], node) for i, node in enumerate(nodes)])
    labels = torch.cat(seen)
    torch.testing.assert_close(wrapped(x, several(nodes, x)), alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(seen[-1], labels)
    assert labels.shape == (3,)
    assert labels.dtype == torch.float32
    assert len(labels.unique()) == 3


@pytest.mark.parametrize("form", [VPDiscrete(betas()), EDM()])
def test_a_loaded_table_samples_the_same(form, tmp_path):
    """A file holds the law of its nodes, so a network is told the same labels after loading."""
    schedule = VPDiscrete(betas())
    wrapped = denoiser(lambda x, label: torch.tanh(x + label[:, None] / 1000), schedule)
    grid = Grid.from_sigmas([14.0, 5.0, 1.0, 0.2, 0.0], form)
    table = fewstep.build("unipc-2", grid)
    table.save(tmp_path / "table.json")
    loaded = fewstep.Tableau.load(tmp_path / "table.json")
    x = fewstep.noise(grid, (3,), range(4))
    expected = fewstep.sample(wrapped, table, x)
    assert torch.equal(fewstep.sample(wrapped, loaded, x), expected)
    # Without the law, the numbers decide whose nodes they are.
    anonymous = dataclasses.replace(loaded, grid=dataclasses.replace(loaded.grid, schedule=None))
    torch.testing.assert_close(fewstep.sample(wrapped, anonymous, x), expected)


def test_a_wrong_number_of_channels_is_an_error():
    schedule = VPDiscrete(betas())
    node = fewstep.grid(schedule, 2).nodes[0]
    wrapped = denoiser(lambda x, label: x[:, :1], schedule)
    with pytest.raises(ValueError, match=r"returned shape \(2, 1, 4, 4\)"):
        wrapped(torch.zeros(2, 3, 4, 4), node)


def test_kwargs_labels_and_dtypes_reach_the_network():
    schedule = VPDiscrete(betas())
    grid = fewstep.grid(schedule, 4, "karras")
    seen = []

    def network(x, label, classes):
        seen.append((x.dtype, label, classes))
        return x

    wrapped = denoiser(network, schedule, dtype=torch.bfloat16, classes=[3])
    out = wrapped(torch.zeros(2, 5), grid.nodes[1])
    ((dtype, label, classes),) = seen
    assert (dtype, classes) == (torch.bfloat16, [3])
    assert label.dtype == torch.float32
    # A fractional time stays fractional.
    assert float(label[0]) == pytest.approx(grid.label[1], abs=1e-4)
    assert float(label[0]) % 1 != 0
    assert out.dtype == torch.float32


def test_eps_at_pure_noise_is_an_error():
    schedule = FlowMatching()
    wrapped = denoiser(lambda x, label: x, schedule, "eps")
    with pytest.raises(ValueError, match="node 0 is pure noise"):
        wrapped(torch.zeros(1, 2), fewstep.grid(schedule, 3, "uniform").nodes[0])
    with pytest.raises(ValueError, match="prediction must be one of"):
        denoiser(lambda x, label: x, schedule, "score")


def test_diffusers_configs():
    config = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
    ).config
    schedule, prediction = from_diffusers_config(config)
    assert prediction == "v"
    product = DDPMScheduler.from_config(config).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(schedule.alpha(np.arange(1000)) ** 2, product, rtol=1e-4)
    zero, _ = from_diffusers_config({**config, "rescale_betas_zero_snr": True})
    assert zero.alpha(999) == 0
    assert from_diffusers_config({"shift": 3.0}) == (FlowMatching(3.0), "flow")
    data_flow = {"use_flow_sigmas": True, "flow_shift": 5.0, "prediction_type": "sample"}
    assert from_diffusers_config(data_flow) == (FlowMatching(5.0), "x0")
    assert from_diffusers_config({"sigma_data": 0.5})[1] == "edm"
    with pytest.raises(ValueError, match="the shift depends on the image size"):
        from_diffusers_config({"shift": 3.0, "use_dynamic_shifting": True})
    with pytest.raises(ValueError, match="prediction_type 'sharp'"):
        from_diffusers_config({"prediction_type": "sharp"})


def tiny_models():
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    yield (
        UNet2DModel(8, 1, 1, **blocks, **plain, num_class_embeds=3),
        {"class_labels": torch.tensor([1, 2])},
    )
    yield (
        UNet2DConditionModel(
            8,
            1,
            1,
            **blocks,
            cross_attention_dim=4,
            attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        {"encoder_hidden_states": torch.ones(2, 3, 4)},
    )
    # Learned variance: two channels out for one in.
    yield (
        DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=1,
            out_channels=2,
            num_layers=1,
            norm_num_groups=4,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=3,
        ),
        {"class_labels": torch.tensor([1, 2])},
    )


@pytest.mark.parametrize("index", [0, 1, 2])
def test_diffusers_models_sample(index):
    model, kwargs = list(tiny_models())[index]
    config = DDPMScheduler().config
    wrapped = from_diffusers(model.eval(), config, **kwargs)
    grid = fewstep.grid(wrapped.schedule, 3)
    x = fewstep.noise(grid, (1, 8, 8), range(2))
    with torch.no_grad():
        end = fewstep.sample(wrapped, fewstep.build("unipc-2", grid), x)
        # By hand, the first node.
        out = model(x, torch.full((2,), float(grid.label[0])), **kwargs).sample[:, :1]
        x0 = (x - grid.sigma[0] * out) / grid.alpha[0]
        torch.testing.assert_close(wrapped(x, grid.nodes[0]), x0, rtol=1e-4, atol=1e-3)
    assert end.shape == x.shape
    assert end.isfinite().all()


def test_guidance_extrapolates_x0():
    node = Grid.from_lams(VPLinear(), [0.0, 1.0]).nodes[0]
    x = torch.ones(2, 2)
    cond, uncond = (lambda x, node: 3 * x), (lambda x, node: x)
    torch.testing.assert_close(guidance.cfg(cond, uncond, 2.0)(x, node), 5 * x)
    assert guidance.cfg(cond, uncond, 1.0) is cond


def test_guided_gaussian_has_the_closed_form_variance():
    """CFG of N(0, .5) over N(0, 2) at w = 3 (scale 3): final variance .0313."""
    grid = Grid.from_lams(VPLinear(), np.linspace(float(VPLinear().lam(1.0)), 6, 400))
    dim = 4000
    guided = guidance.cfg(
        exact.gaussian(np.zeros(1), std=np.sqrt(0.5)),
        exact.gaussian(np.zeros(1), std=np.sqrt(2)),
        3.0,
    )
    x = fewstep.noise(grid, (1,), range(dim), dtype=torch.float64)
    end = fewstep.sample(guided, fewstep.build("unipc-2", grid), x / x.std())
    expected = 0.5**3 / 2**2
    assert float(end.var() / (x / x.std()).var()) == pytest.approx(expected, rel=0.02)


def test_calls_are_asked_again_for_the_gradient():
    asked = []

    def tanh(x, node):
        asked.append(node.index)
        return torch.tanh(x * 2)

    table = fewstep.build("ddim", fewstep.grid(VPLinear(), 3, "quadratic"))
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    fewstep.sample(checkpointed(tanh), table, x).sum().backward()
    assert sorted(asked) == [0, 0, 1, 1, 2, 2]
    found, x.grad = x.grad, None
    fewstep.sample(tanh, table, x).sum().backward()
    torch.testing.assert_close(found, x.grad, rtol=0, atol=1e-12)
