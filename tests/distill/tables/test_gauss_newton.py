from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from fewstep import Tableau, samplers
from fewstep.distill.tables import gauss_newton, refine
from fewstep.distill.tables.frechet import FrechetCoordinates
from fewstep.distill.tables.gauss_newton import (
    Knob,
    Refinement,
    knobs,
    normal_equations,
    size,
    turned,
)
from fewstep.distill.tables.objective import Objective, distance, ends
from fewstep.eval.metrics import frechet_distance, moments
from fewstep.samplers.blend import consistent
from fewstep.samplers.fit import fit_rows

from .problem import LAW, held_out, mixture, plain, teacher


def fitted(nfe, count=300):
    nodes, met = teacher(0, count).trajectories(plain(nfe))
    return met, fit_rows(met, nodes).tables[0]


def judged(table, places, seed=0):
    return distance(held_out(seed).trajectories(places)[1], table)


@pytest.mark.parametrize(("nfe", "most"), [(3, 0.45), (5, 0.55), (8, 0.8)])
def test_a_refined_table_is_far_nearer_than_solvers_on_other_samples(nfe, most):
    met, table = fitted(nfe, 1000)
    other = teacher(20_000, 400).trajectories(plain(nfe))[1]
    (found,) = refine(met, [table], steps=5, held_out=other)
    assert distance(other, found) <= distance(other, table)
    places = [plain(nfe, power) for power in (0.7, 1.0, 1.5)]
    best = min(
        judged(samplers.build(name, held_out().trajectories(each)[0]), each)
        for name in ("unipc-3", "dpmpp-2m", "dpmpp-3m")
        for each in places
    )
    assert judged(found, plain(nfe)) < most * best


def test_derivatives_are_those_of_autograd():
    met, table = fitted(3, 20)
    weights = torch.from_numpy(table.weights.copy()).requires_grad_()
    carry = torch.from_numpy(table.carry.copy()).requires_grad_()
    (batch,) = met
    run = samplers.sample(
        batch.denoiser, replace(table, weights=weights, carry=carry), batch.z * table.grid.sigma[0]
    )
    gap = (batch.states[-1] - run).detach()
    (run * gap).sum().backward()
    found = knobs(table, ["weights"])
    _, right = normal_equations(met, [table], found)
    slopes = weights.grad
    exact = [
        float(carry.grad[k.row])
        if k.column < 0
        else float(slopes[k.row, k.column] - k.balanced * slopes[k.row, k.row])
        for k in found
    ]
    np.testing.assert_allclose(right, exact, rtol=2e-2, atol=1e-4 * max(map(abs, exact)))


@pytest.mark.parametrize("kind", ["times", "labels"])
def test_the_derivative_of_a_node_is_that_of_whole_runs(kind):
    met, table = fitted(4, 20)
    if kind == "labels":
        # A denoiser that looks at its label.
        met = [replace(each, denoiser=labelled(each.denoiser)) for each in met]
    found = knobs(table, [kind])
    _, right = normal_equations(met, [table], found)
    ends = lambda t: torch.cat(  # noqa: E731
        [samplers.sample(e.denoiser, t, e.z * float(t.grid.sigma[0])).flatten() for e in met]
    )
    gap = torch.cat([each.states[-1].flatten() for each in met]) - ends(table)
    for knob, value in zip(found, right.tolist(), strict=True):
        step = size(knob, table)
        change = (ends(turned(table, [(knob, step)])) - ends(table)) / step
        assert value == pytest.approx(float(change @ gap), rel=1e-6)
        assert value != 0


def labelled(denoiser):
    return lambda x, node: denoiser(x, node) * (1 + 0.1 * node.label)


def test_a_table_has_these_numbers():
    _, table = fitted(3, 20)
    assert len(knobs(table, ["weights"], "all")) == 3 + 6
    assert len(knobs(table, ["weights"], "inner")) == 2 + 5
    assert len(knobs(table, ["weights"], "none")) == 3
    assert len(knobs(table, ["weights", "times", "labels"], "all")) == 15


