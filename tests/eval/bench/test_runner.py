from __future__ import annotations

import gc
import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep import noise, schedules
from fewstep.eval.bench import run_bench, runner
from fewstep.eval.models import NetworkModel
from fewstep.eval.processes import Processes

from .fakes import SPREAD, ExactNoise, config, endpoint, model, ready

pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")


def run(settings, folder, given=None, **keywords):
    return run_bench(settings, folder, lambda asked: ready(given or model()), **keywords)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(config(), tmp_path_factory.mktemp("bench"))


def values(run):
    skipped = ("seconds_per_image", "calls_per_second")
    records = [{k: v for k, v in r.record.items() if k not in skipped} for r in run.results]
    return records, [r.pixels.tolist() for r in run.results]


def rmse(run):
    return {r.cell.slug: r.record["values"]["rmse"]["value"] for r in run.results}


def copied(finished, tmp_path):
    for path in finished.folder.rglob("*.npz"):
        target = tmp_path / path.relative_to(finished.folder)
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


def test_all_cells_run_and_cheap_ones_first(finished):
    assert [r.cell.slug for r in finished.results] == [
        "ddim-004", "dpmpp-2m-004", "heun-003",
        "ddim-008", "dpmpp-2m-008", "heun-007",
        "ddim-016", "dpmpp-2m-016", "heun-015",
    ]  # fmt: skip
    assert finished.missing == ()
    assert not list((finished.folder / "shards").glob("ddim*"))


def test_the_reference_is_the_exact_solution(finished):
    ((panel, seed), target), *_ = finished.targets.items()
    assert (panel.model, seed) == ("gaussian", 0)
    grid = schedules.grid(model().schedule, 120, "lam")
    x = noise(grid, (1, 4, 4), seeds=range(40)).numpy()
    means = np.array([-0.8, 0, 0.8])[np.arange(40) % 3].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(target.samples, endpoint(x, means, grid), atol=3e-3)
    assert target.record["rmse_to_check"] < 1e-3
    assert target.record["checked_images"] == 6


def test_errors_fall_as_the_order_says(finished):
    found = rmse(finished)
    assert found["ddim-008"] / found["ddim-016"] == pytest.approx(2, rel=0.3)
    assert found["dpmpp-2m-016"] < found["ddim-016"] / 4


def test_a_cell_is_what_the_solver_makes_of_its_seeds(finished):
    """RMSE, calls and clipping of one cell, computed here from its own samples."""
    record = finished.results[0].record
    table = finished.results[0].cell.table
    from fewstep.eval.models import Draw, in_batches

    draw = Draw(range(40), torch.arange(40) % 3)
    samples = in_batches(model(), table, draw, 40)
    target = next(iter(finished.targets.values())).samples
    expected = float((samples.double() - target.double()).square().mean().sqrt())
    assert record["values"]["rmse"]["value"] == pytest.approx(expected, rel=1e-5)
    assert record["calls_per_image"] == 4
    assert record["outside"] == pytest.approx(float((samples.abs() > 1).double().mean()))
    error = record["values"]["rmse"]["error"]
    squares = (samples - target).double().square().flatten(1).mean(1)
    assert error == pytest.approx(float(squares.std()) / math.sqrt(40) / (2 * expected), rel=0.2)


def test_nothing_is_computed_twice(finished):
    again = model()
    second = run(config(), finished.folder, again)
    assert again.network.calls == 0
    assert values(second) == values(finished)


def test_the_reference_is_measured_once(finished, monkeypatch):
    def forbidden(*each):
        raise AssertionError("measured again")

    monkeypatch.setattr("fewstep.eval.bench.runner.measured", forbidden)
    again = run(config(), finished.folder, model())
    one, other = ([t.record for t in each.targets.values()] for each in (again, finished))
    assert one == other
    assert "frechet/rows-4" in one[0]["values"]


