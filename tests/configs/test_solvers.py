"""The tables that come with the package."""

from __future__ import annotations

import numpy as np
import pytest
from fewstep import load_family, samplers
from fewstep.eval.models import Draw, in_batches, label_rule, load_model
from fewstep.schedules import grid
from fewstep.search.schedule import SolverSchedule

SEEDS = range(5)


@pytest.fixture(scope="module")
def digits():
    model = load_model("mnist")
    return model, label_rule("balanced", model.classes, model.shape, SEEDS, "cpu")


def test_they_are_families_by_name():
    for name in samplers.families():
        for nfe, table in load_family(name).items():
            assert (table.nfe, table.stochastic) == (nfe, False)


def test_digits_come_nearer_than_by_any_common_solver(digits):
    model, labels = digits
    many = samplers.build("unipc-3", grid(model.schedule, 30))

    def drawn(table):
        return in_batches(model, table, Draw(SEEDS, labels))

    truth = drawn(many)
    table = load_family("mnist-learned")[4]
    assert table.grid.schedule == model.schedule

    def error(table):
        return float((drawn(table) - truth).square().mean().sqrt())

    nodes = [grid(model.schedule, 4, spacing) for spacing in ("uniform", "quadratic", "leading")]
    found = [samplers.build(s, each) for s in ("dpmpp-2m", "unipc-3", "ipndm-2") for each in nodes]
    assert error(table) < 0.9 * min(error(each) for each in found)
    # The numbers of another NFE would not do.
    assert error(load_family("mnist-learned")[10]) < 0.5 * error(table)


def test_their_model_is_the_one_that_is_there(digits):
    model, _ = digits
    for name, how in (("mnist-learned", "learned"), ("mnist-s3", "searched")):
        for table in load_family(name).values():
            assert table.meta[how]["model"] == model.fingerprint
            assert table.grid.schedule == model.schedule


def test_searched_tables_are_those_of_their_schedules(digits):
    model, _ = digits
    for nfe, table in load_family("mnist-s3").items():
        schedule = SolverSchedule.from_dict(table.meta["searched"]["schedule"])
        again = schedule.tableau(model.schedule)
        assert again.nfe == nfe
        assert np.allclose(again.weights, table.weights, rtol=1e-9, atol=1e-12)
        assert np.allclose(again.grid.time, table.grid.time, rtol=1e-12)
