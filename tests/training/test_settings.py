from __future__ import annotations

from fewstep.training import TrainingSettings, gathered

DEFAULT = TrainingSettings(learning_rate=0.5, use_ema=True)


def test_one_setting_leaves_the_others_as_they_were():
    found = gathered({"a": 1, "max_train_steps": 7}, DEFAULT)
    assert found["a"] == 1
    training = TrainingSettings(**found["training"])
    assert (training.max_train_steps, training.learning_rate, training.use_ema) == (7, 0.5, True)


def test_a_whole_training_is_filled_up_as_well():
    found = gathered({"training": {"seed": 3}, "learning_rate": 0.1}, DEFAULT)
    training = TrainingSettings(**found["training"])
    assert (training.seed, training.learning_rate, training.use_ema) == (3, 0.1, True)
    assert TrainingSettings(**gathered({"seed": 3}, None)["training"]).learning_rate == 1e-3


def test_what_says_nothing_of_a_training_stays():
    assert gathered({"a": 1}, DEFAULT) == {"a": 1}
    for odd in ({"training": 5, "seed": 1}, 7, None):
        assert gathered(odd, DEFAULT) == odd
