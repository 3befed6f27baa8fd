from __future__ import annotations

import pytest
import torch
from fewstep.discrete import JumpTable, build, nodes
from fewstep.distill.lsd.learn import LSDConfig, learn_jumps
from fewstep.distill.lsd.models import token_model
from fewstep.training.journal import read

ABSORB = {"chain": "countdown", "states": 3, "length": 4}
UNIFORM = {**ABSORB, "states": 4, "kernel": "uniform"}
UNIFORM["noise"] = {"name": "geometric", "low": 1e-3, "high": 6.0}
SMALL = {"samples": 256, "train_batch_size": 64, "teacher_steps": 8, "max_train_steps": 4}


def learned(folder, **changes):
    config = LSDConfig.model_validate({"model": ABSORB, "nfe": [4], **changes})
    return learn_jumps(config, token_model(config.model), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"nfe": [4]}, 0.35),
        ({"nfe": [8]}, 0.30),
        ({"model": {**ABSORB, "chain": "dirichlet", "seed": 10}}, 0.75),
        # Four steps and the evaluation that denoises.
        ({"model": UNIFORM, "nfe": [5], "spacing": "sedd"}, 0.2),
    ],
)
def test_samples_come_nearer_to_the_law_of_the_data(tmp_path, changes, most):
    (found,) = learned(tmp_path, **changes).values()
    before, after = (each.numbers["KL"] for each in (found.before, found.after))
    assert after <= most * before
    # As many network calls, and the last one does its part in both.
    assert found.table.nfe == next(iter(changes.get("nfe", [4])))


@pytest.mark.slow
def test_hazards_alone_are_but_another_schedule(tmp_path):
    (found,) = learned(tmp_path, what=["phi"]).values()
    assert found.after.numbers["KL"] > 0.5 * found.before.numbers["KL"]
    assert found.after.numbers["KL"] < found.before.numbers["KL"]


@pytest.mark.parametrize("objective", ["mmd", "path_ml", "score_l2", "score_log"])
def test_every_objective_changes_its_own_numbers(tmp_path, objective):
    relaxation = 0.25 if objective.startswith("score") else 0.0
    (found,) = learned(tmp_path, objective=objective, relaxation=relaxation, **SMALL).values()
    plain = build("euler", found.table.kernel, found.table.noise, nodes(4))
    changed = {
        "phi": not torch.allclose(found.table.weights, plain.weights),
        "beta": not torch.allclose(found.table.beta, plain.beta),
        "power": not torch.allclose(found.table.power, plain.power),
    }
    only = {"score_l2": {"phi"}, "score_log": {"power"}}.get(objective, {"phi", "beta"})
    assert {name for name, is_so in changed.items() if is_so} == only
    again = JumpTable.load(tmp_path / "jumps-004.json")
    assert torch.equal(again.weights, found.table.weights)
    assert torch.equal(again.power, found.table.power)


@pytest.mark.parametrize("objective", ["mmd", "score_l2"])
def test_times_are_learned(tmp_path, objective):
    changes = {"what": ["times"], "objective": objective, **SMALL}
    (found,) = learned(tmp_path, **changes).values()
    assert not torch.allclose(found.table.time, nodes(4))
    assert (torch.diff(found.table.time) < 0).all()


def test_a_stopped_learning_goes_on(tmp_path):
    def stop(done, total, text):
        if text.startswith("loss") and done == 3:
            raise KeyboardInterrupt

    config = LSDConfig.model_validate({"model": ABSORB, "nfe": [4, 3], **SMALL})
    whole = learn_jumps(config, token_model(config.model), tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        learn_jumps(config, token_model(config.model), tmp_path / "b", stop)
    parts = learn_jumps(config, token_model(config.model), tmp_path / "b")
    assert list(parts) == [3, 4]
    for nfe in parts:
        assert torch.equal(parts[nfe].table.beta, whole[nfe].table.beta)
    assert len(read(tmp_path / "b" / "training-003")) == 4


def test_times_may_be_chosen_first(tmp_path):
    changes = {"model": UNIFORM, "dp": True, **SMALL, "learning_rate": 1e-9}
    (found,) = learned(tmp_path, **changes).values()
    assert not torch.allclose(found.table.time, nodes(4))
    assert found.after.numbers["KL"] < found.before.numbers["KL"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {**ABSORB, "length": 12}}, "too many to enumerate"),
        ({"model": {**ABSORB, "noise": {"name": "cosine"}}}, "'cosine' is not one of log-linear"),
        ({"train_batch_size": 500}, "500 is more than the 256 samples"),
        ({"base": "nope"}, "unknown discrete solver"),
        ({"dp": True, "nfe": [9]}, "8 steps has no 9 steps"),
        ({"objective": "score_l2", "what": ["beta"]}, r"score_l2 learns \['phi'\] or \['times'\]"),
        ({"relaxation": 0.1}, "relaxation is for the objectives score"),
        ({"gradient_accumulation_steps": 2}, "compares a batch as a whole"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        learned(tmp_path, **{**SMALL, **changes})


def test_one_setting_of_the_training_leaves_the_others():
    found = LSDConfig.model_validate({"max_train_steps": 5}).training
    assert (found.learning_rate, found.adam_beta2, found.use_ema) == (0.06, 0.99, True)
