from __future__ import annotations

import math

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.eval.extractors import Extractor
from fewstep.eval.images import quantise
from fewstep.eval.metrics import frechet_distance, moments
from fewstep.eval.metrics.kernel import polynomial
from fewstep.eval.models import Draw, in_batches
from fewstep.search.s3 import judge as module
from fewstep.search.s3.judge import judge_of

from .problem import LAW, SHAPE, config, model


class Rows(torch.nn.Module):
    """Four features: the means of the rows."""

    def forward(self, images):
        return images.mean(-1).flatten(1)


@pytest.fixture(autouse=True)
def rows(monkeypatch, tmp_path):
    """An extractor of that name; real images."""
    monkeypatch.setattr(
        module,
        "extractor",
        lambda name, device, **options: Extractor(
            name, Rows(), lambda x: x.float() / 255, {"layer": "rows"}, channels=1
        ),
    )
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(256, (50, *SHAPE), generator=generator, dtype=torch.uint8)
    np.savez(tmp_path / "real.npz", images=real.numpy())
    return real


TABLE = samplers.build("unipc-3", fewstep.grid(LAW, 4))


def samples(count=24, first=2**31, table=TABLE):
    return in_batches(model(), table, Draw(range(first, first + count)))


def seen(pixels):
    return (pixels.double() / 255).mean(-1).flatten(1)


def test_the_root_mean_square_is_to_the_converged_samples(tmp_path):
    judge = judge_of(config(), model(), tmp_path)
    exact = samples(table=samplers.build("unipc-3", fewstep.grid(LAW, 60, "uniform")))
    gap = (samples() - exact).double().square().mean().sqrt()
    (verdict,) = judge([TABLE])
    assert verdict.score == verdict.numbers["rmse"] == pytest.approx(float(gap), rel=1e-6)
    # The converged samples are kept, by what they depend on.
    network = model()
    network.network.register_forward_hook(lambda *_: pytest.fail("asked again"))
    judge_of(config(), network, tmp_path)
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        judge_of(config(converged_steps=50), network, tmp_path)
    assert verdict.seconds > 0
    # The same again, with converged samples from the file.
    assert len(list((tmp_path / "reference").iterdir())) == 1
    again = judge_of(config(), model(), tmp_path)
    assert again.key == judge.key
    assert again([TABLE])[0].score == verdict.score


def test_converged_samples_that_are_stopped_go_on(tmp_path):
    said = config(samples=10, batch_size=4)
    whole = judge_of(said, model(), tmp_path / "whole")([TABLE])[0]

    def stopping(done, of, what):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_of(said, model(), tmp_path, stopping)
    asked = []
    network = model()
    network.network.register_forward_hook(lambda _, given, __: asked.append(len(given[0])))
    judge = judge_of(said, network, tmp_path)
    assert {*asked} == {2}
    assert judge([TABLE])[0].score == whole.score


@pytest.mark.parametrize("beside", ["data", "reference"])
def test_distances_are_between_features(tmp_path, rows, beside):
    asked = [
        {"kind": "frechet", "features": "rows", "beside": beside, "weight": 2},
        {"kind": "kernel", "features": "rows", "beside": beside, "weight": 0.5},
    ]
    said = config(
        measures=asked, model={"id": "mixture", "data": str(tmp_path / "real.npz")}, samples=40
    )
    (verdict,) = judge_of(said, model(), tmp_path)([TABLE])
    exact = samples(40, table=samplers.build("unipc-3", fewstep.grid(LAW, 60, "uniform")))
    there = seen(rows if beside == "data" else quantise(exact))
    x = seen(quantise(samples(40)))
    frechet = frechet_distance(moments(x), moments(there))
    off = [polynomial(y, y).fill_diagonal_(0).sum() / (len(y) * (len(y) - 1)) for y in (x, there)]
    kernel = float(sum(off) - 2 * polynomial(x, there).mean())
    assert verdict.numbers[f"frechet (rows, {beside})"] == pytest.approx(frechet, rel=1e-4)
    assert verdict.numbers[f"kernel (rows, {beside})"] == pytest.approx(kernel, rel=1e-3, abs=1e-6)
    total = 2 * frechet + 0.5 * kernel
    assert verdict.score == pytest.approx(total, rel=1e-3)


def test_samples_that_are_not_finite_are_the_worst(tmp_path):
    weights = TABLE.weights.copy()
    weights[-1] = 3e38
    broken = fewstep.Tableau(TABLE.grid, TABLE.carry, weights)
    judge = judge_of(config(), model(), tmp_path)
    good, bad = judge([TABLE, broken])
    assert (bad.score, bad.numbers) == (math.inf, {})
    assert math.isfinite(good.score)


def test_a_key_is_of_all_that_scores_depend_on(tmp_path):
    data = str(tmp_path / "real.npz")
    measures = [{"kind": "frechet", "features": "rows"}]
    plain = {"measures": measures, "model": {"id": "mixture", "data": data}}
    changes = [
        {},
        {"samples": 20},
        {"first_seed": 7},
        {"measures": [{**measures[0], "weight": 2}]},
        {"measures": [{**measures[0], "beside": "reference"}]},
        {"measures": [{**measures[0], "beside": "reference"}], "converged_steps": 50},
        {"measures": [{"kind": "kernel", "features": "rows"}]},
    ]
    keys = [judge_of(config(**{**plain, **each}), model(), tmp_path).key for each in changes]
    assert len({*keys}) == len(changes)
    # What is searched, and how, is no matter of the judge.
    same = config(**plain, evaluations=7, strategy="random", nfe=[3, 5], seed=4, batch_size=5)
    assert judge_of(same, model(), tmp_path).key == keys[0]


def test_what_cannot_be_judged_is_refused(tmp_path):
    with pytest.raises(ValueError, match="guidance 2: mixture has no classes"):
        judge_of(config(guidance=2), model(), tmp_path)
    with pytest.raises(ValueError, match="say what its samples are compared with"):
        judge_of(config(measures=[{"kind": "frechet", "features": "rows"}], model="m"),
                 model(), tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match="stands twice"):
        judge_of(config(measures=["rmse", {"kind": "rmse", "weight": 2}]), model(), tmp_path)
