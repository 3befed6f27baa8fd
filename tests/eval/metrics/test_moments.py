from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import fewstep
import numpy as np
import pytest
import torch
from fewstep.eval.metrics import Moments, frechet_distance, half_split_distances, moments
from fewstep.eval.metrics.moments import congruence, factor, root_trace

MANY = 10**6


def gaussian(mean, cov, n=MANY, factor=None):
    mean, cov = (torch.as_tensor(np.asarray(part, float)) for part in (mean, cov))
    return Moments(n, mean, cov, factor)


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_distance(x, y):
    cx, cy = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    root = np.linalg.svd((cx @ cy.T).numpy(), compute_uv=False).sum()
    gap = (x.mean(0) - y.mean(0)).square().sum()
    return float(gap + cx.square().sum() + cy.square().sum() - 2 * root)


def test_commuting_gaussians():
    a, b = np.linspace(0.1, 3, 64), np.linspace(2, 0.5, 64)
    shift = np.linspace(-1, 1, 64)
    expected = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    got = frechet_distance(gaussian(np.zeros(64), np.diag(a)), gaussian(shift, np.diag(b)))
    assert got == pytest.approx(expected, abs=1e-12)


def test_a_scaled_covariance():
    cov = normal(100, 64).T.cov().numpy()
    a, b = gaussian(np.zeros(64), cov), gaussian(np.zeros(64), 1.7**2 * cov)
    assert frechet_distance(a, b) == pytest.approx(0.7**2 * np.trace(cov), abs=1e-9)


def test_gaussians_that_do_not_commute():
    a = gaussian([0.0, 0], [[2, 0.5], [0.5, 1]])
    b = gaussian([0.0, 0], [[1, -0.3], [-0.3, 3]])
    product = a.cov @ b.cov
    root = torch.sqrt(product.trace() + 2 * product.det().sqrt())
    assert frechet_distance(a, b) == pytest.approx(0.929311854967773, abs=1e-12)
    assert frechet_distance(a, b) == pytest.approx(float(7 - 2 * root), abs=1e-12)


def test_moments_are_those_of_numpy():
    x = normal(1000, 64).float()
    got = moments(x)
    np.testing.assert_allclose(got.mean, x.double().mean(0), atol=1e-15)
    np.testing.assert_allclose(got.cov, np.cov(x.double().numpy().T, ddof=1), atol=1e-12)
    assert got.n == 1000


def test_moments_of_half_precision_are_those_of_the_same_numbers_in_double():
    x = (normal(50, 3) + 30).half()
    assert torch.equal(moments(x).cov, moments(x.double()).cov)


@pytest.mark.parametrize("n", [64, 256, 511])
def test_fewer_samples_than_dimensions(n):
    x, y = normal(n, 512, 1), normal(n, 512, 2) * 1.5 + 0.1
    with pytest.warns(UserWarning, match=f"{n} samples in 512 dimensions: mostly bias"):
        got = frechet_distance(moments(x), moments(y))
    assert got == pytest.approx(exact_distance(x, y), rel=1e-10)


@pytest.mark.filterwarnings("ignore:Frechet distance from")
@pytest.mark.parametrize("counts", [(40, 30), (30, 40), (200, 30), (30, 199), (199, 201)])
def test_few_samples_in_many_dimensions(counts):
    mix = torch.diag(torch.logspace(0, -6, 200, dtype=torch.float64))
    x, y = (normal(n, 200, seed) @ mix for seed, n in enumerate(counts))
    b = moments(y)
    torch.testing.assert_close(b.factor @ b.factor.T, b.cov, rtol=0, atol=1e-13)
    assert b.factor.shape[1] <= len(y) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert frechet_distance(moments(x), b) == pytest.approx(exact_distance(x, y), rel=1e-9)


@pytest.mark.parametrize("claimed", [2, 10, 39])
def test_a_wrong_number_of_samples_is_noticed(claimed):
    found = moments(normal(40, 200))
    wrong = Moments(claimed, found.mean, found.cov)
    with pytest.raises(ValueError, match=f"a covariance of {claimed} samples"):
        _ = wrong.factor
    with (
        pytest.warns(UserWarning, match="mostly bias"),
        pytest.raises(ValueError, match=f"a covariance of {claimed} samples"),
    ):
        frechet_distance(wrong, moments(normal(60, 200, 1)))


