"""Our solvers called as k-diffusion, ComfyUI and A1111 call theirs."""

from __future__ import annotations

from types import SimpleNamespace

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.integrations.kdiffusion import sampler
from fewstep.schedules import EDM, Grid

SIGMAS = torch.tensor([14.6, 6.0, 2.5, 1.0, 0.3, 0.0], dtype=torch.float64)
GRID = Grid.from_sigmas(SIGMAS.numpy())


def model(x, sigma, **_):
    """A denoiser that is not linear; sigma is one number per sample."""
    assert sigma.shape == (len(x),)
    return torch.tanh(x * (4 / (4 + sigma**2)).reshape(-1, 1, 1, 1))


def start(batch=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 2, 4, 4, generator=generator, dtype=torch.float64) * SIGMAS[0]


@pytest.mark.parametrize("name", [each.name for each in samplers.solvers()])
def test_it_runs_the_table_of_the_solver(name):
    table, x = samplers.build(name, GRID), start()
    got = sampler(name)(model, x, SIGMAS, {"seed": 5}, disable=True)
    denoiser = samplers.denoiser(lambda x, c_noise: model(x, (4 * c_noise).exp()), EDM(), "x0")
    expected = fewstep.sample(denoiser, table, x, seeds=range(5, 8) if table.stochastic else None)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["euler", "k_heun", "DPM++ 2M", "uni_pc"])
def test_it_can_be_traced_from_outside(name):
    traced = samplers.trace(sampler(name), SIGMAS.tolist())
    table = samplers.build(name, GRID).in_basis("x0")
    np.testing.assert_allclose(
        traced.expanded().outputs[-1], table.expanded().outputs[-1], atol=1e-9
    )


def test_the_callback_sees_each_step_before_it():
    """x, the level and the step's own prediction; one call a step also with two evaluations."""
    seen, x = [], start()
    got = sampler("heun")(model, x, SIGMAS, callback=seen.append, disable=True)
    assert [each["i"] for each in seen] == list(range(5))
    assert [float(each["sigma"]) for each in seen] == SIGMAS[:5].tolist()
    assert torch.equal(seen[0]["x"], x)
    for each in seen:
        assert each["sigma_hat"] == each["sigma"]
        again = model(each["x"], each["sigma"].expand(3))
        torch.testing.assert_close(each["denoised"], again)
    torch.testing.assert_close(got, seen[-1]["denoised"])


def test_noise_comes_from_the_noise_sampler_over_its_interval():
    asked = []

    def noise_sampler(sigma, sigma_next):
        asked.append((float(sigma), float(sigma_next)))
        return torch.zeros_like(start())

    quiet = sampler("ddpm")(model, start(), SIGMAS, disable=True, noise_sampler=noise_sampler)
    pairs = list(zip(SIGMAS.tolist(), SIGMAS[1:].tolist(), strict=False))
    assert asked == pairs[:4]
    assert not torch.allclose(quiet, sampler("ddpm")(model, start(), SIGMAS, disable=True))


def test_a_seed_gives_a_sample_the_same_noise_in_any_batch():
    whole = sampler("ddpm")(model, start(), SIGMAS, {"seed": 7}, disable=True)
    last = sampler("ddpm")(model, start()[2:], SIGMAS, {"seed": 9}, disable=True)
    torch.testing.assert_close(whole[2:], last)


class CONST:
    """What ComfyUI calls the model sampling of a flow."""


def flow_model(x, sigma, **_):
    """The exact denoiser of standard normal data on a flow."""
    sigma = sigma.reshape(-1, 1, 1, 1)
    return x * (1 - sigma) / ((1 - sigma) ** 2 + sigma**2)


def test_flows_are_told_by_their_model_sampling():
    flow_model.inner_model = SimpleNamespace(
        model_patcher=SimpleNamespace(get_model_object=lambda name: CONST())
    )
    sigmas, x = torch.linspace(1, 0, 41, dtype=torch.float64), start() / SIGMAS[0]
    found = sampler("unipc-2")(flow_model, x, sigmas, disable=True)
    # The data have the deviation of the noise, so the exact flow ends where it started.
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)
    del flow_model.inner_model
    said = sampler("unipc-2", states="flow")(flow_model, x, sigmas, disable=True)
    assert torch.equal(said, found)


def test_a_table_of_ones_own():
    table = samplers.build("ab-3", GRID)
    got = sampler(table)(model, start(), SIGMAS, disable=True)
    torch.testing.assert_close(got, sampler("ab-3")(model, start(), SIGMAS, disable=True))
    with pytest.raises(ValueError, match="5 rows, and 4 sigmas ask for 3"):
        sampler(table)(model, start(), SIGMAS[2:], disable=True)
    with pytest.raises(ValueError, match=r"from sigma 14\.6 to 0, the sigmas from 6 to 0"):
        sampler(table)(model, start(), torch.cat([SIGMAS[1:], SIGMAS[-1:]]), disable=True)


def test_options_are_checked_before_the_first_image():
    with pytest.raises(ValueError, match=r"bogus.*its options are order, variant"):
        sampler("unipc-3", bogus=1)
    with pytest.raises(ValueError, match="order says nothing"):
        sampler(samplers.build("ab-3", GRID), order=2)
    # A list of orders is as long as the run.
    x = start()
    ones = sampler("dpmpp-3m", order=[1] * 5)(model, x, SIGMAS, disable=True)
    torch.testing.assert_close(ones, sampler("ddim")(model, x, SIGMAS, disable=True))


def test_edges():
    x = start()
    assert sampler("ddim")(model, x, SIGMAS[:1]) is x
    assert sampler("ddim")(model, x.half(), SIGMAS, disable=True).dtype == torch.float16
    with pytest.raises(ValueError, match="unknown solver"):
        sampler("unipcc")
    with pytest.raises(ValueError, match="states must be"):
        sampler("ddim", states="vp")
    with pytest.raises(ValueError, match="repeats"):
        sampler("ddim")(model, x, torch.tensor([3.0, 1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="outside"):
        sampler("ddim", states="flow")(model, x, SIGMAS)
