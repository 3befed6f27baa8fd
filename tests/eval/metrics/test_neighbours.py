from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep.eval.metrics import Neighbours
from fewstep.eval.metrics.neighbours import radii, square_distances


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def fed(metric, *batches):
    for batch in batches:
        metric.update(batch)
    return metric


def values(metric):
    return {name: float(value) for name, value in metric.compute().items()}


def distances(x, y):
    return np.array([[np.linalg.norm(a - b) for b in y] for a in x])


def brute_force(real, fake, k, density_k, fake_kept=None):
    real, fake = real.double().numpy(), fake.double().numpy()
    fake_kept = np.arange(len(fake)) if fake_kept is None else fake_kept
    own, across = distances(real, real), distances(real, fake)[:, fake_kept]
    of_fake = np.sort(distances(fake, fake))[:, k][fake_kept]
    ball, dense = np.sort(own)[:, k], np.sort(own)[:, density_k]
    return {
        "precision": (across <= ball[:, None]).any(0).mean(),
        "recall": (across <= of_fake).any(1).mean(),
        "density": (across < dense[:, None]).sum() / density_k / len(fake_kept),
        "coverage": (across < dense[:, None]).any(1).mean(),
    }


@pytest.mark.parametrize(("k", "density_k"), [(3, 5), (1, 2), (4, 1)])
def test_against_a_loop(k, density_k):
    real, fake = normal(50, 6, 1) + 3, normal(40, 6, 2) * 0.8 + 3.3
    got = values(fed(Neighbours(real, k, density_k), *fake.split(7)))
    assert got == pytest.approx(brute_force(real, fake, k, density_k), abs=1e-12)
    assert all(each > 0 for each in got.values())


def test_more_rows_than_are_taken_at_a_time():
    real, fake = normal(1100, 4, 1), normal(1050, 4, 2) * 0.8 + 0.3
    a, b = real.double().numpy(), fake.double().numpy()
    own, across = (np.linalg.norm(a[:, None] - other, axis=2) for other in (a, b))
    got = values(fed(Neighbours(real), fake))
    expected = (across <= np.sort(own)[:, 3, None]).any(0).mean()
    assert got["precision"] == pytest.approx(expected, abs=1e-12)
    expected = (across < np.sort(own)[:, 5, None]).any(1).mean()
    assert got["coverage"] == pytest.approx(expected, abs=1e-12)
    expected = (across < np.sort(own)[:, 5, None]).sum(0).mean() / 5
    assert got["density"] == pytest.approx(expected, rel=1e-12)


def test_identical_sets():
    x = normal(80, 32) + 100
    assert values(fed(Neighbours(x), x)) == {
        "precision": 1.0,
        "recall": 1.0,
        "density": 1.0,
        "coverage": 1.0,
    }


def test_clusters_far_apart():
    got = values(fed(Neighbours(normal(30, 4, 1)), normal(30, 4, 2) + 100))
    assert got == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}


def test_collapse_to_a_part_is_precise_and_recalls_little():
    real = normal(100, 4) + 50 * torch.arange(5.0).repeat_interleave(20)[:, None]
    got = values(fed(Neighbours(real), real[:20] * 0.999))
    assert got["precision"] == 1
    assert got["recall"] == pytest.approx(0.2)
    assert got["coverage"] == pytest.approx(0.2)


def test_points_on_the_border_are_inside_but_not_dense():
    line = torch.arange(6.0)[:, None]
    got = values(fed(Neighbours(line, k=1, density_k=1), torch.tensor([[-1.0], [50.0]])))
    # -1 is at distance 1 from 0, whose next neighbour is at distance 1 too.
    assert got["precision"] == 0.5
    assert got["density"] == 0
    assert got["coverage"] == 0


def test_duplicates_lie_in_each_others_balls():
    real = (normal(20, 64, 1) * 7 + 1).repeat(4, 1)
    got = values(fed(Neighbours(real, k=3, density_k=3), real[:20]))
    assert got["precision"] == 1
    # Balls of radius 0 have nothing inside.
    assert got["density"] == got["coverage"] == 0


def test_square_distances_of_equal_rows_are_zero():
    x = normal(200, 300).double() * 5
    assert float(square_distances(x, x.clone()).diagonal().abs().max()) == 0
    assert float(square_distances(x, x + 1e-5).diagonal().min()) > 0


def test_radii_leave_oneself_out():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]]).double()
    assert radii(x, (1, 2)).tolist() == [[1, 1, 4, 16], [9, 4, 9, 36]]


def test_the_estimate_leaves_blocks_out_of_fixed_balls():
    real, fake = normal(50, 6, 1), normal(40, 6, 2) * 0.8 + 0.3
    metric = fed(Neighbours(real, blocks=5), *fake.split([10, 14, 16]))
    assert values(metric) == {name: each.value for name, each in metric.estimate().items()}
    got = metric.estimate()
    expected = brute_force(real, fake, 3, 5, np.r_[:10, 24:40])
    for name, each in got.items():
        assert each.sizes.tolist() == [10, 14, 16]
        assert each.replicates[1] == pytest.approx(expected[name], abs=1e-12)


def test_the_error_is_that_of_fresh_sets():
    real = normal(300, 8, 10**6)
    found = [
        fed(Neighbours(real), *(normal(300, 8, s) * 0.9 + 0.3).split(15)).estimate()
        for s in range(30)
    ]
    for name in ("precision", "density"):
        spread = np.std([each[name].value for each in found], ddof=1)
        assert spread / 2 < np.mean([each[name].error for each in found]) < spread * 2


@pytest.mark.parametrize("n", [0, 3])
def test_too_few_samples_are_refused(n):
    with pytest.raises(ValueError, match=f"more than 3 samples, not {n}"):
        fed(Neighbours(normal(30, 4)), normal(n, 4)).compute()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="more than 5 samples, not 5"):
        fed(Neighbours(normal(5, 4)), normal(30, 4)).compute()
    with pytest.raises(ValueError, match="positive, not 0 and 5"):
        Neighbours(normal(30, 4), k=0)
