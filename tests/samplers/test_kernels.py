"""The exponential integrals and the polynomial rule against high precision and their limits."""

from __future__ import annotations

import math

import fewstep
import mpmath
import numpy as np
import pytest
from fewstep.samplers.kernels import interpolate, kernel, moments
from fewstep.schedules import EDM, FlowMatching, Grid, VPLinear
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

COUNT = 8
# From steps so short that everything cancels to far longer ones than any grid has.
LENGTHS = np.concatenate([np.geomspace(1e-12, 500, 20), [0.5, 1, 30, 50, 100, 200]])


def by_series(y: mpmath.mpf, j: int, basis: str) -> mpmath.mpf:
    """y int_0^1 k(v) v^j dv, k(v) = e^(-y (1 - v)) for x0 and e^(-y v) for eps, term by term.

    int e^(s y v) v^j dv = sum_i (s y)^i / (i! (i + j + 1)), with s = 1 for x0 and -1 for eps.
    """
    sign = 1 if basis == "x0" else -1
    total, term, i = mpmath.mpf(0), mpmath.mpf(1), 0
    while i < y or abs(term) > mpmath.eps:
        total += term / (i + j + 1)
        i += 1
        term *= sign * y / i
    return y * total * (mpmath.exp(-y) if basis == "x0" else 1)


@pytest.mark.parametrize("basis", ["x0", "eps"])
def test_moments_in_high_precision(basis):
    got = moments(LENGTHS, COUNT, basis)
    assert got.shape == (COUNT, len(LENGTHS))
    # For eps, terms of size e^500 cancel down to e^-50: 300 digits see it through.
    with mpmath.workdps(300):
        for k, y in enumerate(LENGTHS):
            for j in range(COUNT):
                exact = by_series(mpmath.mpf(float(y)), j, basis)
                assert abs(got[j, k] / exact - 1) <= 1e-13, (y, j)


@pytest.mark.parametrize("basis", ["x0", "eps"])
def test_moments_at_both_limits(basis):
    short = moments(1e-14, COUNT, basis) / 1e-14
    np.testing.assert_allclose(short, 1 / np.arange(1, COUNT + 1), rtol=1e-13)
    assert (moments(0.0, COUNT, basis) == 0).all()
    long = moments(1e4, COUNT, basis)
    # The kernel of x0 gathers at v = 1, that of eps at v = 0: int_0^inf e^-u u^j du = j!.
    target = [1 if basis == "x0" else math.factorial(j) * 1e-4**j for j in range(COUNT)]
    np.testing.assert_allclose(long, target, rtol=1e-3)


@given(y=st.floats(1e-12, 500))
@pytest.mark.parametrize("basis", ["x0", "eps"])
def test_first_moment_is_elementary(basis, y):
    assert moments(y, 1, basis)[0] == pytest.approx(-math.expm1(-y), rel=1e-14)


@pytest.mark.parametrize("basis", ["x0", "eps"])
@pytest.mark.parametrize("y", [1e-3, 0.7, 4.0, 20.0])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_interpolation_integrates_polynomials_exactly(basis, y, count):
    rng = np.random.default_rng(count)
    nodes = np.sort(rng.uniform(-2, 1, count))[::-1]
    weights = interpolate(nodes, moments(y, count, basis))
    polynomial = np.polynomial.Polynomial(rng.normal(size=count))

    def weighed(v: float) -> float:
        return y * math.exp(-y * (1 - v if basis == "x0" else v)) * polynomial(v)

    exact = quad(weighed, 0, 1, epsabs=1e-15, epsrel=1e-13)[0]
    assert weights @ polynomial(nodes) == pytest.approx(exact, rel=1e-11, abs=1e-14)


def test_interpolation_reads_a_batch_of_rows():
    nodes = np.array([[0.0, -1.0], [0.0, -0.5]])
    mu = np.array([[1.0, 0.5], [1.0, 0.25]])
    rows = [interpolate(n, m) for n, m in zip(nodes, mu, strict=True)]
    np.testing.assert_array_equal(interpolate(nodes, mu), rows)
    # By hand: w0 + w1 = 1 and -w1 = 1/2.
    np.testing.assert_allclose(rows[0], [1.5, -0.5], rtol=1e-15)