def test_turning_adds_to_the_numbers():
    _, table = fitted(3, 20)
    found = turned(
        table,
        [
            (Knob("weights", 2, 1), 0.5),
            (Knob("weights", 1, -1), 0.25),
            (Knob("weights", 2, 0, balanced=True), 0.125),
            (Knob("times", 1), -0.01),
            (Knob("labels", 2), 0.3),
        ],
    )
    assert found.weights[2, 1] == table.weights[2, 1] + 0.5
    assert found.weights[2, 0] == table.weights[2, 0] + 0.125
    # The row behind the node that moved is as far from that of constant x0 as it was.
    moved = [consistent(each.grid) for each in (found, table)]
    assert found.carry[1] - moved[0][0][1] == pytest.approx(table.carry[1] + 0.25 - moved[1][0][1])
    assert found.weights.sum(1)[0] - moved[0][1][0] == pytest.approx(
        table.weights.sum(1)[0] - moved[1][1][0]
    )
    assert found.grid.time[1] == table.grid.time[1] - 0.01
    assert found.grid.alpha[1] == pytest.approx(LAW.alpha(found.grid.time[1]))
    assert found.grid.label[2] == pytest.approx(table.grid.label[2] + 0.3)
    assert found.grid.label[1] == pytest.approx(LAW.label(found.grid.time[1]))
    # A shift stays when its node moves.
    again = turned(found, [(Knob("times", 2), 0.02)])
    assert again.grid.label[2] - LAW.label(again.grid.time[2]) == pytest.approx(0.3)


def test_what_is_best_on_held_out_samples_is_returned():
    met, table = fitted(6, 4)
    (few,) = refine(met, [table], steps=6, held_out=held_out().trajectories(plain(6))[1])
    (free,) = refine(met, [table], steps=6)
    assert judged(few, plain(6)) <= min(judged(free, plain(6)), judged(table, plain(6)))


def test_a_last_row_that_is_not_free_stays_exact_on_constants():
    met, table = fitted(4)
    (found,) = refine(met, [table], steps=3)
    assert found.carry[-1] == pytest.approx(0.0, abs=1e-9)
    assert found.weights[-1].sum() == pytest.approx(1.0)
    assert abs(found.grid.time - table.grid.time).max() > 0


def test_small_errors_count_more_in_a_robust_objective():
    met, table = fitted(4, 200)
    squares, robust = (
        refine(met, [table], steps=4, objective=Objective(kind, 0.01))[0] for kind in ("l2", "l1")
    )
    assert Objective("l1", 0.01).loss(met, robust) < Objective("l1", 0.01).loss(met, squares)
    assert distance(met, squares) < distance(met, robust)


def test_features_join_the_pixels():
    met, table = fitted(4, 200)
    mixed = Objective("l2", features=lambda x: x[:, :4].cumsum(1), weight=1.0)
    (found,) = refine(met, [table], steps=4, objective=mixed)
    (plain,) = refine(met, [table], steps=4)
    assert mixed.loss(met, found) < mixed.loss(met, table)
    assert abs(found.weights - plain.weights).max() > 1e-3


def test_times_that_cross_are_not_taken():
    met, table = fitted(3, 10)
    (far,) = refine(met, [table], what=["times"], steps=3)
    assert (np.diff(far.grid.time) < 0).all()


def test_other_tables_are_refused():
    met, table = fitted(3, 10)
    for other in (samplers.build("ddpm", table.grid), table.in_basis("eps")):
        with pytest.raises(ValueError, match="only deterministic tables in x0"):
            refine(met, [other])
    with pytest.raises(ValueError, match="noise schedule"):
        refine(met, [replace(table, grid=replace(table.grid, schedule=None))])


