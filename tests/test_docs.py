"""The code in the documents runs."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import fewstep
import numpy as np
import pytest
from fewstep.samplers import rows

ROOT = Path(__file__).parents[1]


def block(name):
    """The first Python block of a document."""
    text = (ROOT / name).read_text()
    return textwrap.dedent(re.search(r"^( *)```python\n(.*?)^\1```", text, re.S | re.M).group(2))


def test_the_quick_start_draws_digits():
    names = {}
    exec(block("README.md"), names)
    images = names["images"]
    assert images.shape == (8, 1, 28, 28)
    read = fewstep.zoo.mnist_classifier()(images).argmax(1).tolist()
    assert sum(a == b for a, b in zip(read, range(8), strict=True)) >= 7


@pytest.mark.parametrize("nfe", [1, 2, 3, 10])
def test_the_solver_of_the_guide_is_the_registered_one(nfe):
    names = {"np": np, "Grid": fewstep.Grid, "Tableau": fewstep.Tableau, "tableau": rows.tableau}
    exec("from __future__ import annotations\n" + block("CONTRIBUTING.md"), names)
    grid = fewstep.grid(fewstep.schedules.VPLinear(), nfe, "lam")
    ours, registered = names["dpmpp_2m"](grid), fewstep.build("dpmpp-2m", grid)
    np.testing.assert_allclose(ours.weights, registered.weights, atol=1e-13)
    np.testing.assert_allclose(ours.carry, registered.carry, atol=1e-13)
