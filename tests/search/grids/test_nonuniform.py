"""DM-NonUniform against the formula of its authors, and its minimum against others."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
from fewstep import samplers
from fewstep.schedules import EDM, Grid, VPLinear
from fewstep.search.grids import error_bound, nonuniform


def theirs(lam: np.ndarray, power: int) -> float:
    """As their script has it for up to 7 evaluations, read off its formulas."""
    h, e = np.diff(lam), np.exp(lam)
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam))
    err, n = sigma**power / alpha, len(h)
    h0, h1 = np.expm1(h), np.exp(h) * h - np.expm1(h)
    h2 = np.exp(h) * h * h - 2 * h1
    total, mixed = 0.0, np.zeros(n)
    for s in range(n):
        if s in (0, n - 1):
            total += abs((e[s + 1] - e[s]) * err[s])
            continue
        if s in (1, n - 2):
            at = np.array([s - 1, s])
            parts = np.array(
                [-e[s] * h1[s] / h[s - 1], e[s] * (h1[s] + h[s - 1] * h0[s]) / h[s - 1]]
            )
        else:
            at, a, b = np.array([s - 2, s - 1, s]), h[s - 2], h[s - 1]
            parts = e[s] * np.array(
                [
                    (h2[s] + b * h1[s]) / (a * (a + b)),
                    -(h2[s] + (a + b) * h1[s]) / (a * b),
                    (h2[s] + (2 * b + a) * h1[s] + b * (a + b) * h0[s]) / (b * (a + b)),
                ]
            )
        if s >= 3:
            mixed[at] += err[at] * parts
        else:
            total += np.sqrt(np.square(err[at] * parts).sum())
    return total + np.abs(mixed).sum()


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("spacing", ["uniform", "lam", "karras"])
def test_the_bound_is_that_of_its_authors(spacing, power):
    for steps in (4, 5, 7):
        grid = fewstep.grid(VPLinear(), steps, spacing, end="min")
        ours = error_bound(samplers.build("ab-3", grid), power) / grid.sigma[-1]
        assert ours == pytest.approx(theirs(grid.lam, power), rel=1e-9)


@pytest.mark.parametrize("solver", ["ab-3", "unipc-3", "heun"])
@pytest.mark.parametrize("law", [VPLinear(), EDM()], ids=["vp", "edm"])
def test_no_other_nodes_pass_on_less(law, solver):
    steps = 5

    def bound(nodes):
        return error_bound(samplers.build(solver, nodes))

    found = nonuniform(law, steps, solver=solver)
    nodes = fewstep.grid(law, steps, found, end="min")
    assert (nodes.time[0], nodes.time[-1]) == (law.t_max, law.t_min)
    least = bound(nodes)
    for spacing in ("uniform", "quadratic", "power", "lam", "karras", "beta"):
        assert least < bound(fewstep.grid(law, steps, spacing, end="min"))
    # It is a minimum: moves of a node to either side raise it, by the square of the way or more.
    for k in range(1, steps):
        for way in (-0.02, 0.02):
            lam = nodes.lam.copy()
            lam[k] += way
            assert bound(Grid.from_lams(law, lam)) > least * (1 - 1e-7)


def test_latents_need_other_nodes():
    pixels, latents = (nonuniform(VPLinear(), 5, power=power).lams[0] for power in (1, 2))
    assert latents[1] < pixels[1] - 0.1


def test_one_step_leaves_nothing_to_choose():
    law = VPLinear()
    found = nonuniform(law, 1)
    np.testing.assert_allclose(found.lams[0], law.lam([law.t_max, law.t_min]))


def test_pure_noise_is_refused():
    with pytest.raises(ValueError, match="infinite at pure noise"):
        nonuniform(fewstep.schedules.FlowMatching(), 4)
