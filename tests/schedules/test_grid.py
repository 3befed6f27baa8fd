"""Grids as values: what they hold, what they refuse, and round trips."""

from __future__ import annotations

import dataclasses

import fewstep
import numpy as np
import pytest
from fewstep.schedules import EDM, FlowMatching, Grid, VPLinear
from hypothesis import given
from hypothesis import strategies as st

from .laws import LAWS

# Half log-SNRs that every law of `LAWS` reaches.
REACHED = (-2.5, 8.0)


def falling(low: float, high: float):
    """Strictly falling lists of 2 to 12 floats, at least 1e-3 of the range apart."""
    gaps = st.lists(st.floats(0.01, 1), min_size=3, max_size=13)
    return gaps.map(lambda g: (high - (high - low) * np.cumsum(g) / sum(g))[:-1])


@pytest.mark.parametrize("name", LAWS)
@given(lams=falling(*REACHED))
def test_lams_come_back(name, lams):
    rising = lams[::-1]
    grid = Grid.from_lams(LAWS[name], rising)
    # Below index 0 a discrete law keeps lam only as a small angle in t.
    np.testing.assert_allclose(grid.lam, rising, atol=1e-9)
    np.testing.assert_allclose(np.log(grid.alpha / grid.sigma), rising, atol=1e-9)


@pytest.mark.parametrize("name", LAWS)
@given(lams=falling(*REACHED))
def test_sigmas_come_back(name, lams):
    sigmas = np.exp(-lams[::-1])
    grid = Grid.from_sigmas(sigmas, LAWS[name])
    np.testing.assert_allclose(grid.sigma / grid.alpha, sigmas, rtol=1e-9)
    again = Grid.from_times(LAWS[name], grid.time)
    np.testing.assert_allclose(again.sigma, grid.sigma, rtol=1e-9)


@given(lams=falling(-20.0, 20.0))
def test_sigmas_without_a_schedule_are_edm(lams):
    sigmas = np.append(np.exp(-lams[::-1]), 0)
    grid = Grid.from_sigmas(sigmas)
    assert (grid.alpha == 1).all()
    np.testing.assert_allclose(grid.sigma, sigmas, rtol=1e-13)
    assert (grid.time == sigmas).all()
    assert (grid.sigma[-1], grid.lam[-1]) == (0, np.inf)
    assert isinstance(grid.schedule, EDM)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([3, 2, 2, 1], r"node 2 .* repeats node 1"),
        ([3, 1, 2, 0.5], r"node 2 .* is noisier than node 1"),
        ([1, 2], r"node 1 .* is noisier than node 0"),
        ([2, 1, 0, 0], r"node 2 is already clean"),
        ([2, 0, 1], r"node 1 is already clean"),
        ([1], "at least 2 nodes"),
        ([], "at least 2 nodes"),
        ([2, np.nan, 1], "finite"),
        ([np.inf, 1], "finite"),
        ([2, -1], ">= 0"),
        ([[2, 1], [1, 0]], "shape"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_sigmas_are_refused(sigmas, message):
    with pytest.raises(ValueError, match=message):
        Grid.from_sigmas(np.array(sigmas, dtype=float))


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("swap", [0, 3, 5])
def test_unsorted_times_name_the_node(name, swap):
    law = LAWS[name]
    times = np.linspace(law.t_max, law.t_min, 7)
    times[[swap, swap + 1]] = times[[swap + 1, swap]]
    # Swapping makes one node noisier than the one before it: the second of the pair.
    with pytest.raises(ValueError, match=f"node {swap + 1} .* is noisier than node {swap}"):
        Grid.from_times(law, times)


@pytest.mark.parametrize("name", ["flow", "zero-snr", "vp-cosine"])
@pytest.mark.filterwarnings("error")
def test_two_nodes_of_pure_noise_are_one_too_many(name):
    law = LAWS[name]
    with pytest.raises(ValueError, match=r"node 1 .* repeats node 0"):
        Grid.from_times(law, [law.t_max, law.t_max, law.t_min])


@pytest.mark.parametrize("bad", [np.nan, 1.5, -0.1])
def test_times_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=f"time {bad} is outside"):
        Grid.from_times(VPLinear(), [1.0, bad, 0.1])


def test_lams_out_of_reach_are_refused():
    # VPLinear ends at lam = -5.02; noisier levels have no time.
    with pytest.raises(ValueError, match="outside"):
        Grid.from_lams(VPLinear(), [-6, 0, 1])


