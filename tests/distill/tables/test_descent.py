from __future__ import annotations

import pytest
import torch
from fewstep import samplers
from fewstep.distill.tables.descent import Pairs, relaxed, table_task
from fewstep.distill.tables.learned import LearnedTable
from fewstep.distill.tables.objective import SQUARES, Objective, distance
from fewstep.schedules import grid
from fewstep.training import TrainingSettings, accelerator_for, train

from .problem import LAW, held_out, teacher

QUICK = {"learning_rate": 1e-2, "validation_steps": 50, "checkpointing_steps": 10**6}


def pairs(count=700):
    batch = teacher(0, count).batches[0]
    return Pairs(batch.z, batch.states[-1], lambda index: batch.denoiser)


def learned(folder, nfe, what, steps=100, pairs=None, objective=SQUARES, **options):
    """A table trained from UniPC-3, and how far UniPC-3 and it end on other noises."""
    table = samplers.build("unipc-3", grid(LAW, nfe, "quadratic"))
    module = LearnedTable(table, what, free="all")
    judges = held_out().batches
    training = {k: options.pop(k) for k in list(options) if k in TrainingSettings.model_fields}
    settings = TrainingSettings(**{"max_train_steps": steps, **QUICK, **training})
    task = table_task(
        module, pairs or globals()["pairs"](), judges, objective, **{"batch_size": 64, **options}
    )
    train(task, settings, folder, accelerator_for(settings, folder))
    return module, distance(judges, table), distance(judges, module.table())


@pytest.mark.parametrize(("nfe", "most"), [(5, 0.5), pytest.param(3, 0.45, marks=pytest.mark.slow)])
def test_weights_and_times_come_much_nearer_than_the_best_solver(tmp_path, nfe, most):
    judges = held_out().batches
    spacings = ("uniform", "quadratic", "lam", "karras")
    best = min(
        distance(judges, samplers.build(solver, grid(LAW, nfe, spacing)))
        for solver in ("unipc-3", "dpmpp-3m")
        for spacing in spacings
    )
    _, _, after = learned(tmp_path, nfe, ("weights", "times"))
    assert after <= most * best


@pytest.mark.parametrize("nfe", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_weights_gain_twice_what_times_alone_do(tmp_path, nfe):
    _, before, times = learned(tmp_path / "times", nfe, ("times",))
    _, _, weights = learned(tmp_path / "weights", nfe, ("weights",))
    assert times < before
    assert weights < before / 2
    assert weights < times / 1.5


def test_every_objective_is_lowered(tmp_path):
    for objective in (Objective("l1", 0.01), Objective("log", 0.01)):
        module, _, _ = learned(tmp_path / objective.kind, 4, ("weights",), objective=objective)
        judges = held_out().batches
        assert objective.loss(judges, module.table()) < objective.loss(judges, module.first)


def test_accumulated_parts_and_checkpointed_calls_are_the_same_training(tmp_path):
    one, _, _ = learned(tmp_path / "a", 3, ("weights", "times"), steps=5)
    two, _, _ = learned(
        tmp_path / "b", 3, ("weights", "times"), steps=5, gradient_accumulation_steps=4
    )
    three, _, _ = learned(
        tmp_path / "c", 3, ("weights", "times"), steps=5, gradient_checkpointing=True
    )
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=0, atol=1e-9)
        torch.testing.assert_close(three.state_dict()[name], value, rtol=0, atol=1e-12)
    assert float(one.weights.detach().abs().max()) > 1e-3


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(ValueError, match="64 cannot be divided into 3"):
        learned(tmp_path, 3, ("weights",), steps=1, gradient_accumulation_steps=3)
    with pytest.raises(ValueError, match="needs as many pairs, there are 20"):
        learned(tmp_path, 3, ("weights",), steps=1, pairs=pairs(20))


@pytest.mark.parametrize("ball", [0.0, 0.05, 1.0])
def test_relaxed_noises_stay_in_their_ball_and_cost_no_more(ball):
    z = torch.randn(50, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def costs(z):
        # Rugged, so that a step is not always for the better.
        return (torch.sin(9 * z) + z.square()).mean(1)

    moved = relaxed(z, costs, ball)
    assert ((moved - z).norm(dim=1) <= ball * 4 * (1 + 1e-6)).all()
    assert (costs(moved) <= costs(z)).all()
    assert torch.equal(moved, z) == (ball == 0)
    if ball == 0.05:
        assert float(costs(moved).mean()) < float(costs(z).mean())


def test_a_ball_of_nothing_changes_nothing_and_one_lowers_the_loss_of_training(tmp_path):
    task = {
        ball: table_task(
            LearnedTable(samplers.build("unipc-3", grid(LAW, 4, "quadratic"))),
            pairs(),
            held_out().batches,
            SQUARES,
            batch_size=64,
            ball=ball,
        )
        for ball in (0.0, 0.05)
    }
    plain, moved = (each.loss(each.module, 0, 0, 1) for each in task.values())
    again = task[0.0].loss(task[0.0].module, 0, 0, 1)
    values = [float(each.detach()) for each in (moved, plain, again)]
    assert values[0] < values[1] == values[2]
    # Noises that judge are where they were.
    judged = [each.validate(each.module) for each in task.values()]
    assert judged[0] == judged[1]
    moved.backward()
    assert float(task[0.05].module.weights.grad.abs().max()) > 0