def test_a_step_may_be_derived_from_some_batches_in_turn(monkeypatch):
    places = plain(4)
    _, met = teacher(0, 40, 40, 40).trajectories(places)
    (table,) = fit_rows(met, teacher(0, 40, 40, 40).trajectories(places)[0]).tables
    seen = []
    derive = gauss_newton.normal_equations

    def watched(batches, *rest):
        seen.append([met.index(each) for each in batches])
        return derive(batches, *rest)

    monkeypatch.setattr(gauss_newton, "normal_equations", watched)
    (found,) = refine(met, [table], steps=3, at_once=2)
    assert seen == [[0, 1], [2, 0], [1, 2]]
    assert distance(met, found) < 0.8 * distance(met, table)


def test_several_tables_have_the_equations_of_what_the_batches_mix():
    met, table = fitted(3, 15)
    tables = [table, samplers.build("unipc-2", table.grid)]
    met = [replace(met[0], shares=shares) for shares in ((0.3, 0.7), (1.4, -0.4))]
    found = [Knob("weights", 0, -1), Knob("weights", 1, 0), Knob("weights", 2, 1, balanced=True)]
    gram, right = normal_equations(met, tables, found)
    truth, gaps = [], []
    for batch in met:
        (here,) = ends([batch], tables)
        gaps.append((batch.states[-1] - here).flatten())
        rows = []
        for k, portion in enumerate(batch.shares):
            # As much as moves what is mixed by the step of the derivatives.
            turn = size(found[0], table) / portion
            for knob in found:
                turns = [turned(t, [(knob, turn)]) if i == k else t for i, t in enumerate(tables)]
                (there,) = ends([batch], turns)
                rows.append((there - here).flatten() / turn)
        truth.append(torch.stack(rows))
    whole = torch.cat(truth, 1)
    torch.testing.assert_close(gram, whole @ whole.T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(right, whole @ torch.cat(gaps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["l2", "l1"])
@pytest.mark.parametrize("likeness", [0.0, 30.0])
def test_the_right_side_is_the_slope_of_the_loss(kind, likeness):
    met, table = fitted(3, 40)
    met = [replace(met[0], shares=shares) for shares in ((1.0, 0.0), (0.4, 0.6), (0.4, 0.6))]
    met[1] = replace(met[1], z=met[1].z[:10], states=[each[:10] for each in met[1].states])
    tables = [table, samplers.build("unipc-2", table.grid)]
    moments = FrechetCoordinates.of(met[0].states[-1][:, :4])
    objective = Objective(kind, 0.05, lambda x: x[:, :4], 0.7, moments, likeness)
    found = [Knob("weights", 0, -1), Knob("weights", 1, 0), Knob("weights", 2, 1, balanced=True)]
    _, right = normal_equations(met, tables, found, objective)
    slopes = []
    for i in range(2):
        for knob in found:
            losses = [
                objective.loss(met, [turned(t, [(knob, by)] if k == i else []) for k, t in pairs])
                for by in (1e-4, -1e-4)
                for pairs in [list(enumerate(tables))]
            ]
            slopes.append((losses[0] - losses[1]) / 2e-4)
    # Of all samples, 16 pixels and 4 features: half the slope of a mean.
    truth = -90 * 20 / 2 * np.array(slopes)
    np.testing.assert_allclose(right, truth, rtol=2e-2, atol=2e-3 * abs(truth).max())


def test_how_far_sets_are_off_may_be_known_of_more_batches():
    met, table = fitted(3, 40)
    found = [Knob("weights", 0, -1), Knob("weights", 1, 0)]
    near = FrechetCoordinates.of(met[0].states[-1])
    objective = Objective("l2", features=torch.clone, moments=near, likeness=30.0)
    gaps = objective.compare(met, ends(met, [table])).gaps
    (shares,) = gaps
    none = {shares: gaps[shares]._replace(mean=torch.zeros_like(gaps[shares].mean))}
    known = [normal_equations(met, [table], found, objective, each)[1] for each in (gaps, none)]
    torch.testing.assert_close(known[0], normal_equations(met, [table], found, objective)[1])
    plain = normal_equations(met, [table], found, replace(objective, likeness=0.0))[1]
    torch.testing.assert_close(known[1], plain)
    assert not torch.allclose(known[0], known[1])


def test_a_step_from_some_batches_knows_how_far_all_are_off(monkeypatch):
    met, table = fitted(3, 40)
    met = [*met, *teacher(40, 20).trajectories(plain(3))[1]]
    seen, own = [], gauss_newton.normal_equations

    def watched(batches, tables, found, objective, gaps):
        seen.append((len(batches), gaps[(1.0,)].samples))
        return own(batches, tables, found, objective, gaps)

    monkeypatch.setattr(gauss_newton, "normal_equations", watched)
    refine(met, [table], steps=1, at_once=1)
    assert seen == [(1, 60)]


def test_likeness_makes_sets_alike_that_nobody_has_seen():
    met, table = fitted(3, 1000)
    other = teacher(20_000, 2000).trajectories(plain(3))[1]
    (truth,) = (each.states[-1] for each in other)
    near = FrechetCoordinates.of(met[0].states[-1])
    apart = []
    for likeness in (0.0, 10.0):
        objective = Objective("l2", features=torch.clone, moments=near, likeness=likeness)
        found = refine(met, [table], steps=8, objective=objective)
        apart.append(frechet_distance(*map(moments, (ends(other, found)[0], truth))))
    assert apart[1] < 0.6 * apart[0]


def test_several_tables_are_refined_for_all_that_mix_them():
    met, table = fitted(4, 100)

    def louder(s):
        return lambda x, node: mixture()(x, node) * (1 + s / 4)

    parts = [replace(met[0], denoiser=louder(s), shares=(1 - s, s)) for s in (0.0, 0.5, 1.0)]
    single = [replace(part, shares=(1.0,)) for part in parts]
    whole, alone = refine(parts, [table, table], steps=6), refine(single, [table], steps=6)
    assert distance(parts, whole) < 0.8 * distance(single, alone)


def test_it_stops_when_held_out_samples_get_no_better():
    met, table = fitted(6, 4)
    told = []
    held = held_out().trajectories(plain(6))[1]
    refine(met, [table], steps=40, held_out=held, progress=lambda *each: told.append(each))
    assert len(told) < 20


def test_a_refinement_goes_on_as_if_it_had_not_stopped():
    met, table = fitted(4, 60)
    met = [*met, *teacher(60, 30).trajectories(plain(4))[1]]
    options = {"held_out": held_out().trajectories(plain(4))[1], "at_once": 2}
    states = []
    (whole,) = refine(met, [table], steps=5, keep=states.append, **options)
    assert [state.step for state in states] == [1, 2, 3, 4, 5][: len(states)]
    state = Refinement(**json.loads(json.dumps(asdict(states[0]))))
    rest = []
    (parts,) = refine(met, [table], steps=5, begun=state, keep=rest.append, **options)
    np.testing.assert_array_equal(parts.weights, whole.weights)
    np.testing.assert_array_equal(parts.grid.time, whole.grid.time)
    assert rest
    assert rest == states[1:]
    # One that was careful stays so.
    slow = []
    refine(met, [table], steps=2, begun=replace(state, damping=10.0), keep=slow.append, **options)
    assert slow[0].damping == 1.0
    assert slow[0].judged > rest[0].judged
    # One that had given up gives up.
    done = replace(states[1], idle=2)
    (found,) = refine(met, [table], steps=5, begun=done, **options)
    np.testing.assert_array_equal(found.weights, Tableau.from_dict(done.best[0]).weights)


def test_samples_that_overflow_are_the_worst_and_not_the_best():
    met, table = fitted(3, 40)
    other = held_out().trajectories(plain(3))[1]

    class Overflown(Objective):
        def loss(self, batches, tables):
            first = np.array_equal(tables[0].weights, table.weights)
            return float("nan") if batches is other and first else super().loss(batches, tables)

    states = []
    (found,) = refine(
        met, [table], steps=2, held_out=other, objective=Overflown("l2"), keep=states.append
    )
    assert not np.array_equal(found.weights, table.weights)
    assert states[0].judged < 1
