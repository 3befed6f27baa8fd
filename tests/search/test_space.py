from __future__ import annotations

from dataclasses import replace

import fewstep
import numpy as np
import pytest
from fewstep.schedules import SPACINGS, Spacing
from fewstep.search.presets import preset
from fewstep.search.repair import apart
from fewstep.search.ruler import Ruler
from fewstep.search.schedule import Step
from fewstep.search.space import Space
from hypothesis import given
from hypothesis import strategies as st

from ..samplers.problems import SCHEDULES
from .test_schedule import agrees

LAW = SCHEDULES["sd"]

spaces = st.builds(
    Space,
    law=st.sampled_from(list(SCHEDULES.values())),
    nfe=st.integers(1, 9),
    spacing=st.sampled_from([SPACINGS["karras"], SPACINGS["uniform"], SPACINGS["exponential"]]),
    ends=st.sampled_from([("zero",), ("min",), ("zero", "min")]),
    late=st.sampled_from([None, -20.0, -1.0]),
    marks=st.integers(12, 200),
    predictions=st.sampled_from([("x0",), ("x0", "eps"), ("eps",)]),
    order=st.integers(1, 4),
    starts=st.sampled_from([(0,), (0, 1, 2), (0, 3)]),
    corrections=st.sampled_from([("none",), ("again",), ("none", "reuse"), ("reuse", "again")]),
    free_starts=st.sampled_from([(False,), (True,), (False, True)]),
    rate=st.sampled_from([0.1, 0.5, 1.0]),
)
generators = st.integers(0, 2**32).map(np.random.default_rng)


def legal(space, schedule):
    """In the space, and what it says it is: at exactly its cost, and exact for constant x0."""
    table = schedule.tableau(space.law)
    assert schedule.nfe == table.nfe == space.nfe
    ends = {"zero": space.law.t_zero, "min": space.law.t_min}
    assert schedule.times[-1] in {ends[each] for each in space.ends}
    marks = space.marks * space.ruler.shares(schedule.times[:-1])
    np.testing.assert_allclose(marks, np.rint(marks), atol=1e-6)
    if round(marks[0]) > 0:
        assert space.late is not None
        assert space.law.lam(schedule.times[0]) <= space.late + 1e-9
    assert schedule.free_start in space.free_starts
    for k, step in enumerate(schedule.steps):
        assert step.prediction in space.predictions
        assert step.predictor.order <= space.order
        assert step.predictor.start in space.starts
        kind = "again" if step.again else "none" if step.corrector is None else "reuse"
        # No choice at the end, none at pure noise, and what costs nothing where all others do.
        bare = k == len(schedule.steps) - 1 or (k == 0 and space.pure)
        bare |= {*space.corrections} == {"again"}
        assert kind in (*space.corrections, *(["none"] if bare else []))


@given(spaces, generators)
def test_all_that_is_drawn_mutated_and_crossed_is_legal(space, rng):
    parents = [space.drawn(rng) for _ in range(3)]
    for schedule in parents:
        legal(space, schedule)
    for _ in range(3):
        one, other = (parents[k] for k in rng.integers(len(parents), size=2))
        parents += [space.mutated(one, rng), space.crossed(one, other, rng)]
        for schedule in parents[-2:]:
            legal(space, schedule)


@pytest.mark.parametrize("end", ["zero", "min"])
@pytest.mark.parametrize("law", SCHEDULES)
def test_drawn_schedules_run_as_described(law, end):
    """Step by step, by quadrature; on few marks no two times are so near that digits are lost."""
    space = Space(SCHEDULES[law], 6, ends=(end,), marks=16)
    rng = np.random.default_rng(0)
    for _ in range(8):
        schedule = space.drawn(rng)
        agrees(schedule, space.law, rtol=1e-6)