def test_of_few_samples_only_small_matrices_are_decomposed(monkeypatch):
    sizes = []
    for name in ("eigh", "eigvalsh", "svdvals"):
        whole = getattr(torch.linalg, name)

        def watched(matrix, whole=whole):
            sizes.append(max(matrix.shape))
            return whole(matrix)

        monkeypatch.setattr(torch.linalg, name, watched)
    with pytest.warns(UserWarning, match="mostly bias"):
        frechet_distance(moments(normal(40, 300)), moments(normal(50, 300, 1)))
    assert max(sizes) < 60


def test_a_singular_reference_without_a_count():
    x, y = normal(40, 64, 1), normal(300, 64, 2)
    known = moments(x)
    unknown = Moments(None, known.mean, known.cov)
    assert unknown.factor.shape == (64, 39)
    got = frechet_distance(moments(y), unknown)
    assert got == pytest.approx(exact_distance(x, y), rel=1e-10)


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_a_rank_deficient_set_is_at_zero_from_itself():
    x = normal(100, 512)
    assert frechet_distance(moments(x), moments(x)) < 1e-9


def test_as_many_samples_as_dimensions_warn_and_one_more_does_not():
    known = gaussian(np.zeros(8), np.eye(8))
    with pytest.warns(UserWarning, match="mostly bias"):
        frechet_distance(moments(normal(8, 8)), known)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(moments(normal(9, 8)), known)


@pytest.mark.parametrize("n", [400, 1600])
def test_bias_of_the_same_law(n):
    d = 64
    exact = gaussian(np.zeros(d), np.eye(d))
    values = [frechet_distance(moments(normal(n, d, seed)), exact) for seed in range(8)]
    expected = d / n + d * (d + 1) / (4 * (n - 1))
    assert abs(np.mean(values) - expected) < 4 * np.std(values, ddof=1) / np.sqrt(len(values))


def test_invariances():
    x, y = normal(200, 8, 1), normal(300, 8, 2) * 2 + 1
    rotation = torch.linalg.qr(normal(8, 8, 3))[0]
    distance = frechet_distance(moments(x), moments(y))
    assert distance == pytest.approx(exact_distance(x, y), rel=1e-12)
    assert frechet_distance(moments(y), moments(x)) == pytest.approx(distance, rel=1e-12)
    turned = frechet_distance(moments(x @ rotation + 5), moments(y @ rotation + 5))
    assert turned == pytest.approx(distance, rel=1e-9)
    tripled = frechet_distance(moments(3 * x), moments(3 * y))
    assert tripled == pytest.approx(9 * distance, rel=1e-12)


def test_a_large_mean_does_not_matter():
    x, y = normal(300, 8, 1), normal(500, 8, 2) * 1.2
    got = frechet_distance(moments(x + 1000), moments(y + 1000))
    assert got == pytest.approx(exact_distance(x, y), rel=1e-6)


def test_a_factor_of_a_regular_covariance_is_cholesky_s():
    cov = normal(200, 16).T.cov()
    assert torch.equal(factor(cov, 200), torch.linalg.cholesky(cov))


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_a_factor_that_cholesky_would_find_by_rounding_only(scale):
    # The second dimension is the first, much larger: its pivot is nothing but rounding.
    a = normal(50, 2, 1)
    x = scale * torch.cat([a, a @ torch.tensor([[1e5, 2e5], [3e5, 1e5]], dtype=a.dtype)], 1)
    cov = x.T.cov() + torch.eye(4, dtype=a.dtype) * 1e-5 * scale**2
    assert not torch.linalg.cholesky_ex(cov)[1]
    found = factor(cov, None)
    assert found.shape == (4, 2)
    torch.testing.assert_close(found @ found.T, cov, rtol=0, atol=1e-13 * float(cov.max()))


def test_a_known_factor_is_taken():
    cov = normal(200, 4).T.cov()
    known = 3 * torch.linalg.cholesky(cov)
    assert gaussian(np.zeros(4), cov, factor=known).factor is known


def test_moments_on_another_device_keep_what_was_computed():
    each = moments(normal(50, 4))
    assert each.to(torch.device("cpu")) is each
    moved = each.to(torch.device("meta"))
    assert (moved.n, moved.cov.device.type, moved.factor.device.type) == (50, "meta", "meta")