def test_a_reference_of_fewer_samples_leaves_the_other_alone(finished, tmp_path):
    folder = copied(finished, tmp_path)
    run(config(images=10), folder)
    again = model()
    run(config(), folder, again)
    assert again.network.calls == 0


def test_only_what_is_new_or_damaged_is_computed(finished, tmp_path):
    folder = copied(finished, tmp_path)
    (path,) = (folder / "cells").glob("ddim-008-*.npz")
    path.write_bytes(b"damaged")
    again = model()
    wider = config(nfe=[4, 5, 8, 16], solvers=["ddim", "dpmpp-2m"])
    second = run(wider, folder, again)
    batches = 4  # two shards of 20, each 15 and 5
    assert again.network.calls == batches * (8 + 5 + 5)
    assert rmse(second)["ddim-008"] == rmse(finished)["ddim-008"]


SMALL = {"solvers": ["ddim"], "nfe": [4], "reference": {"steps": 20, "check_images": 6}}


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        (model(0.31), {}),
        (model(), {"seeds": 100}),
        (model(), {"end": "min"}),
        (model(), {"guidance": 2}),
        (model(), {"labels": 1}),
        (model(), {"labels": "random"}),
        (model(), {"spacings": "uniform"}),
    ],
)
def test_another_setting_is_another_cell(tmp_path, given, changes):
    run(config(**SMALL), tmp_path)
    run(config(**(SMALL | changes)), tmp_path, given)
    assert given.network.calls >= 16


def test_other_settings_in_a_folder_cost_nothing_of_the_first(tmp_path):
    first = run(config(**SMALL), tmp_path)
    for changes in ({"images": 10}, {"seeds": [0, 100]}, {"guidance": [1, 2]}):
        run(config(**(SMALL | changes)), tmp_path)
    again = model()
    assert values(run(config(**SMALL), tmp_path, again)) == values(first)
    assert again.network.calls == 0


def test_a_cell_is_called_what_it_is_in_this_run(tmp_path):
    settings = SMALL | {"solvers": ["heun"]}
    run(config(**settings), tmp_path)
    found = run(config(**(settings | {"nfe": [3, 4]})), tmp_path)
    assert [(r.record["slug"], r.record["nfe_allowed"]) for r in found.results] == [("heun-003", 3)]


def test_another_reference_is_another_number(tmp_path):
    """More features of the same images, with the same mean: kernel distances change."""
    settings = config(**SMALL, metrics=["kernel"], keep="features")
    found = []
    for members in (50, 500):
        prepared = ready(model(), ("kernel",), members=members)
        record = run_bench(settings, tmp_path, lambda asked, p=prepared: p).results[0].record
        found.append(record["values"]["kernel/rows-4"]["value"])
    assert found[0] != found[1]


def test_ctrl_c_shows_what_was_stored_before(tmp_path):
    first = run(config(**SMALL), tmp_path)
    more = config(**(SMALL | {"solvers": ["heun", "ddim"]}))

    def interrupt(done, of, text):
        raise KeyboardInterrupt

    second = run(more, tmp_path, progress=interrupt)
    assert [r.cell.slug for r in second.results] == [r.cell.slug for r in first.results]
    assert [cell.slug for cell in second.missing] == ["heun-003"]


def test_ctrl_c_loads_no_further_model(tmp_path):
    settings = config(**SMALL, models=["gaussian", "other"])
    asked = []

    def prepare(each):
        asked.append(each.id)
        if each.id == "other":
            raise AssertionError("loaded after the interrupt")
        return ready()

    def interrupt(done, of, text):
        raise KeyboardInterrupt

    found = run_bench(settings, tmp_path, prepare, interrupt)
    assert asked == ["gaussian"]
    assert found.unseen == ("other",)
    assert found.interrupted


def test_a_model_is_gone_when_the_next_is_loaded(tmp_path):
    alive = []

    def prepare(each):
        alive.append([ref() is not None for ref in known])
        prepared = replace(ready(), name=each.id)
        known.append(weakref.ref(prepared.model.network))
        return prepared

    known = []
    run_bench(config(**SMALL, models=["a", "b"]), tmp_path, prepare)
    gc.collect()
    assert alive == [[], [False]]


