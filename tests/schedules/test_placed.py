"""Nodes in numbers: exact where they were placed, in order everywhere, refused by name."""

from __future__ import annotations

import json

import fewstep
import numpy as np
import pytest
from fewstep.schedules import EDM, Placed, VPLinear, grid
from fewstep.schedules.placed import spacing_name
from fewstep.schedules.spacing import named

from .laws import LAWS

# The published sigmas of Align Your Steps for Stable Diffusion 1.5, in 10 steps.
AYS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]


def same(one, other):
    for column in ("time", "alpha", "sigma", "lam", "label"):
        np.testing.assert_allclose(getattr(one, column), getattr(other, column), rtol=1e-9)


@pytest.mark.parametrize("end", ["zero", "min"])
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.filterwarnings("error")
def test_nodes_are_exact_where_they_were_placed_and_rise_elsewhere(name, end):
    law = LAWS[name]
    grids = [grid(law, nfe, "karras", end=end) for nfe in (4, 9)]
    placed = Placed.of(*grids)
    for made in grids:
        same(grid(law, made.nfe, placed, end=end), made)
    for nfe in range(1, 51):
        made = grid(law, nfe, placed, end=end)
        assert made.nfe == nfe
        assert (np.diff(made.lam) > 0).all()
        assert made.lam[0] == grids[0].lam[0]
        assert made.time[-1] == (law.t_zero if end == "zero" else law.t_min)
        if end == "zero" and nfe > 1:
            assert made.time[-2] == law.t_min


def test_between_nodes_the_logarithm_of_the_ratio_is_linear():
    """As numpy interpolates, and as the published script for other numbers of steps does."""
    law = EDM(AYS[-1], AYS[0])
    placed = Placed.of(fewstep.Grid.from_sigmas(AYS))
    for steps in (5, 10, 17):
        shares = np.linspace(0, 1, steps + 1), np.linspace(0, 1, 11)
        theirs = np.exp(np.interp(*shares, np.log(AYS)))
        np.testing.assert_allclose(grid(law, steps, placed, end="min").sigma, theirs, rtol=1e-12)
        # A run to clean data asks at the same nodes, but for the last.
        made = grid(law, steps, placed)
        np.testing.assert_allclose(made.sigma, [*theirs[:-1], 0], rtol=1e-12)


def test_from_pure_noise_the_sigma_of_a_flow_is_geometric():
    law = fewstep.schedules.FlowMatching()
    placed = Placed.of(fewstep.Grid.from_times(law, [1, 0.1, 0.01]))
    np.testing.assert_allclose(grid(law, 4, placed, end="min").sigma, np.logspace(0, -2, 5))


def test_the_nearest_larger_number_of_steps_is_taken():
    law = VPLinear()
    placed = Placed.of(*(grid(law, nfe, spacing) for nfe, spacing in ((3, "lam"), (7, "karras"))))
    few, many = (Placed(lams) for lams in ((placed.lams[0],), (placed.lams[1],)))
    for nfe, alone in ((2, few), (3, few), (4, many), (7, many), (20, many)):
        assert (grid(law, nfe, placed).lam == grid(law, nfe, alone).lam).all()


def test_nodes_carry_over_to_laws_that_have_them():
    placed = Placed.of(grid(EDM(0.02, 50), 6, "karras"))
    made = grid(VPLinear(), 6, placed)
    np.testing.assert_allclose(made.nsr[:-1], grid(EDM(0.02, 50), 6, "karras").sigma[:-1])
    assert made.sigma[-1] == 0
    with pytest.raises(ValueError, match=r"node 0 .* EDM\(.*only"):
        grid(EDM(0.01, 40), 6, placed)
    with pytest.raises(ValueError, match=r"node 5 .*sigma / alpha 0.02\)"):
        grid(EDM(0.1, 50), 6, placed)
    # The last one counts where it is not clean data.
    whole = Placed.of(grid(EDM(0.02, 50), 6, "karras", end="min"))
    assert grid(EDM(0.03, 50), 6, whole).sigma[-1] == 0
    with pytest.raises(ValueError, match=r"node 6 .*sigma / alpha 0.02\)"):
        grid(EDM(0.03, 50), 6, whole, end="min")
    with pytest.raises(ValueError, match="node 0 is at lam -inf"):
        grid(EDM(), 6, Placed.of(grid(LAWS["flow"], 6, "karras")))