@pytest.mark.parametrize("field", ["time", "alpha", "sigma", "lam", "label"])
def test_columns_must_belong_together(field):
    columns = {
        "time": [1.0, 0.5, 0],
        "alpha": [1.0, 1, 1],
        "sigma": [1.0, 0.5, 0],
        "lam": [0.0, np.log(2), np.inf],
        "label": [0.0, 0, 0],
    }
    Grid(**columns)
    with pytest.raises(ValueError, match=f"{field} is NaN at node 1"):
        Grid(**{**columns, field: [columns[field][0], np.nan, columns[field][2]]})
    short = {**columns, field: columns[field][:2]}
    with pytest.raises(ValueError, match="shape"):
        Grid(**short)


@pytest.mark.parametrize("node", [0, 2, 4])
def test_lam_must_be_that_of_alpha_and_sigma(node):
    grid = fewstep.grid(VPLinear(), 4)
    lam = grid.lam.copy()
    lam[node] = lam[node] - 0.01 if np.isfinite(lam[node]) else 9.0
    with pytest.raises(ValueError, match=f"node {node} has lam"):
        Grid(grid.time, grid.alpha, grid.sigma, lam, grid.label)


def test_a_grid_is_a_value():
    grid = fewstep.grid(VPLinear(), 4)
    with pytest.raises(ValueError, match="read-only"):
        grid.sigma[0] = 3
    with pytest.raises(AttributeError):
        grid.sigma = np.zeros(5)
    times = np.array([1.0, 0.5, 0.2])
    kept = Grid.from_times(VPLinear(), times)
    times[:] = 0
    assert kept.time.tolist() == [1.0, 0.5, 0.2]


def test_nodes_are_linked_and_equal_the_columns():
    grid = fewstep.grid(FlowMatching(3.0), 5, "uniform")
    assert len(grid.nodes) == 6
    for k, node in enumerate(grid.nodes):
        assert node.index == k
        assert node.schedule is grid.schedule
        for field in ("time", "alpha", "sigma", "lam", "label"):
            assert getattr(node, field) == getattr(grid, field)[k]
        assert node.next is (grid.nodes[k + 1] if k < 5 else None)


def test_stages_lie_at_fractions_of_lam():
    grid = fewstep.grid(VPLinear(), 3, "karras")
    staged = grid.with_stages([1 / 3, 2 / 3])
    # The last step is infinite and has no inside.
    assert staged.stage.tolist() == [False, True, True, False, True, True, False, False]
    outer = staged.lam[~staged.stage]
    np.testing.assert_allclose(outer, grid.lam, rtol=1e-12)
    h = np.diff(grid.lam)[:2]
    np.testing.assert_allclose(staged.lam[[1, 4]], grid.lam[:2] + h / 3, atol=1e-12)
    np.testing.assert_allclose(staged.lam[[2, 5]], grid.lam[:2] + 2 * h / 3, atol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_nodes_at_other_times(name):
    """Those that stay keep what they have, also if it is not quite that of the law."""
    law = LAWS[name]
    times = np.linspace(law.t_max, law.t_min, 6)
    grid = Grid.from_times(law, times)
    grid = dataclasses.replace(grid, label=grid.label + 0.25)
    moved = times.copy()
    moved[2] = times[[2, 3]].mean()
    other = grid.with_times(moved)
    for column in ("time", "alpha", "sigma", "lam"):
        assert (getattr(other, column) == getattr(Grid.from_times(law, moved), column)).all()
    assert np.flatnonzero(other.label != grid.label).tolist() == [2]
    assert other.label[2] == law.label(moved[2])
    assert other.schedule is law
    moved[2] = times[3]
    with pytest.raises(ValueError, match="repeats"):
        grid.with_times(moved)


def test_stages_may_repeat_but_not_end_a_grid():
    grid = Grid.from_sigmas([4, 2, 1])
    twice = grid.select([0, 1, 1, 2], [False, True, False, False])
    assert twice.sigma.tolist() == [4, 2, 2, 1]
    with pytest.raises(ValueError, match=r"node 2 .* repeats node 1"):
        grid.select([0, 1, 1, 2], [False] * 4)
    for stage in ([True, False, False], [False, False, True]):
        with pytest.raises(ValueError, match="first and the last"):
            grid.select([0, 1, 2], stage)


def test_numbers_alone_have_no_points_between():
    known = fewstep.grid(VPLinear(), 3)
    columns = {key: getattr(known, key) for key in ("time", "alpha", "sigma", "lam", "label")}
    with pytest.raises(ValueError, match="does not know its noise schedule"):
        Grid(**columns).with_stages([0.5])
