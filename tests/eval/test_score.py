from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.eval.extractors import EXTRACTORS, Outputs, extractor
from fewstep.eval.metrics import Moments, frechet_distance, moments
from fewstep.eval.score import (
    BLOCKS,
    MEASURES,
    check_measures,
    check_metrics,
    instruments,
    measure_of,
    root_mean,
    score,
    takes_members,
    title,
)
from fewstep.eval.statistics import Statistics

from .exact import bands

D, N = 6, 200


def features(count=N, seed=0, shift=0.0):
    return shift + torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def statistics(real, **changes):
    known = Statistics({"extractor": "bands"}, moments(real), moments(real), real)
    return replace(known, **changes)


def scored(outputs, names, known=None, **options):
    known = statistics(features(seed=9)) if known is None else known
    return score(outputs, instruments(names, known, outputs, "cpu"), **options)


def test_every_measure_names_what_it_gives():
    unit = torch.nn.functional.normalize(features())
    outputs = Outputs(unit, features(), features())
    found = scored(outputs, MEASURES)
    assert list(found) == [name for each in MEASURES.values() for name in each.values]
    assert all(math.isfinite(each.value) and each.error > 0 for each in found.values())


def test_distances_are_the_metrics_own():
    found = scored(Outputs(features()), ("frechet",))["frechet"]
    truth = frechet_distance(moments(features()), moments(features(seed=9)))
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert found.sizes.tolist() == [N / BLOCKS] * BLOCKS


def test_the_kernel_distance_is_the_double_loop_times_1000():
    x, y = features(60).double().numpy(), features(60, seed=9).double().numpy()

    def mean(a, b, same):
        values = (a @ b.T / D + 1) ** 3
        return values[~np.eye(len(a), dtype=bool)].mean() if same else values.mean()

    truth = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    known = statistics(features(60, seed=9))
    first, second = (scored(Outputs(features(60)), ("kernel",), known)["kernel"] for _ in range(2))
    assert first.value == pytest.approx(1000 * truth, rel=1e-10)
    assert first.value == second.value
    assert np.array_equal(first.replicates, second.replicates)


def test_neighbours_of_the_same_set():
    found = scored(Outputs(features()), ("neighbours",), statistics(features()))
    values = {name: each.value for name, each in found.items()}
    assert values == {"precision": 1, "recall": 1, "density": pytest.approx(1), "coverage": 1}


def test_neighbours_far_away_and_of_one_mode():
    two = torch.cat([features(100), features(100, seed=1, shift=100)])
    far = scored(Outputs(features(shift=-500)), ("neighbours",), statistics(two))
    assert {each.value for each in far.values()} == {0.0}
    # One of the two modes only: all that is made is real, half of what is real is made.
    half = scored(Outputs(two[:100].repeat(2, 1)), ("neighbours",), statistics(two))
    assert half["precision"].value == 1
    assert half["recall"].value <= 0.5


def test_cmmd_of_orthonormal_embeddings():
    eye = torch.eye(D)
    known = statistics(eye[:2].repeat(20, 1))
    found = scored(Outputs(eye[2:4].repeat(20, 1)), ("cmmd",), known)["cmmd"]
    # Within: half of the pairs at 0, half at squared distance 2; across: all at 2.
    truth = 1000 * 2 * ((1 + math.exp(-0.01)) / 2 - math.exp(-0.01))
    assert found.value == pytest.approx(truth, rel=1e-6)
    same = scored(Outputs(eye[:2].repeat(20, 1)), ("cmmd",), known)["cmmd"]
    assert same.value == pytest.approx(0, abs=1e-9)


def logits_of(classes):
    return Outputs(features(len(classes)), 100 * torch.eye(5)[classes])


def test_inception_scores_with_and_without_shuffling():
    balanced = torch.arange(1000) % 5
    alike = logits_of(torch.zeros(1000, dtype=torch.long))
    assert scored(alike, ("score",))["score"].value == pytest.approx(1)
    assert scored(logits_of(balanced), ("score",), shuffle=False)["score"].value == pytest.approx(5)
    in_classes = logits_of(balanced.sort().values)
    # Ten consecutive chunks of a class each, as ADM's evaluator cuts 50,000 into 5,000s.
    assert scored(in_classes, ("score",), shuffle=False)["score"].value == pytest.approx(1)
    assert scored(in_classes, ("score",))["score"].value > 4.5


