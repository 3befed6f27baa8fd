"""DPM-Solver-v3: its special cases, its recursion written out, exact steps and orders."""

from __future__ import annotations

from functools import cache
from math import factorial

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import (
    Batch,
    ModelStatistics,
    build,
    dpm_v3,
    estimate_statistics,
    exact,
    sample,
    unipc,
)
from fewstep.schedules import EDM, FlowMatching, Grid, VPLinear
from scipy.integrate import quad
from scipy.interpolate import CubicSpline

from .problems import gentle

LAW = VPLinear()


def constant(l: float, s: float, b: float = 0.0) -> ModelStatistics:
    return ModelStatistics([0.0], [l], [s], [b])


@pytest.mark.parametrize("prediction", ["x0", "eps"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_without_statistics_it_is_the_polynomial_rule(order, prediction):
    """l = 1, s = 0 is the rule in x0, and l = 0, s = -1 the one in eps."""
    grid = fewstep.grid(LAW, 7, "uniform", end="min" if prediction == "eps" else "zero")
    known = None if prediction == "x0" else constant(0, -1)
    for corrector in (True, False):
        ours = dpm_v3(grid, known, order, corrector, extra=1).in_basis(prediction)
        theirs = unipc(grid, order, "exact", corrector, prediction)
        np.testing.assert_allclose(ours.carry, theirs.carry, atol=1e-12)
        np.testing.assert_allclose(ours.weights, theirs.weights, atol=1e-12)
        assert not ours.bias.any()


@pytest.mark.parametrize("law", [FlowMatching(3.0), EDM(), LAW], ids=["flow", "edm", "vp"])
def test_ends_are_plain(law):
    """From pure noise and into clean data, where the statistics say nothing."""
    rng = np.random.default_rng(0)
    known = ModelStatistics(np.linspace(-3, 3, 5), *rng.uniform(0.2, 0.8, (3, 5, 2, 2)))
    for n in (1, 2, 3, 9):
        table = dpm_v3(fewstep.grid(law, n, "uniform"), known, corrector=False)
        assert np.isfinite(table.weights).all()
        np.testing.assert_allclose(table.carry[-1], 0, atol=1e-12)
        np.testing.assert_allclose(table.weights[-1, -1], 1, atol=1e-12)
        np.testing.assert_allclose(table.weights[-1, :-1], 0, atol=1e-12)
        assert not table.bias[-1].any()


def smooth(nodes: int = 60) -> ModelStatistics:
    """Two pixels, on more lams than the grids below."""
    lams = np.linspace(-5.1, 3.0, nodes)[:, None]
    place = np.array([0.3, 1.1])
    return ModelStatistics(
        lams[:, 0],
        0.7 + 0.3 * np.tanh(place - lams),
        0.4 * np.sin(lams + place) - 0.3,
        place * np.cos(0.5 * lams),
    )


def recursion(grid, known, denoiser, x, p, correct, rules, extra):
    """The algorithm of the paper with caches of x and eps; `rules` are those of both derivatives.

    x is [B, 2]; all integrals by adaptive quadrature, pixel by pixel.
    """
    lams = known.lams
    splines = [CubicSpline(lams, values) for values in (known.l, known.s, known.b)]
    alpha, sigma, lam = grid.alpha, grid.sigma, grid.lam
    total = [spline.antiderivative() for spline in splines[:2]]

    def integral(function, low, high):
        """Pixel by pixel; kinks of the third derivative do not matter to the digits compared."""
        return np.array(
            [quad(lambda u, i=i: function(u)[i], low, high, epsabs=1e-11)[0] for i in range(2)]
        )

    def since(k, u, low):
        return total[k](u) - total[k](low)

    def inner(u, low):
        return integral(lambda w: np.exp(-since(1, w, low)) * splines[2](w), low, u)

    def g(q, s, xs, eps):
        f = (sigma[q] * eps[q] - splines[0](lam[q]) * xs[q]) / alpha[q]
        return np.exp(since(1, lam[s], lam[q])) * f - inner(lam[q], lam[s])

    def update(s, used, xs, eps, pseudo):
        low, high = lam[s], lam[s + 1]
        value = alpha[s + 1] / alpha[s] * np.exp(-since(0, high, low)) * xs[s]

        def kernel(u):
            return np.exp(since(0, u, high) + since(1, u, low))

        value = value - alpha[s + 1] * integral(lambda u: kernel(u) * inner(u, low), low, high)
        gs = [g(q, s, xs, eps) for q in used]
        at = lam[used]
        if pseudo:
            table = [gs]
            for i in range(1, len(used)):
                last = table[-1]
                table.append(
                    [(last[j] - last[j + 1]) / (at[j] - at[i + j]) for j in range(len(used) - i)]
                )
            derivatives = [factorial(i) * column[0] for i, column in enumerate(table)]
        else:
            powers = (at[1:, None] - at[0]) ** np.arange(1, len(used))
            right = np.stack(gs)[1:] - gs[0]
            solved = np.linalg.solve(powers, right.reshape(len(right), gs[0].size))
            derivatives = [
                gs[0],
                *(factorial(i + 1) * c.reshape(gs[0].shape) for i, c in enumerate(solved)),
            ]
        for k, derivative in enumerate(derivatives):
            moment = integral(lambda u, k=k: kernel(u) * (u - low) ** k / factorial(k), low, high)
            value = value - alpha[s + 1] * moment * derivative
        return value

    xs, eps = [], []
    for n in range(grid.nfe):
        xs.append(x)
        x0 = denoiser(torch.from_numpy(x), grid.nodes[n]).numpy()
        eps.append((x - alpha[n] * x0) / sigma[n])
        if n and correct(n):
            count = min(p, n, grid.nfe + 1 - n) + extra
            used = [n - 1, n, *range(n - 2, -1, -1)][:count]
            if count > 1:
                moved = update(n - 1, used, xs, eps, rules[1])
                eps[n] = eps[n] + splines[0](lam[n]) * (moved - xs[n]) / sigma[n]
                xs[n] = moved
        count = min(p, n + 1, grid.nfe - n)
        x = update(n, list(range(n, n - count, -1)), xs, eps, rules[0])
    return x


def toy(x, node):
    return torch.tanh(x / node.alpha + x.flip(-1) * node.lam / 5)


CASES = [
    ({"order": 1, "corrector": False}, 1, lambda n: False, (False, False), 0),
    ({"order": 3, "corrector": False}, 3, lambda n: False, (False, False), 0),
    ({"order": 3}, 3, lambda n: True, (False, False), 0),
    ({"order": 2, "extra": 1}, 2, lambda n: True, (False, False), 1),
    ({"order": 3, "pseudo": "predictor"}, 3, lambda n: True, (True, False), 0),
    ({"order": 2, "pseudo": "corrector"}, 2, lambda n: True, (False, True), 1),
    ({"order": 3, "pseudo": "both"}, 3, lambda n: True, (True, True), 1),
    ({"order": 3, "half": "paper"}, 3, "later", (False, False), 0),
    ({"order": 3, "half": "released"}, 3, "earlier", (False, False), 0),
]


@pytest.mark.parametrize(("options", "p", "correct", "rules", "extra"), CASES)
def test_the_table_is_the_recursion_written_out(options, p, correct, rules, extra):
    grid = fewstep.grid(LAW, 5, "uniform", end="min", t_min=0.05)
    if isinstance(correct, str):
        left = (grid.time - LAW.t_min) / (LAW.t_max - LAW.t_min)
        half = left <= 0.5 if correct == "later" else left > 0.5
        assert half[1:-1].any()
        assert not half[1:-1].all()
        correct = half.__getitem__
    x = np.random.default_rng(1).normal(size=(3, 2))
    table = dpm_v3(grid, smooth(), **options)
    assert table.weights.shape == (5, 5, 2)
    assert table.bias.any()
    ours = sample(toy, table, torch.from_numpy(x)).numpy()
    theirs = recursion(grid, smooth(), toy, x, p, correct, rules, extra)
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
    assert (
        np.abs(ours - sample(toy, dpm_v3(grid, None, p), torch.from_numpy(x)).numpy()).max() > 0.01
    )


def test_normal_data_of_independent_pixels_take_one_step():
    """f = -l mean there, whose own equation f' = s f + b is that of the solver."""
    mean, var = np.array([0.5, -1.0, 2.0]), np.array([0.2, 1.0, 0.05])
    lams = np.linspace(-5, 5, 400)
    l = 1 / (np.exp(2 * lams)[:, None] * var + 1)
    known = ModelStatistics(lams, l, 0 * l, 2 * l * (1 - l) * mean)
    denoiser = exact.gaussian(mean, np.diag(var))
    grid = Grid.from_lams(LAW, [-4.0, 2.5])
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = sample(denoiser, dpm_v3(grid, known, 1), x)
    scale = np.sqrt(grid.alpha[:, None] ** 2 * var + grid.sigma[:, None] ** 2)
    end = grid.alpha[1] * mean + scale[1] / scale[0] * (x.numpy() - grid.alpha[0] * mean)
    np.testing.assert_allclose(ours.numpy(), end, atol=1e-6)
    assert np.abs(sample(denoiser, build("ddim", grid), x).numpy() - end).max() > 0.1


@cache
def estimated() -> ModelStatistics:
    problem, rng = gentle(), np.random.default_rng(5)
    mixture = problem.denoiser
    kind = rng.choice(3, 256, p=mixture.log_weights.exp().numpy())
    z = torch.from_numpy(rng.normal(size=(256, 3)))
    spread = torch.einsum("bdr,br->bd", mixture.vectors[kind], z * mixture.values[kind].sqrt())
    data = mixture.means[kind] + spread
    law = EDM(problem.sigma_min, problem.sigma_max)
    return estimate_statistics([Batch(mixture, data, range(256))], law, 50)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"order": 2, "extra": 1}, 3),
        ({"order": 3, "corrector": False}, 3),
        pytest.param({"order": 1, "corrector": False}, 1, marks=pytest.mark.slow),
        pytest.param({"order": 2, "corrector": False}, 2, marks=pytest.mark.slow),
        ({"order": 3}, 3),
        pytest.param({"order": 1, "extra": 1}, 2, marks=pytest.mark.slow),
        ({"order": 3, "pseudo": "both"}, 2),
    ],
)
def test_order_of_convergence_with_statistics(options, order):
    problem = gentle()
    errors = [
        problem.error(dpm_v3(problem.grid(n), estimated(), lower_final=False, **options))
        for n in (80, 160)
    ]
    found = np.log2(errors[0] / errors[1])
    assert abs(found - order) < 0.3, f"{found:.2f} from {errors}"