def test_the_same_generator_draws_the_same():
    space = Space(LAW, 5)

    def population(seed):
        rng = np.random.default_rng(seed)
        one, other = space.drawn(rng), space.drawn(rng)
        return one, other, space.mutated(one, rng), space.crossed(one, other, rng)

    assert population(3) == population(3)
    assert population(3) != population(4)


def test_what_does_not_mutate_stays():
    rng = np.random.default_rng(0)
    space = Space(LAW, 6)
    for _ in range(20):
        schedule = space.drawn(rng)
        assert replace(space, rate=0.0).mutated(schedule, rng) == schedule
        assert space.crossed(schedule, schedule, rng) == schedule


def test_children_have_times_and_steps_of_both_parents():
    space = Space(LAW, 5, corrections=("none",), starts=(0,))
    rng = np.random.default_rng(1)
    one, other = space.drawn(rng), space.drawn(rng)
    children = [space.crossed(one, other, rng) for _ in range(200)]
    cuts = {tuple(time in one.times for time in child.times[1:-1]) for child in children}
    assert len(cuts) >= 4
    sources = {child.steps[3] for child in children}
    assert {one.steps[3], other.steps[3]} <= sources


def test_everything_is_drawn():
    """Every decision of the space comes up, also those that cost an evaluation."""
    space = Space(LAW, 6, free_starts=(False, True), late=-1.0)
    rng = np.random.default_rng(0)
    schedules = [space.drawn(rng) for _ in range(150)]
    steps = [step for schedule in schedules for step in schedule.steps]
    assert {schedule.free_start for schedule in schedules} == {False, True}
    assert {schedule.times[-1] for schedule in schedules} == {LAW.t_zero, LAW.t_min}
    begins = [schedule.times[0] for schedule in schedules]
    assert 0.3 < np.mean(np.array(begins) == LAW.t_max) < 0.7
    assert len({*begins}) > 10
    assert {len(schedule.steps) for schedule in schedules} >= {4, 5, 6, 7}
    assert {step.prediction for step in steps} == {"x0", "eps"}
    assert {step.predictor.order for step in steps} == {1, 2, 3, 4}
    assert {step.predictor.start for step in steps} == {0, 1, 2}
    assert {(step.corrector is None, step.again) for step in steps} == {
        *((True, False), (False, False), (False, True))
    }
    low = [
        step
        for step in steps
        if any(len(points) < step.predictor.order - 1 for points in step.predictor.estimates)
    ]
    assert low
    assert {type(step.predictor.relaxation) for step in steps} == {float, str}


def test_mutation_reaches_what_was_not_there():
    """From one schedule, generation by generation, all kinds of steps."""
    space = Space(LAW, 6, free_starts=(False, True), late=-1.0)
    rng = np.random.default_rng(0)
    schedule = preset("ddim", fewstep.grid(LAW, 6))
    seen = set()
    for _ in range(300):
        schedule = space.mutated(schedule, rng)
        seen |= {(step.prediction, step.predictor.order, step.again) for step in schedule.steps}
        seen |= {schedule.free_start, len(schedule.steps), schedule.times[-1]}
        seen |= {("late", schedule.times[0] < LAW.t_max)}
    assert {("eps", 4, False), ("x0", 3, True), True, False, 4, 5, 6, 7} <= seen
    assert {LAW.t_zero, LAW.t_min, ("late", True), ("late", False)} <= seen


@pytest.mark.parametrize("name", ["ddim", "unipc-3", "dpmpp-3s", "deis-3"])
def test_presets_are_parents(name):
    """At the marks nearest to their times, with the steps they have."""
    space = replace(Space(LAW, 8, marks=1000), rate=0.0)
    parent = preset(name, fewstep.grid(LAW, 8))
    child = space.mutated(parent, np.random.default_rng(0))
    assert child.steps == parent.steps
    np.testing.assert_allclose(child.times, parent.times, atol=6)
    legal(space, child)
    small = replace(space, predictions=("x0",), order=2, starts=(0,), corrections=("none",))
    legal(small, small.mutated(parent, np.random.default_rng(0)))
    legal(small, small.crossed(parent, child, np.random.default_rng(0)))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("law", SCHEDULES)
