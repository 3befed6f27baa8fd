from __future__ import annotations

import json
from dataclasses import replace

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.schedules import Grid, VPLinear
from fewstep.search.presets import PRESETS, correcting, preset
from fewstep.search.schedule import REMEDIES, SolverSchedule, Step, Update

from ..samplers.helpers import row_error
from ..samplers.problems import SCHEDULES, gentle
from . import published
from .direct import Direct, output

LAW = VPLinear()
X = np.random.default_rng(0).normal(size=(5, 3))


def ours(schedule, law, x, predict=output):
    """The last state by the table, and how often the network was asked."""
    calls = []

    def denoiser(x, node):
        calls.append(node.index)
        return torch.from_numpy(predict(x.numpy(), node.alpha, node.sigma))

    table = schedule.tableau(law)
    found = fewstep.sample(denoiser, table, torch.from_numpy(x)).numpy()
    assert table.nfe == len(calls)
    return found, len(calls)


def agrees(schedule, law, first=None, rtol=1e-9):
    """The table and the run without one give the same, at the same cost."""
    x = X * float(law.sigma(schedule.times[0]))
    run = Direct(schedule, law)
    theirs = run.run(x, first)
    found, calls = ours(schedule, law, x)
    assert calls == run.calls == schedule.nfe
    np.testing.assert_allclose(found, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


@pytest.mark.parametrize("end", ["zero", "min"])
@pytest.mark.parametrize("law", SCHEDULES)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_solvers_of_samplers(name, law, end):
    for nfe, spacing in ((1, "uniform"), (2, "karras"), (5, "uniform"), (8, "karras")):
        grid = fewstep.grid(SCHEDULES[law], nfe, spacing, end=end)
        table, solver = preset(name, grid).tableau(SCHEDULES[law]), samplers.build(name, grid)
        assert table.nfe == solver.nfe
        assert (table.grid.stage == solver.grid.stage).all()
        # Tables in eps lose digits where noise is 40,000 times the signal.
        assert row_error(table, solver.in_basis("x0")) < 1e-11


@pytest.mark.parametrize("relaxation", ["bh1", "bh2"])
def test_both_variants_of_unipc(relaxation):
    from fewstep.search.presets import multistep

    grid = fewstep.grid(LAW, 6, "karras", end="min")
    found = multistep(grid, 2, "eps", relaxation, corrector=True).tableau(LAW)
    want = samplers.unipc(grid, 2, relaxation, prediction="eps")
    assert row_error(found, want.in_basis("x0")) < 1e-11


@pytest.mark.parametrize("name", published.SCHEDULES)
def test_published_schedules(name):
    """Noise predictions, data predictions, correctors and a first output of 0, in one table."""
    schedule = published.SCHEDULES[name]
    assert schedule.nfe == int(name.rsplit("-", 1)[1])
    agrees(schedule, LAW, first=np.zeros_like(X))


@pytest.mark.parametrize("prediction", ["x0", "eps"])
@pytest.mark.parametrize("relaxation", [*REMEDIES, 0.0, -0.3])
def test_relaxations_in_predictor_and_corrector(relaxation, prediction):
    second = Update(0, ((1,),), relaxation)
    steps = (
        Step(prediction, corrector=Update(1, ((0,),), relaxation)),
        Step(prediction, second, correcting(second, relaxation)),
        Step(prediction, Update(0, ((1,), (2, 1)), relaxation)),
    )
    agrees(SolverSchedule((1.0, 0.6, 0.35, 0.1), steps), LAW)


def test_what_is_asked_again_replaces_the_output():
    second = Update(1, ((0,),))
    steps = (
        Step("eps", Update(), correcting(Update()), again=True),
        Step("x0", second, correcting(second), again=True),
        Step("eps", Update(2, ((1,), (0, 1))), correcting(Update(2, ((1,), (0, 1))))),
        Step("x0", Update(0, ((1, 3),))),
    )
    schedule = SolverSchedule((1.0, 0.7, 0.5, 0.3, 0.1), steps)
    assert schedule.nfe == 6
    agrees(schedule, LAW)
    # Stages are the states that no step starts from, and those that are replaced.
    stage = schedule.tableau(LAW).grid.stage
    assert stage.tolist() == [False, True, True, True, True, False, False]


def test_order_1_starts_at_the_corrected_state():
    """In eps it is then not what it is in x0: the output belongs to the state before."""
    steps = (
        Step("eps", Update(), correcting(Update())),
        Step("eps"),
        Step("x0"),
    )
    schedule = SolverSchedule((1.0, 0.6, 0.3, 0.0), steps)
    agrees(schedule, LAW)
    other = replace(schedule, steps=(steps[0], Step("x0"), Step("x0")))
    assert np.abs(schedule.tableau(LAW).weights - other.tableau(LAW).weights).max() > 1e-3


def test_the_mean_of_the_data_as_the_first_output():
    """What the documentation says of it: the table of x0 = 0 on centred data."""
    mean = np.array([0.5, -0.8, 0.1])
    schedule = published.SCHEDULES["lsun-6"]
    x = X * float(LAW.sigma(1.0))
    want = Direct(schedule, LAW).run(x, np.broadcast_to(mean, x.shape))
    start, end = (float(LAW.alpha(schedule.times[k])) for k in (0, -1))

    def centred(x, alpha, sigma):
        return output(x + alpha * mean, alpha, sigma) - mean

    found, _ = ours(schedule, LAW, x - start * mean, centred)
    np.testing.assert_allclose(found + end * mean, want, rtol=1e-9)


def test_order_3_of_mixed_predictions_that_ask_again():
    problem, errors = gentle(), []
    for n in (16, 32):
        grid = problem.grid(n)
        rules = [Update(), *[Update(0, ((1,),))] * (n - 1)]
        steps = [
            Step("eps" if k % 3 else "x0", rule, correcting(rule), again=True)
            for k, rule in enumerate(rules[:-1])
        ]
        schedule = SolverSchedule(tuple(grid.time), (*steps, Step("x0", rules[-1])))
        errors.append(problem.error(schedule.tableau(grid.schedule)))
    assert np.log2(errors[0] / errors[1]) > 2.7


def test_schedules_pass_through_json():
    second = Update(1, ((0,),), "bh2")
    steps = (Step("eps"), Step("x0", second, correcting(second, 0.25), True), Step())
    schedule = SolverSchedule((1.0, 0.5, 0.2, 0.0), steps, free_start=True)
    again = SolverSchedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule
    assert hash(again) == hash(schedule)
    with pytest.raises(ValueError, match="times"):
        SolverSchedule.from_dict({"steps": []})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Update(-1), "start counts"),
        (lambda: Update(0, ((1,), (1,))), "order 2 needs at least 2"),
        (lambda: Update(0, ((1, 1),)), "different"),
        (lambda: Update(1, ((1,),)), "not the start"),
        (lambda: Update(relaxation=0.1), "no derivative"),
        (lambda: Update(0, ((1,),), "bh3"), "bh3"),
        (lambda: Update(0, ((1,),), float("nan")), "finite"),
        (lambda: Step("v"), "'v'"),
        (lambda: Step(again=True), "corrector"),
        (lambda: Step(corrector=Update()), "before its target"),
        (lambda: SolverSchedule((1.0, 0.5), ()), "0 steps and 2 times"),
        (lambda: SolverSchedule((1.0, 1.0), (Step(),)), "fall"),
        (lambda: SolverSchedule((1.0, 0.0), (Step(),), True), "no network"),
        (
            lambda: SolverSchedule((1.0, 0.0), (Step(corrector=correcting(Update())),)),
            "last step",
        ),
        (
            lambda: SolverSchedule((1.0, 0.5, 0.0), (Step(), Step("x0", Update(0, ((2,),))))),
            "step 1 uses output 2",
        ),
        (
            lambda: SolverSchedule((1.0, 0.5, 0.0), (Step(), Step("x0", Update(1)))),
            "predictor of step 1 does not use the newest",
        ),
    ],
)
def test_errors_say_what_is_wrong(made, said):
    with pytest.raises(ValueError, match=said):
        made()


def test_infinite_steps_are_of_order_1():
    second = Update(0, ((1,),))
    clean = SolverSchedule((1.0, 0.5, 0.0), (Step(), Step("x0", second)))
    with pytest.raises(ValueError, match="to node 2 meets an infinite lam"):
        clean.tableau(LAW)
    pure = SolverSchedule((1.0, 0.5, 0.2), (Step(), Step("x0", second)))
    with pytest.raises(ValueError, match="to node 2 meets an infinite lam"):
        pure.tableau(SCHEDULES["flow"])


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match=r"'heun' .* dpmpp-2m"):
        preset("heun", Grid.from_times(LAW, [1.0, 0.0]))