def test_statistics_may_be_a_file(tmp_path):
    path = tmp_path / "digits.safetensors"
    smooth().save(path)
    grid = fewstep.grid(LAW, 5, "uniform")
    table = build("dpm-v3", grid, statistics=str(path), order=2)
    again = dpm_v3(grid, ModelStatistics.load(path), 2, extra=1)
    np.testing.assert_array_equal(table.weights, again.weights)
    np.testing.assert_array_equal(table.bias, again.bias)
    assert table.meta["options"]["statistics"] == str(path)
    far = np.abs(grid.lam[:-1, None] - smooth().lams).min(1).max()
    assert table.meta["off_nodes"] == pytest.approx(far)
    # Statistics say nothing of a form.
    edm = Grid.from_lams(EDM(), grid.lam)
    ours = dpm_v3(edm, path)
    other = table.in_basis("x0")
    np.testing.assert_allclose(
        ours.carry * (grid.alpha[1:] / grid.alpha[:-1])[:, None],
        dpm_v3(grid, path).carry,
        atol=1e-10,
    )
    assert other is table


def test_bad_options_are_named():
    grid = fewstep.grid(LAW, 5, "uniform")
    for options, said in (
        ({"pseudo": "some"}, "pseudo"),
        ({"half": "upper"}, "half"),
        ({"extra": 2}, "0 or 1"),
        ({"statistics": "missing.safetensors"}, "missing.safetensors"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            dpm_v3(grid, **options)
