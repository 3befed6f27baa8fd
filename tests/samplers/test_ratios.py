"""Ratios in files, and the polynomial between them."""

from __future__ import annotations

import json

import fewstep
import numpy as np
import pytest
from fewstep.samplers import Ratios, build
from fewstep.samplers.ratios import packaged

from .problems import SCHEDULES

# What the authors' regression gives for Stable Diffusion 2.1 at guidance 7.5.
PUBLISHED = {
    5: [1, 1, 1.027, 0.739, 1.226],
    10: [1, 1, 0.445, 0.898, 1.063, 1.043, 0.941, 0.861, 0.907, 1.182],
}


def law(step, nfe, scale):
    """A polynomial of the family: quadratic in NFE and guidance, cubic along the run."""
    share = step / nfe
    return 1 + share * (0.3 - 0.02 * nfe) + share**3 * (0.05 * scale - 0.003 * scale**2)


def ratios_of(nfe, scale):
    return [1.0, 1.0, *(law(step, nfe, scale) for step in range(3, nfe + 1))]


FITTED = Ratios.fitted({(n, s): ratios_of(n, s) for n in (5, 6, 8, 10) for s in (1, 2, 4)})


@pytest.mark.parametrize("nfe", PUBLISHED)
def test_the_published_coefficients(nfe):
    assert packaged() == ["mnist", "sd21"]
    np.testing.assert_allclose(Ratios.load("sd21").at(nfe, 7.5), PUBLISHED[nfe], atol=5e-4)


def test_far_from_what_they_were_fitted_to_they_are_clamped():
    """At NFE 5 and guidance 12 the bare polynomial gives 2.06 beside .60."""
    ratios = Ratios.load("sd21")
    with pytest.warns(UserWarning, match="guidance 12 is beyond 1 to 9"):
        found = ratios.at(5, 12)
    assert found == ratios.at(5, 9)
    # A polynomial that leaves the range of its own ratios within the reach.
    tight = Ratios({}, ratios.polynomial, ((5, 20), (1, 9), (0.8, 1.1)))
    with (
        pytest.warns(UserWarning, match=r"the ratio 0.739 of step 4 is beyond 0.8 to 1.1, for"),
        pytest.warns(UserWarning, match=r"the ratio 1.23 of step 5"),
    ):
        assert tight.at(5, 7.5)[2:] == pytest.approx([1.027, 0.8, 1.1], abs=5e-4)
    with pytest.warns(UserWarning, match="NFE 4 is beyond 5 to 20"):
        assert len(ratios.at(4, 7.5)) == 4


def test_a_polynomial_of_the_family_is_found_again():
    """From other numbers of evaluations and scales than it is asked at."""
    for nfe, scale in ((7, 3.0), (9, 1.5), (6, 2.0)):
        np.testing.assert_allclose(FITTED.at(nfe, scale), ratios_of(nfe, scale), atol=1e-9)


def test_few_searches_give_lower_degrees():
    """Two numbers of evaluations are a straight line between; one scale says nothing of others."""
    few = Ratios.fitted({(n, 1.0): [1.0, 1.0, *[0.1 * n] * (n - 2)] for n in (6, 10)})
    np.testing.assert_allclose(few.at(8)[2:], 0.8, atol=1e-9)
    with pytest.warns(UserWarning, match="guidance 2 is beyond 1 to 1"):
        few.at(8, 2.0)
    early = Ratios.fitted({(n, 1.0): [1.0, *[0.1 * n] * (n - 1)] for n in (6, 10)}, first=1)
    np.testing.assert_allclose(early.at(8), [1, *[0.8] * 7], atol=1e-9)
    alone = Ratios.fitted({(5, 1.0): [1, 1, 0.9, 0.8, 1.1]})
    assert alone.at(5) == (1, 1, 0.9, 0.8, 1.1)
    with pytest.raises(ValueError, match="no ratios for NFE 6 at guidance 1; there is 5"):
        alone.at(6)


def test_what_was_found_comes_before_the_polynomial():
    odd = Ratios.fitted({**FITTED.found, (6, 2.0): [1, 1, 0.5, 0.5, 0.5, 0.5]})
    assert odd.at(6, 2) == (1, 1, 0.5, 0.5, 0.5, 0.5)


def test_a_file_keeps_every_bit(tmp_path):
    path = tmp_path / "ratios.json"
    FITTED.save(path)
    for name in (path, str(tmp_path)):
        again = Ratios.load(name)
        assert again.found == FITTED.found
        assert again.at(7, 3) == FITTED.at(7, 3)


def test_a_solver_takes_a_file(tmp_path):
    FITTED.save(tmp_path / "ratios.json")
    grid = fewstep.grid(SCHEDULES["sd"], 7)
    named = build("unipc-3", grid, compensate={"ratios": str(tmp_path), "guidance": 3.0})
    given = build("unipc-3", grid, compensate=FITTED.at(7, 3))
    assert np.array_equal(named.weights, given.weights)
    other = build("unipc-3", grid, compensate={"ratios": str(tmp_path), "guidance": 1.0})
    assert not np.array_equal(other.weights, given.weights)


def test_bad_files_are_refused(tmp_path):
    path = tmp_path / "ratios.json"
    with pytest.raises(FileNotFoundError, match="with fewstep comes mnist, sd21"):
        Ratios.load("sd3")
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a file of ratios"):
        Ratios.load(path)
    FITTED.save(path)
    data = json.loads(path.read_text())
    for key, value in (("polynomial", [[1.0]]), ("reach", {"nfe": [1, 2]})):
        path.write_text(json.dumps({**data, key: value}))
        with pytest.raises(ValueError, match=r"polynomial|guidance"):
            Ratios.load(path)
    data["found"][0]["ratios"].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="NFE 5 at guidance 1"):
        Ratios.load(path)


def test_the_digits_have_theirs():
    """Of twelve searches, and one of the polynomial between."""
    ratios = Ratios.load("mnist")
    assert len(ratios.found) == 12
    assert ratios.first == 2
    between = ratios.at(7, 3.0)
    assert between[:2] == (1, 1)
    near = [r for scale in (2.0, 4.0) for n in (6, 8) for r in ratios.at(n, scale)]
    assert min(near) - 0.1 < min(between) < max(between) < max(near) + 0.1