def test_ends_that_were_not_placed():
    law = VPLinear()
    placed = Placed.of(grid(law, 4, "uniform"))
    lower = grid(law, 4, placed, end="min")
    assert (lower.lam[:-1] == grid(law, 4, "uniform").lam[:-1]).all()
    assert lower.time[-1] == law.t_min
    assert grid(law, 4, placed, end="min", t_min=0.1).time[-1] == 0.1
    own = Placed.of(grid(law, 4, "uniform", end="min", t_min=0.2))
    assert grid(law, 4, own, end="min").time[-1] == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"last but one .* ends in clean data"):
        grid(law, 4, Placed.of(grid(law, 4, "karras")), end="min")


@pytest.mark.parametrize("option", ["t_max", "t_min", "rho", "offset", "multistep"])
def test_options_that_say_nothing_are_refused(option):
    placed = Placed.of(grid(VPLinear(), 4, "lam"))
    with pytest.raises(ValueError, match=f"has no option {option}"):
        grid(VPLinear(), 4, placed, **{option: 1})


def test_files_and_folders_are_spacings_by_name(tmp_path):
    law = LAWS["zero-snr"]
    placed = Placed.of(*(grid(law, nfe, "uniform") for nfe in (2, 5)))
    placed.save(tmp_path / "runs" / "mine" / "spacing.json")
    placed.save(tmp_path / "ours.json")
    data = json.loads((tmp_path / "ours.json").read_text())
    assert (data["format"], data["version"]) == ("fewstep.spacing", 1)
    assert (data["lam"]["2"][0], data["lam"]["2"][-1]) == ("-inf", "inf")
    for path in ("runs/mine", "runs/mine/spacing.json", "ours.json"):
        assert Placed.load(tmp_path / path) == placed
        assert named(tmp_path / path) == placed
        assert (grid(law, 5, str(tmp_path / path)).lam == grid(law, 5, placed).lam).all()
    assert spacing_name(str(tmp_path / "runs" / "mine")) == "mine"
    assert spacing_name(str(tmp_path / "runs" / "mine" / "spacing.json")) == "mine"
    assert [spacing_name(name) for name in ("ours.json", "karras")] == ["ours", "karras"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "'format' must be"),
        ({"format": "fewstep.tableau"}, "'format' must be"),
        ({"version": 2}, "schema 2; this fewstep reads 1"),
        ({"lam": {"2": [0, 1]}}, r"\(1,\) steps under \[2\]"),
        ({"lam": {"2": [0, 1, 1]}}, "of 2 steps, node 2 at lam 1 comes after 1"),
        ({"lam": {"2": [0, "inf", "inf"]}}, "node 2 at lam inf comes after inf"),
        ({"lam": {"2": [0, "nan", 1]}}, "node 1 at lam nan"),
        ({"lam": {"2": [0, None, 1]}}, "float"),
        ({"lam": {"two": [0, 1, 2]}}, "'two'"),
        ({"lam": {}}, "1 step or more"),
        ({"lam": {"0": [0]}}, "1 step or more"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_files_are_refused(tmp_path, data, message):
    if isinstance(data, dict):
        data = {"format": "fewstep.spacing", "version": 1, "lam": {"1": [0, 1]}, **data}
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as error:
        grid(VPLinear(), 2, str(path))
    assert "bad.json" in str(error.value)


def test_what_is_no_file_is_said(tmp_path):
    (tmp_path / "text.json").write_text("nodes")
    with pytest.raises(ValueError, match="not JSON"):
        Placed.load(tmp_path / "text.json")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*spacing.json"):
        grid(VPLinear(), 2, str(tmp_path))
    with pytest.raises(ValueError, match="or give a file of nodes"):
        grid(VPLinear(), 2, "gits")
    with pytest.raises(ValueError, match="each number once"):
        Placed(((0, 1), (0, 2)))
    with pytest.raises(ValueError, match="stages"):
        Placed.of(fewstep.build("heun", grid(VPLinear(), 2)).grid)
    with pytest.raises(ValueError, match="1 step to clean data say nothing of 2"):
        grid(VPLinear(), 2, Placed.of(grid(VPLinear(), 1, "lam")))