GRIDS = {
    "vp": fewstep.grid(VPLinear(), 6, "karras", end="min"),
    "edm": fewstep.grid(EDM(), 6, "karras", end="min"),
    "flow": fewstep.grid(FlowMatching(), 6, "uniform", t_max=0.99, end="min"),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0, 1.7])
def test_kernel_is_the_published_formula(name, tau):
    grid = GRIDS[name]
    h = np.diff(grid.lam)
    a, s = grid.alpha, grid.sigma
    data = kernel(grid, "x0", tau)
    np.testing.assert_allclose(data.y, (1 + tau**2) * h, rtol=1e-13)
    np.testing.assert_allclose(data.carry, np.exp(-(tau**2) * h) * s[1:] / s[:-1], rtol=1e-13)
    np.testing.assert_allclose(data.first, a[1:] * (1 - np.exp(-(1 + tau**2) * h)), rtol=1e-12)
    np.testing.assert_allclose(
        data.noise, s[1:] * np.sqrt(1 - np.exp(-2 * tau**2 * h)), rtol=1e-12, atol=1e-15
    )
    eps = kernel(grid, "eps", tau)
    np.testing.assert_allclose(eps.carry, a[1:] / a[:-1], rtol=1e-13)
    np.testing.assert_allclose(eps.first, -(1 + tau**2) * s[1:] * np.expm1(h), rtol=1e-12)
    np.testing.assert_allclose(eps.noise, tau * s[1:] * np.sqrt(np.expm1(2 * h)), rtol=1e-12)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_kernel_keeps_the_variance_of_pure_noise(name, tau):
    """With all data at 0 the state is N(0, sigma^2) at every time: two variances must add up."""
    grid = GRIDS[name]
    linear = kernel(grid, "x0", tau)
    variance = (linear.carry * grid.sigma[:-1]) ** 2 + linear.noise**2
    np.testing.assert_allclose(variance, grid.sigma[1:] ** 2, rtol=1e-13)


@pytest.mark.parametrize("basis", ["x0", "eps"])
@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.filterwarnings("error")
def test_kernel_limits_at_pure_noise_and_clean_data(basis, tau):
    grid = Grid.from_times(FlowMatching(), [1.0, 0.6, 0.2, 0.0])
    linear = kernel(grid, basis, tau)
    for values in (linear.carry, linear.scale, linear.noise, linear.first):
        assert np.isfinite(values).all()
    # From pure noise: a constant x0 is reached exactly, and noise is kept or redrawn, never lost.
    assert linear.first[0] == grid.alpha[1]
    total = (linear.carry[0] * grid.sigma[0]) ** 2 + linear.noise[0] ** 2
    assert total == pytest.approx(grid.sigma[1] ** 2, rel=1e-15)
    # Into clean data: x0, and not a trace of noise.
    assert linear.noise[-1] == 0
    if basis == "x0":
        assert (linear.carry[-1], linear.first[-1]) == (0, 1)
    else:
        # x0 = (x - sigma eps) / alpha.
        assert linear.carry[-1] == pytest.approx(1 / 0.8, rel=1e-15)
        assert linear.first[-1] == pytest.approx(-0.2 / 0.8, rel=1e-15)


def test_tau_may_change_from_step_to_step():
    grid = GRIDS["vp"]
    mixed = kernel(grid, "x0", [0, 1, 0.5, 0, 1, 0.5])
    for tau in (0.0, 0.5, 1.0):
        rows = np.flatnonzero(np.array([0, 1, 0.5, 0, 1, 0.5]) == tau)
        plain = kernel(grid, "x0", tau)
        for field in ("y", "carry", "noise", "scale"):
            assert (getattr(mixed, field)[rows] == getattr(plain, field)[rows]).all()


def test_kernel_refuses_what_it_cannot_solve():
    grid = GRIDS["vp"]
    with pytest.raises(ValueError, match="x0 or eps outputs, not 'v'"):
        kernel(grid, "v")
    for tau in (np.nan, np.inf):
        with pytest.raises(ValueError, match="tau must be finite"):
            kernel(grid, "x0", tau)
    back = grid.select([0, 2, 1, 3], [False, True, False, False])
    with pytest.raises(ValueError, match="step 1 of the grid does not go forward"):
        kernel(back, "x0")