@pytest.mark.parametrize("span", [0, 5, 8, 13])
@pytest.mark.parametrize("known", [False, True])
def test_root_trace_is_the_sum_of_singular_values(span, known):
    """Of A = Q d Q^T and B = Q e Q^T with orthogonal Q it is the sum of sqrt(d e)."""
    q = torch.linalg.qr(normal(25, 25, 3))[0]
    d, e = (torch.logspace(0, -span, 25, dtype=torch.float64) * c for c in (1.0, 3.0))
    a, b = (Moments(MANY, torch.zeros(25).double(), q * x @ q.T) for x in (d, e))
    if known:
        a, b = (Moments(x.n, x.mean, x.cov, q * r.sqrt()) for x, r in ((a, d), (b, e)))
    expected = float((d * e).sqrt().sum())
    # Their covariances are themselves rounded to 1e-16 of the largest eigenvalue.
    assert float(root_trace(a, b)) == pytest.approx(expected, rel=1e-10 if span < 8 else 1e-7)


@pytest.mark.parametrize("width", [5, 256, 300, 700])
def test_a_congruence_is_that_of_two_products(width):
    cov = normal(width + 50, width).T.cov()
    for g in (torch.linalg.cholesky(cov), normal(width, 7), normal(width, 0)):
        expected = (g.T @ cov @ g).tril()
        torch.testing.assert_close(congruence(cov, g).tril(), expected, rtol=1e-12, atol=1e-12)


def test_two_points_are_enough():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [7.0]])
    # Means 1 and 4, standard deviations sqrt(2) and sqrt(18).
    got = frechet_distance(moments(x), Moments(None, moments(y).mean, moments(y).cov))
    assert got == pytest.approx(9 + 8, rel=1e-12)


def test_two_halves_of_one_set():
    values = half_split_distances(normal(2000, 4), splits=3)
    assert len(set(values)) == 3
    assert all(0 < value < 0.1 for value in values)
    assert values == half_split_distances(normal(2000, 4), splits=3)
    assert values != half_split_distances(normal(2000, 4), splits=3, seed=1)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples_are_refused(n):
    with pytest.raises(ValueError, match=f"at least 2 samples, got {n}"):
        moments(normal(n, 4))
    with pytest.raises(ValueError, match=f"at least 2 samples on each side, not {n}"):
        frechet_distance(gaussian([0.0], [[1.0]], n=n), gaussian([0.0], [[1.0]]))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(4), r"must be \[N, D\], not \[4\]"),
        (torch.zeros(4, 2, dtype=torch.int64), "floating-point numbers, not torch.int64"),
        (torch.zeros(4, 2, dtype=torch.uint8), "floating-point numbers, not torch.uint8"),
        (torch.tensor([[0.0], [math.nan], [math.inf]]), "2 of 3 .* first: 1"),
    ],
)
def test_features_that_are_none_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        moments(features)


def test_moments_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"not \[3\] and \[2, 2\]"):
        gaussian(np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        Moments(5, torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="3 rows for 2"):
        gaussian(np.zeros(2), np.eye(2), factor=torch.eye(3))
    with pytest.raises(ValueError, match="4 and 5"):
        frechet_distance(moments(normal(50, 4)), moments(normal(50, 5)))


@pytest.mark.parametrize("mean", [math.nan, math.inf, 1e200])
def test_numbers_that_are_not_finite_are_no_distance_of_zero(mean):
    with pytest.raises(ArithmeticError, match="not finite"):
        frechet_distance(gaussian([mean], [[1.0]]), gaussian([0.0], [[1.0]]))


def test_the_factor_of_another_covariance_is_noticed():
    wrong = gaussian([0.0, 0.0], np.eye(2), factor=5 * torch.eye(2, dtype=torch.float64))
    with pytest.raises(ArithmeticError, match="another one"):
        frechet_distance(gaussian([0.0, 0.0], np.eye(2)), wrong)


def test_no_matrix_square_root_in_the_evaluation():
    sources = list((Path(fewstep.__file__).parent / "eval").rglob("*.py"))
    assert any(path.name == "moments.py" for path in sources)
    assert [path for path in sources if re.search(r"\bsqrtm\b", path.read_text())] == []


def test_rounding_beyond_the_rank_is_not_summed(monkeypatch):
    x, y = normal(10, 12, 1), normal(500, 12, 2)
    # The roots of nine squares are exact enough; a tenth would be nothing but rounding.
    monkeypatch.setattr(torch.linalg, "svdvals", None)
    with pytest.warns(UserWarning, match="mostly bias"):
        got = frechet_distance(moments(x), moments(y))
    assert got == pytest.approx(exact_distance(x, y), rel=1e-10)