@pytest.mark.parametrize(
    "solvers",
    [
        [{"name": "ddim", "label": "a", "spacing": "karras"},
         {"name": "ddim", "label": "a", "spacing": "lam"}],
        ["unipc-3", {"name": "unip-3", "label": "unipc-3"}],
    ],
)  # fmt: skip
def test_two_curves_of_one_name_are_refused(tmp_path, solvers):
    with pytest.raises(ValueError, match=r"is there twice|two curves are called"):
        run(config(**(SMALL | {"solvers": solvers})), tmp_path)


def test_misspelt_options_are_named(tmp_path):
    for wrong in ({"options": {"korrector": False}}, {"grid": {"t_maks": 3}}):
        settings = SMALL | {"solvers": [{"name": "unipc-3", **wrong}]}
        with pytest.raises(ValueError, match=r"unipc-3: .*(korrector|t_maks)"):
            run(config(**settings), tmp_path)


def test_more_metrics_need_no_new_samples_where_features_are_kept(tmp_path):
    run(config(**SMALL, keep="features"), tmp_path)
    again = model()
    second = run_bench(
        config(**SMALL, keep="features", metrics=["frechet", "neighbours"]),
        tmp_path,
        lambda asked: ready(again, ("frechet", "neighbours")),
    )
    assert again.network.calls == 0
    assert "coverage/rows-4" in second.results[0].record["values"]


def test_a_batch_of_another_size_goes_on_with_the_same_cells(finished, tmp_path):
    folder = copied(finished, tmp_path)
    again = model()
    run(config(batch_size=7), folder, again)
    assert again.network.calls == 0


def test_ctrl_c_keeps_what_is_done(finished, tmp_path):
    total = 0

    def interrupt(done, of, text):
        nonlocal total
        total = of
        if text == "ddim-008" and done > 40 * 120 + 6 * 120 + 40 * 11 + 200:
            raise KeyboardInterrupt

    first = run(config(), tmp_path, progress=interrupt)
    assert first.interrupted
    assert [r.cell.slug for r in first.results] == ["ddim-004", "dpmpp-2m-004", "heun-003"]
    assert len(first.results) + len(first.missing) == 9
    assert len(list((tmp_path / "shards").glob("ddim-008-*/*.facts.npz"))) == 1
    seen = []
    whole = run(config(), tmp_path, progress=lambda done, of, text: seen.append((done, of)))
    assert values(whole) == values(finished)
    assert seen[-1][0] == seen[-1][1] < total


def test_seeds_guidance_and_models_are_panels_of_their_own(tmp_path):
    settings = config(**SMALL, seeds=[0, 40], guidance=[1, 3])
    found = run(settings, tmp_path)
    assert [r.cell.slug for r in found.results] == [
        "ddim-004-g1-s0", "ddim-004-g1-s40", "ddim-004-g3-s0", "ddim-004-g3-s40",
    ]  # fmt: skip
    assert [r.record["calls_per_image"] for r in found.results] == [4, 4, 8, 8]
    assert [r.record["panel"] for r in found.results] == ["guidance 1"] * 2 + ["guidance 3"] * 2
    assert len(set(rmse(found).values())) == 4
    assert len(found.targets) == 4


class Diverging(ExactNoise):
    """NaN for the samples of label 1 where noise is low."""

    def forward(self, x, label, class_labels):
        out = super().forward(x, label, class_labels)
        bad = (class_labels == 1) & (label < 300)
        return torch.where(bad.view(-1, 1, 1, 1), torch.nan, out)