def test_shares_are_where_a_spacing_puts_its_nodes(law, spacing):
    schedule = SCHEDULES[law]
    given = Spacing(SPACINGS[spacing].variable, SPACINGS[spacing].rho)
    pure = np.isneginf(schedule.lam(schedule.t_max))
    if spacing == "lam" and pure:
        with pytest.raises(ValueError, match="infinite"):
            Ruler(schedule, given)
        return
    if given.variable == "time" and schedule.t_min == schedule.t_zero:
        return
    times = fewstep.grid(schedule, 7, given, end="min").time
    ruler = Ruler(schedule, given)
    np.testing.assert_allclose(ruler.shares(times), np.linspace(0, 1, 8), atol=1e-9)
    np.testing.assert_allclose(ruler.times(np.linspace(0, 1, 8)), times, rtol=1e-9, atol=1e-12)


@given(st.lists(st.floats(-50, 200), max_size=9), st.integers(1, 7), st.integers(15, 40))
def test_marks_are_set_apart(marks, low, top):
    found = apart(np.rint(np.array(marks)), low, top)
    assert len(found) == len(marks)
    assert (np.diff(found) >= 1).all()
    assert ((found >= low) & (found <= top)).all()
    assert (apart(found.astype(float), low, top) == found).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nfe": 0}, "nfe must be"),
        ({"order": 5}, "order"),
        ({"marks": 6}, "6 marks are too few"),
        ({"ends": ("clean",)}, "'clean'"),
        ({"late": 0.5}, "late"),
        ({"predictions": ("v",)}, "predictions"),
        ({"corrections": ()}, "corrections"),
        ({"starts": (1,)}, "starts"),
        ({"free_starts": ()}, "free_starts"),
        ({"rate": 1.5}, "rate"),
        ({"gain": 0.5}, "gain"),
        ({"spacing": SPACINGS["lam"], "law": SCHEDULES["flow"]}, "infinite in lam"),
    ],
)
def test_errors_say_what_is_wrong(given, said):
    with pytest.raises(ValueError, match=said):
        Space(**{"law": LAW, "nfe": 5, **given})


def gain(space, schedule):
    return np.abs(space.table(schedule).weights).sum(1).max()


@pytest.mark.parametrize("law", SCHEDULES)
def test_no_row_has_a_large_gain(law):
    """Those of the 32 schedules of USF reach 17; what is drawn freely, up to thousands."""
    rng = np.random.default_rng(0)
    space = Space(SCHEDULES[law], 5)
    schedules = [space.drawn(rng) for _ in range(12)]
    schedules += [space.mutated(each, rng) for each in schedules]
    schedules += [space.crossed(*schedules[k : k + 2], rng) for k in range(12)]
    assert max(gain(space, each) for each in schedules) <= 20
    free = replace(space, gain=np.inf)
    assert max(gain(space, free.drawn(rng)) for _ in range(60)) > 25


def test_where_no_gain_is_small_enough_the_smallest_is_taken():
    space = Space(SCHEDULES["sd"], 4)
    grid = fewstep.grid(space.law, 4)
    wild = [replace(preset("dpm-3s", grid), times=(999.0, 500.0, 60.0, k, -1.0)) for k in range(50)]
    tame = preset("ddim", grid)
    assert min(gain(space, each) for each in wild) > 20
    found = iter([*wild[:3], tame])
    assert space.tame(lambda: next(found)) == tame
    found = iter(wild)
    least = min(gain(space, each) for each in wild)
    assert gain(space, space.tame(lambda: next(found))) == least


def test_one_evaluation_is_one_step():
    schedule = Space(LAW, 1).drawn(np.random.default_rng(0))
    assert schedule.steps in ((Step("x0"),), (Step("eps"),))