def test_the_shuffle_and_the_cuts_are_torch_fidelitys():
    count = 207
    logits = torch.randn(count, 4, generator=torch.Generator().manual_seed(3))
    p = logits.double().softmax(1).numpy()[np.random.RandomState(2020).permutation(count)]
    scores = []
    for i in range(10):
        part = p[i * count // 10 : (i + 1) * count // 10]
        scores.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
    found = scored(Outputs(features(count), logits), ("score",))["score"]
    assert found.value == pytest.approx(np.mean(scores), rel=1e-10)


def test_a_set_sorted_by_class_scores_like_a_shuffled_one():
    classes = (torch.arange(1000) // 100)[:, None]
    x = features(1000) + classes
    known = statistics(features(1000, seed=9) + classes)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    a, b = (scored(Outputs(each), ("frechet",), known)["frechet"] for each in (x, x[order]))
    assert a.value == pytest.approx(b.value, rel=1e-9)
    assert 0.5 < a.error / b.error < 2
    assert scored(Outputs(x), ("frechet",), known, shuffle=False)["frechet"].error > 5 * b.error


def test_fewer_samples_than_blocks():
    with pytest.warns(UserWarning, match="mostly bias"):
        found = scored(Outputs(features(5)), ("frechet",))["frechet"]
    assert len(found.sizes) == 5


def test_features_too_large_for_the_kernel_are_a_numeric_error():
    with pytest.raises(ArithmeticError, match="kernel overflowed"):
        scored(Outputs(1e137 * features().double()), ("kernel",))


@pytest.mark.parametrize("name", [name for each in MEASURES.values() for name in each.values])
def test_only_the_inception_of_2015_gives_published_names(name):
    genuine = title(name, "inception")
    assert "features" not in genuine
    for other in ("inception-unverified", "dinov2", "mnist-classifier-64"):
        assert title(name, other).endswith(f"({other} features)")
        assert not title(name, other).startswith(("FID", "KID", "sFID"))
    assert measure_of(name).lower_is_better == (name in ("frechet", "kernel", "spatial", "cmmd"))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", [*EXTRACTORS, "inception-unverified", "mnist-classifier-64"])
def test_an_exported_network_cannot_pass_for_another_extractor(name, tmp_path):
    network = torch.jit.script(torch.nn.Flatten())
    torch.jit.save(network, tmp_path / f"{name}.pt")
    torch.jit.save(network, tmp_path / "net.pt")
    for path, options in ((f"{name}.pt", {}), ("net.pt", {"name": name})):
        with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
            extractor(str(tmp_path / path), **options)
    assert extractor(str(tmp_path / f"{name}.pt"), name="mine").name == "mine"


PROBE = Outputs(features(2), features(2), features(2))


@pytest.mark.parametrize(
    ("names", "outputs", "changes", "message"),
    [
        (["fid"], PROBE, {}, "unknown metric 'fid'; choose from frechet"),
        (["score"], Outputs(features(2)), {}, "score needs logits, which bands does not have"),
        (["spatial"], Outputs(features(2)), {}, "spatial needs spatial"),
        (["cmmd"], PROBE, {}, "unit length"),
        (["spatial"], PROBE, {"spatial": None}, "no spatial moments"),
        (["kernel"], PROBE, {"members": None}, "moments only"),
        (["neighbours"], PROBE, {"members": None}, "moments only"),
        (["frechet"], Outputs(features(2)[:, :5]), {}, "5 features, the .* are of 6"),
        (["frechet"], PROBE, {"facts": {"extractor": "other"}}, "extractor: 'other' there"),
        (["frechet"], PROBE, {"facts": {"layer": "other"}}, "layer: 'other' there"),
    ],
)
def test_what_is_not_to_be_had_is_said_before(names, outputs, changes, message):
    with pytest.raises(ValueError, match=message):
        check_measures(names, bands(), statistics(features(), **changes), outputs)


def test_what_is_to_be_had_passes():
    check_measures(
        ["frechet", "kernel", "score", "neighbours", "spatial"],
        bands(),
        statistics(features()),
        PROBE,
    )
    check_metrics(["cmmd"], bands(normalised="yes"), PROBE)


def test_a_reference_without_a_count_is_fine():
    known = moments(features(seed=9))
    foreign = Statistics({}, Moments(None, known.mean, known.cov))
    assert scored(Outputs(features()), ("frechet",), foreign)["frechet"].value > 0


def test_the_root_mean_and_its_error():
    squares = torch.randn(400, generator=torch.Generator().manual_seed(0)).square()
    found = root_mean(squares)
    assert found.value == pytest.approx(float(squares.double().mean().sqrt()), rel=1e-12)
    # The delta method: sd(square) / (2 root sqrt(n)).
    truth = float(squares.std()) / (2 * found.value * math.sqrt(400))
    assert 0.6 < found.error / truth < 1.6
    first = np.random.RandomState(2020).permutation(400)[20:]
    assert found.replicates[0] == pytest.approx(float(squares[first].double().mean().sqrt()))


def test_the_root_mean_of_few():
    found = root_mean(torch.tensor([4.0, 4.0, 4.0]))
    assert (found.value, found.error, len(found.sizes)) == (2.0, 0.0, 3)
    assert math.isnan(root_mean(torch.tensor([9.0])).error)


def test_scoring_needs_no_other_process(monkeypatch):
    """The first process scores while others wait at a barrier: an exchange would hang."""
    known = statistics(features(seed=9))
    outputs = Outputs(features(), features())

    def exchange(*arguments, **keywords):
        raise AssertionError("asked other processes")

    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for name in ("all_reduce", "all_gather", "barrier", "get_world_size"):
        monkeypatch.setattr(torch.distributed, name, exchange)
    assert len(scored(outputs, ("frechet", "kernel", "score", "neighbours"), known)) == 7


def test_which_metrics_take_features_of_real_images():
    assert not takes_members(["frechet", "score", "spatial"])
    assert all(takes_members(["frechet", name]) for name in ("kernel", "neighbours", "cmmd"))
