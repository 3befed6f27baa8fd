"""Noise schedules against their published formulas, worked out another way."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, HeunDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from fewstep.schedules import (
    EDM,
    FlowMatching,
    VPCosine,
    VPDiscrete,
    VPLinear,
    betas,
    zero_terminal_snr,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from .laws import DISCRETE, LAWS, PURE_NOISE, STABLE_DIFFUSION, times

every_law = pytest.mark.parametrize("name", LAWS)


@every_law
def test_time_is_the_inverse_of_lam(name):
    law = LAWS[name]
    t = times(law)
    assert np.abs(law.time(law.lam(t)) - t).max() <= 1e-12 * law.t_max


@pytest.mark.parametrize("name", sorted(set(LAWS) - {"edm"}))
@given(share=st.floats(1e-6, 1))
def test_time_is_the_inverse_of_lam_anywhere(name, share):
    law = LAWS[name]
    t = law.t_zero + share * (law.t_max - law.t_zero)
    assert abs(law.time(law.lam(t)) - t) <= 1e-12 * law.t_max


@every_law
def test_lam_is_the_inverse_of_time(name):
    """From the other side: small noise levels must not be rounded away in t."""
    law = LAWS[name]
    # Below -6 the signal is lost in 1 - t, whatever the formula.
    lam = np.linspace(max(law.lam(law.t_max), -6), 12, 200)
    if name in DISCRETE:
        # The slot below index 0 has width 1 in t, so that t holds 1e-13 of it.
        np.testing.assert_allclose(law.lam(law.time(lam)), lam, atol=1e-8)
    else:
        np.testing.assert_allclose(law.lam(law.time(lam)), lam, atol=1e-12, rtol=1e-12)


@every_law
def test_lam_falls_strictly(name):
    t = np.linspace(LAWS[name].t_zero, LAWS[name].t_max, 4001)
    assert (np.diff(LAWS[name].lam(t)) < 0).all()


@every_law
def test_alpha_and_sigma_belong_together(name):
    law = LAWS[name]
    t = np.append(times(law), law.t_zero)
    alpha, sigma = law.alpha(t), law.sigma(t)
    total = {"vp": alpha**2 + sigma**2, "flow": alpha + sigma, "edm": alpha}[law.form]
    np.testing.assert_allclose(total, 1, rtol=1e-15)
    inner = (alpha > 0) & (sigma > 0)
    ratio = np.log(alpha[inner]) - np.log(sigma[inner])
    np.testing.assert_allclose(law.lam(t)[inner], ratio, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(law.nsr(t)[inner], sigma[inner] / alpha[inner], rtol=1e-12)


@every_law
@pytest.mark.filterwarnings("error")
def test_ends_are_exact(name):
    law = LAWS[name]
    clean = law.t_zero
    assert (law.alpha(clean), law.sigma(clean), law.lam(clean)) == (1, 0, np.inf)
    assert law.nsr(clean) == 0
    assert law.time(np.inf) == clean
    if name in PURE_NOISE:
        assert (law.alpha(law.t_max), law.sigma(law.t_max)) == (0, 1)
        assert law.lam(law.t_max) == -np.inf
        assert law.time(-np.inf) == law.t_max
    else:
        assert law.alpha(law.t_max) > 0
    assert law.t_zero < law.t_min < law.t_max


@pytest.mark.parametrize(("low", "high"), [(0.1, 20.0), (0.5, 3.0), (2.0, 2.0)])
def test_linear_schedule_integrates_its_beta(low, high):
    law = VPLinear(low, high)
    for t in (1e-6, 1e-3, 0.1, 0.5, 1.0):
        spent = quad(lambda s: low + s * (high - low), 0, t, epsabs=0, epsrel=1e-13)[0]
        assert law.alpha(t) == pytest.approx(np.exp(-spent / 2), rel=1e-13)
        assert law.sigma(t) == pytest.approx(np.sqrt(-np.expm1(-spent)), rel=1e-13)


@pytest.mark.parametrize("s", [0.0, 0.008, 0.1])
def test_cosine_schedule_in_high_precision(s):
    law = VPCosine(s)
    with mpmath.workdps(40):
        angle = lambda t: (t + mpmath.mpf(s)) / (1 + mpmath.mpf(s)) * mpmath.pi / 2  # noqa: E731
        for t in (1e-9, 1e-4, 0.02, 0.5, 0.98, 1 - 1e-9):
            alpha = mpmath.cos(angle(mpmath.mpf(t))) / mpmath.cos(angle(mpmath.mpf(0)))
            sigma = mpmath.sqrt(1 - alpha**2)
            # lam at 1 - 1e-9 depends on how t was rounded, not on the formula.
            assert law.alpha(t) == pytest.approx(float(alpha), rel=1e-13)
            assert law.sigma(t) == pytest.approx(float(sigma), rel=1e-13)
            assert law.lam(t) == pytest.approx(float(mpmath.log(alpha / sigma)), rel=1e-13)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_flow_shift(shift):
    t = np.linspace(0, 1, 101)
    sigma = shift * t / (1 + (shift - 1) * t)
    law = FlowMatching(shift)
    np.testing.assert_allclose(law.sigma(t), sigma, atol=1e-15)
    np.testing.assert_allclose(law.alpha(t), 1 - sigma, atol=1e-15)
    np.testing.assert_allclose(law.label(t), 1000 * sigma, atol=1e-12)


def test_edm_is_its_own_time():
    t = np.geomspace(1e-4, 1e4, 50)
    np.testing.assert_allclose(EDM().sigma(t), t, rtol=1e-14)
    assert (EDM().alpha(t) == 1).all()
    # c_noise of Karras et al. 2022, table 1.
    np.testing.assert_allclose(EDM().label(t), np.log(t) / 4, rtol=1e-13)


@pytest.mark.parametrize("name", LAWS)
def test_times_of_labels_come_back(name):
    law = LAWS[name]
    t = np.linspace(law.t_min, law.t_max, 57)
    np.testing.assert_allclose(law.time_of(law.label(t)), t, rtol=1e-13, atol=1e-15)
    assert (np.diff(law.label(t)) > 0).all()


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("n", [10, 1000])
def test_discrete_levels_are_the_cumulative_product(kind, n):
    table = betas(kind, n)
    law = VPDiscrete(table)
    product = torch.cumprod(1 - torch.from_numpy(table), 0).numpy()
    index = np.arange(n)
    np.testing.assert_allclose(law.alpha(index) ** 2, product, rtol=1e-12)
    np.testing.assert_allclose(law.sigma(index) ** 2, 1 - product, rtol=1e-11)
    assert (law.label(index) == index).all()


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    [
        ("linear", 1e-4, 0.02),
        ("scaled_linear", 0.00085, 0.012),
        ("squaredcos_cap_v2", 1e-4, 0.02),
        ("sigmoid", 1e-4, 0.02),
        ("laplace", 1e-4, 0.02),
        ("exp", 1e-4, 0.02),
    ],
)
def test_discrete_levels_are_those_of_diffusers(kind, start, end):
    known = HeunDiscreteScheduler if kind == "exp" else DDPMScheduler
    theirs = known(1000, beta_schedule=kind, beta_start=start, beta_end=end)
    ours = VPDiscrete(betas(kind, 1000, start, end))
    alpha2 = ours.alpha(np.arange(1000)) ** 2
    # Theirs are float32 betas and a float32 product of 1000 of them; a beta near 1 leaves 1 - beta
    # with four digits (the last of the cosine).
    np.testing.assert_allclose(alpha2, theirs.alphas_cumprod.numpy(), rtol=5e-5)
    np.testing.assert_allclose(betas(kind, 1000, start, end), theirs.betas.numpy(), rtol=2e-6)


def test_zero_terminal_snr_is_that_of_diffusers():
    theirs = rescale_zero_terminal_snr(torch.from_numpy(STABLE_DIFFUSION))
    product = torch.cumprod(1 - theirs, 0).numpy()
    ours = zero_terminal_snr(np.cumprod(1 - STABLE_DIFFUSION))
    np.testing.assert_allclose(ours, product, rtol=1e-9, atol=1e-16)
    assert ours[-1] == 0
    assert ours[0] == pytest.approx(1 - STABLE_DIFFUSION[0], rel=1e-12)
    scheduler = DDIMScheduler(trained_betas=STABLE_DIFFUSION, rescale_betas_zero_snr=True)
    np.testing.assert_allclose(ours, scheduler.alphas_cumprod.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", sorted(DISCRETE))
def test_discrete_law_between_its_levels(name):
    """Linear in lam inside the table, linear in the angle where an end of the slot is infinite."""
    law = LAWS[name]
    index = np.arange(0, 998)
    middle = (law.lam(index) + law.lam(index + 1)) / 2
    np.testing.assert_allclose(law.lam(index + 0.5), middle, rtol=1e-12, atol=1e-12)
    angle = np.arctan2(law.sigma(0), law.alpha(0))
    assert law.sigma(-0.75) == pytest.approx(np.sin(angle / 4), rel=1e-13)
    if name in PURE_NOISE:
        angle = np.arctan2(law.sigma(998), law.alpha(998))
        assert law.alpha(998.5) == pytest.approx(np.cos((angle + np.pi / 2) / 2), rel=1e-9)


@pytest.mark.parametrize("name", sorted(set(LAWS) - {"edm"}))
@pytest.mark.parametrize("beyond", [-0.5, 0.5, np.nan])
def test_times_out_of_range_are_named(name, beyond):
    law = LAWS[name]
    time = law.t_zero + beyond if beyond < 0 else law.t_max + beyond
    with pytest.raises(ValueError, match=f"time {time} is outside"):
        law.lam([law.t_min, time])


def test_edm_refuses_only_what_is_no_sigma():
    assert EDM().lam(1e6) == pytest.approx(-np.log(1e6))
    assert EDM().lam(np.inf) == -np.inf
    for bad in (-1.0, np.nan):
        with pytest.raises(ValueError, match=f"time {bad}"):
            EDM().lam(bad)


def test_discrete_law_names_the_level_it_lacks():
    law = LAWS["discrete-scaled"]
    with pytest.raises(ValueError, match="noisier than the last trained level"):
        law.time(law.lam(999) - 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPLinear(beta_min=-0.1), "beta_min"),
        (lambda: VPLinear(beta_min=np.nan), "beta_min"),
        (lambda: VPLinear(beta_min=3, beta_max=2), "beta_min"),
        (lambda: VPLinear(t_min=0), "t_min"),
        (lambda: VPCosine(s=-1), "s >= 0"),
        (lambda: EDM(sigma_min=0), "sigma_min"),
        (lambda: EDM(sigma_min=80, sigma_max=80), "sigma_min"),
        (lambda: EDM(sigma_max=np.inf), "sigma_max"),
        (lambda: FlowMatching(shift=0), "shift"),
        (lambda: FlowMatching(shift=np.nan), "shift"),
        (lambda: FlowMatching(t_min=2), "t_min"),
        (lambda: VPDiscrete(), "either betas or alphas_cumprod"),
        (lambda: VPDiscrete([0.1], [0.9]), "either betas or alphas_cumprod"),
        (lambda: VPDiscrete([0.1]), "2 levels"),
        (lambda: VPDiscrete([0.1, 0.2, -0.1, 0.1]), "entry 2"),
        (lambda: VPDiscrete(alphas_cumprod=[0.9, 0.5, 0.5]), "entry 2"),
        (lambda: VPDiscrete(alphas_cumprod=[0.9, 0.0, 0.0]), "entry 1"),
        (lambda: VPDiscrete(alphas_cumprod=[0.9, np.nan, 0.1]), "entry 1"),
        (lambda: betas("poem"), "unknown kind"),
    ],
)
def test_impossible_laws_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("t_min", [1e-3, 1e-5])
def test_a_linear_law_between_two_levels(t_min):
    law = VPLinear.between(0.002, 80, t_min)
    t = np.geomspace(t_min, 1, 50)
    # q(t) = log(1 + nsr^2) is a parabola through 0 and the two ends.
    q = np.log1p(law.nsr(t) ** 2)
    a, b = np.linalg.solve([[t_min**2, t_min], [1, 1]], np.log1p(np.array([0.002, 80]) ** 2))
    np.testing.assert_allclose(q, a * t**2 + b * t, rtol=1e-8)
    np.testing.assert_allclose(law.time(law.lam(t)), t, rtol=1e-9)
    assert law.lam(0) == np.inf
    np.testing.assert_allclose(law.nsr([t_min, 1]), [0.002, 80], rtol=1e-9)


def test_a_table_of_levels_is_shown_in_a_line():
    assert repr(VPDiscrete(betas())) == "VPDiscrete(1000 levels, alpha^2 0.9999 to 4.03583e-05)"
