from __future__ import annotations

import math

import fewstep
import numpy as np
import pytest
import torch
from fewstep.schedules import SPACINGS
from fewstep.search.presets import preset
from fewstep.search.s3.predictor import WAVES, hinge, learn, tokens
from fewstep.search.space import Space
from scipy.stats import kendalltau

from .problem import LAW

SPACE = Space(LAW, 5, free_starts=(False, True))


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return [SPACE.drawn(rng) for _ in range(count)]


def worth(schedule):
    """Made up, of decisions and of times: what a predictor has to find out."""
    eps = sum(step.prediction == "eps" for step in schedule.steps)
    late = float(np.mean(SPACE.ruler.shares(schedule.times[1:-1])))
    return eps + 4 * (late - 0.5) ** 2 + 0.5 * schedule.free_start


def test_tokens_have_one_row_for_each_of_the_table():
    rows = [tokens(each, SPACE) for each in drawn(40)]
    assert {each.shape for each in rows} == {(6, rows[0].shape[1])}
    assert np.isfinite(np.stack(rows)).all()
    for schedule, each in zip(drawn(40), rows, strict=True):
        assert (each[0] == 0).all() == (not schedule.free_start)


@pytest.mark.parametrize("spacing", ["lam", "exponential"])
def test_tokens_are_finite_where_clean_data_is_infinitely_far(spacing):
    space = Space(LAW, 5, SPACINGS[spacing])
    rng = np.random.default_rng(0)
    assert all(np.isfinite(tokens(space.drawn(rng), space)).all() for _ in range(8))


def test_tokens_tell_decisions_and_times_apart():
    grid = fewstep.grid(LAW, 5)
    found = [preset(name, grid) for name in ("ddim", "dpmpp-2m", "unipc-3", "dpm-2m", "ab-3")]
    found += [preset("ddim", fewstep.grid(LAW, 5, "uniform"))]
    rows = np.stack([tokens(each, SPACE) for each in found])
    for k in range(len(found)):
        assert sum(np.array_equal(rows[k], each) for each in rows) == 1
    # Times begin with share 0, at which all sines are 0 and all cosines 1.
    assert rows[0, 1, :WAVES] == pytest.approx(0, abs=1e-12)
    assert rows[0, 1, WAVES : 2 * WAVES] == pytest.approx(1)


def test_the_hinge_is_over_pairs_of_different_places():
    scores = torch.tensor([0.0, 0.05, 0.3], dtype=torch.float64)
    # 1 after 0 by 0.05 (loss .05), 2 after 0 and 1 by more than the margin; the last two alike.
    assert float(hinge(scores, torch.tensor([0.0, 1.0, 2.0]))) == pytest.approx(0.05 / 3)
    assert float(hinge(scores, torch.tensor([0.0, 1.0, 1.0]))) == pytest.approx(0.05 / 2)
    # The other way round every pair is wrong.
    wrong = (0.1 + 0.05 + 0.1 + 0.3 + 0.1 + 0.25) / 3
    assert float(hinge(scores, torch.tensor([2.0, 1.0, 0.0]))) == pytest.approx(wrong)


def test_it_learns_to_rank_what_it_has_not_seen():
    known, other = drawn(80), drawn(60, seed=1)
    rows = np.stack([tokens(each, SPACE) for each in known])
    predictor = learn(rows, [worth(each) for each in known], 0)
    guess = predictor(np.stack([tokens(each, SPACE) for each in other]))
    tau = kendalltau(guess, [worth(each) for each in other]).statistic
    assert tau > 0.6
    # What it says of itself is what it can do.
    assert abs(predictor.tau - tau) < 0.15
    shuffled = np.random.default_rng(0).permutation([worth(each) for each in known])
    assert abs(learn(rows, shuffled, 0, epochs=40).tau) < 0.3


def test_it_is_reproducible_and_leaves_the_global_stream():
    rows = np.stack([tokens(each, SPACE) for each in drawn(12)])
    scores = np.arange(12.0)
    before = torch.get_rng_state()
    one, same, other = (learn(rows, scores, seed, epochs=3)(rows) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_infinite_scores_are_the_worst_and_alike():
    known = drawn(60)
    scores = [math.inf if each.steps[0].prediction == "eps" else worth(each) for each in known]
    predictor = learn(np.stack([tokens(each, SPACE) for each in known]), scores, 0, epochs=60)
    other = drawn(60, seed=1)
    guess = predictor(np.stack([tokens(each, SPACE) for each in other]))
    bad = np.array([each.steps[0].prediction == "eps" for each in other])
    assert np.median(guess[bad]) > np.quantile(guess[~bad], 0.65)
    assert math.isfinite(predictor.tau)


def test_too_few_are_refused():
    with pytest.raises(ValueError, match="7 schedules are too few for 4 folds"):
        learn(np.zeros((7, 6, 3)), range(7), 0)