def test_a_solver_that_diverges_is_reported_and_the_others_go_on(tmp_path):
    given: NetworkModel = model(network=Diverging())
    settings = config(**(SMALL | {"solvers": ["ddim", "heun"], "nfe": [1, 4], "reference": None}))
    found = run(settings, tmp_path, given)
    records = {r.cell.slug: r.record for r in found.results}
    assert records["ddim-001"]["not_finite"] == []
    # Those of its first batch.
    assert records["ddim-004"]["not_finite"] == list(range(1, 15, 3))
    assert records["ddim-004"]["values"] == {}
    before = given.network.calls
    run(settings, tmp_path, given)
    assert given.network.calls == before


def test_a_reference_must_be_deterministic(tmp_path):
    settings = config(**(SMALL | {"reference": {"steps": 4, "solver": "ddpm"}}))
    with pytest.raises(ValueError, match="ddpm draws noise"):
        run(settings, tmp_path)


def test_spacings_and_options_are_curves_of_their_own(tmp_path):
    two = [
        {"name": "unipc-3"},
        {"name": "unipc-3", "label": "predictor", "options": {"corrector": False}},
    ]
    settings = config(solvers=two, nfe=[5], spacings=["lam", "uniform"], reference={"steps": 10})
    found = rmse(run(settings, tmp_path))
    assert set(found) == {
        f"{name}@{spacing}-005"
        for name in ("unipc-3", "predictor")
        for spacing in ("lam", "uniform")
    }
    assert len(set(found.values())) == 4


def test_the_frechet_distance_of_converged_samples_is_that_of_the_law(tmp_path):
    settings = config(images=600, shard_size=600, batch_size=600, solvers=["unipc-3"], nfe=[60])
    found = run(settings, tmp_path).results[0].record["values"]["frechet/rows-4"]
    # Two sets of 600 of one law: means of rows have variance s^2 / 4 + that of the class means.
    assert SPREAD**2 / 4 > found["value"] > 0
    assert found["value"] < 5 * found["error"] + 0.02


def test_another_reference_is_another_error(tmp_path):
    for keep in ("none", "features"):
        settings = [config(**(SMALL | {"keep": keep, "reference": {"steps": n}})) for n in (5, 40)]
        one, other = (rmse(run(each, tmp_path / keep)) for each in settings)
        assert one["ddim-004"] != other["ddim-004"]


def test_what_is_known_of_a_reference_is_of_its_check_and_its_data(tmp_path):
    def record(check, members):
        settings = config(**(SMALL | {"reference": {"steps": 20, "check": check}}))
        prepared = ready(model(), ("kernel",), members=members)
        (target,) = run_bench(settings, tmp_path, lambda asked: prepared).targets.values()
        return target.record

    first, check, data = record("dpmpp-3m", 500), record("ddim", 500), record("dpmpp-3m", 50)
    assert check["rmse_to_check"] > first["rmse_to_check"] == data["rmse_to_check"]
    assert check["values"] == first["values"] != data["values"]


@pytest.mark.parametrize(("keep", "files"), [("npz", 2), ("png", 40), ("none", 0)])
def test_images_stay_where_they_are_to_be_kept(tmp_path, keep, files):
    run(config(**SMALL, keep=keep), tmp_path)
    pattern = {"png": "**/*.png"}.get(keep, "*.pixels.npz")
    assert len(list((tmp_path / "shards").glob(f"ddim*/{pattern}"))) == files


def test_each_process_says_how_far_it_is_with_its_own_part(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "check_shared", lambda folder, processes: None)
    barrier = threading.Barrier(2, timeout=30)

    def one(rank):
        told = []
        processes = Processes(rank, 2, barrier.wait)
        run(config(**SMALL), tmp_path, progress=lambda *at: told.append(at), processes=processes)
        return told[-1][:2]

    with ThreadPoolExecutor(2) as pool:
        (done, total), (others, whole) = pool.map(one, range(2))
    # A shard of the cell and of the reference each, and the check is the first one's.
    assert (done, others) == (20 * (4 + 20) + 6 * 20, 20 * (4 + 20))
    assert (total, whole) == (done, others)
