from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fewstep.training import Task, accelerator_for, train
from fewstep.training.checkpoint import checkpoints
from fewstep.training.journal import read
from fewstep.training.loop import Run
from torch import nn

from ..two_processes import run_script
from .tasks import alone, batch, network, settings, task, weights


def run(folder, given=None, progress=lambda *done: None, **changes):
    given = task() if given is None else given
    outcome = train(given, settings(**changes), folder, alone(), progress)
    return outcome, weights(given.module)


def interrupting(at):
    def progress(done, total, text):
        if done == at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("changes", [{}, {"use_ema": True, "ema_max_decay": 0.7}])
@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path, at, changes):
    outcome, expected = run(tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", progress=interrupting(at), **changes)
    steps = []
    again, found = run(tmp_path / "cut", progress=lambda done, *_: steps.append(done), **changes)
    assert steps == list(range(at + 1, 13))
    assert found == expected
    assert again.best == outcome.best
    assert read(tmp_path / "cut") == read(tmp_path / "whole")


def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    _, expected = run(tmp_path / "whole")
    monkeypatch.setattr("fewstep.training.loop.Run.keep", lambda self: None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", progress=interrupting(8))
    monkeypatch.undo()
    _, found = run(tmp_path / "cut")
    assert found == expected
    assert [entry["step"] for entry in read(tmp_path / "cut")] == list(range(1, 13))


def test_a_finished_training_is_not_done_again(tmp_path):
    _, expected = run(tmp_path)
    steps = []
    _, found = run(tmp_path, progress=lambda done, *_: steps.append(done))
    assert not steps
    assert found == expected


def test_a_checkpoint_has_no_pickle_and_few_are_kept(tmp_path):
    run(tmp_path, checkpointing_steps=3, checkpoints_total_limit=2, use_ema=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-12"]
    names = {path.name for path in (tmp_path / "checkpoint-12").iterdir()}
    assert names == {
        *("model.safetensors", "ema.safetensors", "optimizer.safetensors", "trainer.json"),
    }
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_other_settings_do_not_go_on_from_a_checkpoint(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.001 there, 0\.01 here"):
        run(tmp_path, learning_rate=0.01)
    run(tmp_path / "b", task(facts={"teacher": "a"}))
    with pytest.raises(ValueError, match="teacher: a there, b here"):
        run(tmp_path / "b", task(facts={"teacher": "b"}))
    run(tmp_path, learning_rate=0.01, resume_from_checkpoint="never")
    # What decides nothing may change.
    run(tmp_path, learning_rate=0.01, checkpointing_steps=2, checkpoints_total_limit=1)


def test_a_training_that_begins_anew_leaves_no_older_one_to_go_on_from(tmp_path):
    run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=interrupting(2), learning_rate=0.01, resume_from_checkpoint="never")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    _, found = run(tmp_path, learning_rate=0.01)
    _, expected = run(tmp_path / "whole", learning_rate=0.01)
    assert found == expected


def test_a_checkpoint_can_be_named(tmp_path):
    often = {"checkpointing_steps": 4, "checkpoints_total_limit": None}
    _, expected = run(tmp_path, **often)
    for name in ("checkpoint-4", str(tmp_path / "checkpoint-8")):
        _, found = run(tmp_path, **often, resume_from_checkpoint=name)
        assert found == expected
    with pytest.raises(ValueError, match=r"no checkpoint checkpoint-5; .* checkpoint-4, check"):
        run(tmp_path, resume_from_checkpoint="checkpoint-5")


def test_a_validation_that_was_interrupted_is_made_up_for(tmp_path):
    whole, expected = run(tmp_path / "a")
    first = task()
    asked = []

    def validate(module):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return first.validate(module)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", task(validate=validate))
    outcome, found = run(tmp_path / "b")
    assert found == expected
    assert outcome.best == whole.best
    assert read(tmp_path / "a") == read(tmp_path / "b")


def test_the_scale_of_the_loss_goes_on_too(tmp_path):
    runs = [Run(task(), settings(), tmp_path, alone()) for _ in range(2)]
    for each in runs:
        each.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    one, other = runs
    one.accelerator.scaler.scale(torch.ones(1))
    one.accelerator.scaler.load_state_dict(
        {**one.accelerator.scaler.state_dict(), "scale": 32.0, "_growth_tracker": 5}
    )
    one.keep()
    other.resume()
    state = other.accelerator.scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (32.0, 5)


def test_accumulated_parts_are_one_batch(tmp_path):
    _, whole = run(tmp_path / "a", task(dropout=0.0))
    _, parts = run(tmp_path / "b", task(dropout=0.0), gradient_accumulation_steps=4)
    assert parts == pytest.approx(whole, rel=1e-5)
    one, other = ([entry["loss"] for entry in read(tmp_path / name)] for name in ("a", "b"))
    assert other == pytest.approx(one, rel=1e-5)


def test_the_gradient_is_clipped(tmp_path):
    before = weights(network(0.0))
    steep = task(0.0)
    rate = {"lr_scheduler": "constant", "learning_rate": 1e-3, "adam_beta2": 0.0}
    run(tmp_path, steep, max_train_steps=1, max_grad_norm=1e-9, adam_epsilon=1.0, **rate)
    assert weights(steep.module) == pytest.approx(before, abs=1e-9)


def test_what_validated_best_is_the_result(tmp_path):
    found = iter([3.0, 1.0, 2.0])
    seen = []

    def validate(module):
        seen.append(weights(module))
        return {"loss": next(found)}

    outcome, result = run(tmp_path, task(validate=validate))
    assert outcome.best == (1.0, 8)
    assert result == seen[1] != seen[2]


def test_without_validation_the_last_is_the_result_or_the_average(tmp_path):
    _, last = run(tmp_path / "a", task(validate=None))
    _, average = run(tmp_path / "b", task(validate=None), use_ema=True, ema_max_decay=0.9)
    assert last != average
    # The average of a constant is that.
    _, frozen = run(tmp_path / "c", task(validate=None), use_ema=True, learning_rate=1e-30)
    assert frozen == pytest.approx(weights(network()), abs=1e-7)


def test_the_average_forgets_where_it_began(tmp_path):
    """d = (1 + n) / (10 + n) at first: ten steps weigh the start by a millionth at most."""
    given = task(validate=None, dropout=0.0)
    with torch.no_grad():
        given.module[0].bias.fill_(1e3)
    begun = given.module[0].bias.clone()

    def loss(module, step, part, parts):
        with torch.no_grad():
            module[0].bias.copy_(begun if step == 0 else torch.zeros(8))
        return task().loss(module, step, part, parts)

    free = Task(given.module, loss)
    run(tmp_path, free, use_ema=True, ema_max_decay=0.9999, learning_rate=1e-9)
    assert given.module[0].bias.abs().max() < 2.0


def test_a_task_may_bring_its_own_rate(tmp_path):
    run(tmp_path, task(rate=lambda step: 1.0 / (1 + step)), learning_rate=0.5)
    found = [entry["learning_rate"] for entry in read(tmp_path)]
    assert found == [0.5 / (1 + step) for step in range(12)]


def test_how_often_it_is_validated_changes_nothing(tmp_path):
    def validate(module):
        torch.randn(7)
        assert not module.training
        return {"loss": 1.0 / (1 + weights(module)[0] ** 2)}

    run(tmp_path / "a", task(validate=validate), validation_steps=12)
    run(tmp_path / "b", task(validate=validate), validation_steps=1)
    one, other = ([e["loss"] for e in read(tmp_path / name)] for name in ("a", "b"))
    assert one == other


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_not_taken(tmp_path, bad):
    def loss(module, step, part, parts):
        x, y = batch(step, part, parts)
        return (module(x) - y).square().mean() * (bad if step == 7 else 1.0)

    broken = Task(network(0.0), loss)
    with pytest.raises(ArithmeticError, match=r"at step 7: .*lower learning_rate"):
        run(tmp_path, broken)
    assert all(math.isfinite(each) for each in weights(broken.module))
    assert checkpoints(tmp_path)[-1].name == "checkpoint-7"


def test_a_gradient_that_overflows_is_not_taken(tmp_path):
    def loss(module, step, part, parts):
        # A finite loss whose slope is not.
        return sum((each - each.detach()).abs().sqrt().sum() for each in module.parameters())

    with pytest.raises(ArithmeticError, match="norm of its gradient nan at step 0"):
        run(tmp_path, Task(network(0.0), loss))


def test_the_rate_warms_up_and_decays(tmp_path):
    run(tmp_path, lr_warmup_steps=4, lr_scheduler="linear", learning_rate=1.0)
    found = [entry["learning_rate"] for entry in read(tmp_path)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, *[1 - k / 8 for k in range(8)]])


def test_previews_are_drawn_at_every_validation(tmp_path):
    drawn = []
    run(tmp_path, task(preview=lambda module, path: drawn.append(path.name)))
    assert drawn == ["000004.png", "000008.png", "000012.png"]


def test_a_parameter_that_takes_no_part_does_not_stop_it(tmp_path):
    module = network(0.0)
    module.idle = nn.Parameter(torch.ones(2))
    module.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    run(tmp_path, Task(module, task().loss))
    assert module.idle.tolist() == module.frozen.tolist() == [1, 1]


def test_a_tracker_that_is_not_there_is_said_only_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.training.loop.find_spec", lambda name: None)
    accelerator_for(settings(), tmp_path)
    with pytest.raises(ValueError, match="tensorboard is not installed"):
        accelerator_for(settings(report_to="tensorboard"), tmp_path)


SCRIPT = """
import sys
from pathlib import Path
from accelerate import Accelerator
from fewstep.training import train
from tasks import settings, task, weights
accelerator = Accelerator(cpu=True)
given = task(dropout=0.0)
train(given, settings(), Path(sys.argv[1]) / "two", accelerator)
if accelerator.is_main_process:
    print("found", *weights(given.module))
"""


@pytest.mark.slow
def test_two_processes_are_one_with_their_batches(tmp_path):
    lines = run_script(SCRIPT, tmp_path, Path(__file__).parent)
    found = next(words[1:] for words in lines if words[:1] == ["found"])
    _, one = run(tmp_path / "one", task(dropout=0.0))
    assert [float(each) for each in found] == pytest.approx(one, rel=1e-6)
    both = [[e["loss"] for e in read(tmp_path / name)] for name in ("one", "two")]
    assert both[1] == pytest.approx(both[0], rel=1e-6)
