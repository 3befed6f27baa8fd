from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from fewstep import noise, schedules
from fewstep.eval import balanced, converge, generate, run_bench, write_report
from fewstep.samplers import build

from .fakes import config, endpoint, subject

pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    run = run_bench(config(), subject(), folder)
    write_report(run)
    return run


def values(run):
    return [(r.cell.slug, r.rmse, r.frechet, r.pixels.tolist()) for r in run.results]


def by_slug(run):
    return {r.cell.slug: r for r in run.results}


def test_all_cells_run_and_cheap_ones_first(finished):
    assert [r.cell.slug for r in finished.results] == [
        "ddim-004", "dpmpp-2m-004", "heun-003",
        "ddim-008", "dpmpp-2m-008", "heun-007",
        "ddim-016", "dpmpp-2m-016", "heun-015",
    ]  # fmt: skip
    assert finished.missing == ()


def test_the_reference_is_the_exact_solution(finished):
    grid = schedules.grid(finished.subject.schedule, 120, "lam")
    x = noise(grid, finished.subject.shape, seeds=range(12)).numpy()
    means = np.array([-0.8, 0, 0.8])[np.arange(12) % 3].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(finished.reference.samples, endpoint(x, means, grid), atol=3e-3)
    assert finished.reference.disagreement < 1e-3
    assert finished.reference.checked == 6


def test_errors_fall_as_the_order_says(finished):
    rmse = {slug: result.rmse for slug, result in by_slug(finished).items()}
    assert rmse["ddim-008"] / rmse["ddim-016"] == pytest.approx(2, rel=0.3)
    assert rmse["dpmpp-2m-016"] < rmse["ddim-016"] / 4


def test_nothing_is_computed_twice(finished):
    again = subject()
    run = run_bench(config(), again, finished.folder)
    assert again.network.calls == 0
    assert values(run) == values(finished)
    assert [r.seconds_per_image for r in run.results] == [
        r.seconds_per_image for r in finished.results
    ]


def test_only_what_is_new_or_damaged_is_computed(finished, tmp_path):
    for path in finished.folder.rglob("*.npz"):
        target = tmp_path / path.relative_to(finished.folder)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "cells" / "ddim-008.npz").write_bytes(b"damaged")
    again = subject()
    wider = config(nfe=[4, 5, 8, 16], solvers=["ddim", "dpmpp-2m"])
    run = run_bench(wider, again, tmp_path)
    batches = 3
    assert again.network.calls == batches * (8 + 5 + 5)
    assert by_slug(run)["ddim-008"].rmse == by_slug(finished)["ddim-008"].rmse


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (subject(0.31), {}),
        (subject(), {"seed": 1}),
        (subject(), {"images": 13}),
        (subject(), {"end": "min"}),
    ],
)
def test_another_setting_is_another_run(finished, tmp_path, model, changes):
    small = {"solvers": ["ddim"], "nfe": [4], "reference": {"steps": 20, "check_images": 6}}
    run_bench(config(**small), subject(), tmp_path)
    run_bench(config(**small, **changes), model, tmp_path)
    assert model.network.calls > 20


def test_ctrl_c_keeps_what_is_done(finished, tmp_path):
    total = 0

    def interrupt(done, of, text):
        nonlocal total
        total = of
        if text == "ddim-008" and done > 1500:
            raise KeyboardInterrupt

    run = run_bench(config(), subject(), tmp_path, interrupt)
    assert 0 < len(run.results) < 9
    assert len(run.results) + len(run.missing) == 9
    write_report(run)
    assert "INCOMPLETE" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["complete"] is False
    again = subject()
    seen = []
    whole = run_bench(config(), again, tmp_path, lambda done, of, text: seen.append((done, of)))
    assert values(whole) == values(finished)
    assert seen[-1][0] == seen[-1][1] < total


def test_samples_do_not_depend_on_the_batch():
    model = subject()
    table = build("dpmpp-2m", schedules.grid(model.schedule, 6))
    runs = [generate(model, table, balanced(7, 3, batch_size=size)) for size in (1, 3, 7)]
    for other in runs[1:]:
        torch.testing.assert_close(runs[0], other, rtol=0, atol=1e-6)


def test_a_reference_must_be_deterministic():
    model = subject()
    grid = schedules.grid(model.schedule, 4)
    with pytest.raises(ValueError, match="ddpm draws noise"):
        converge(model, build("ddim", grid), build("ddpm", grid), balanced(2, 3), 2)


def test_spacings_and_options_are_curves_of_their_own(tmp_path):
    two = [
        {"name": "unipc-3"},
        {"name": "unipc-3", "label": "predictor", "options": {"corrector": False}},
    ]
    settings = config(solvers=two, nfe=[5], spacings=["lam", "uniform"], reference={"steps": 10})
    run = run_bench(settings, subject(), tmp_path)
    slugs = {r.cell.slug: r.rmse for r in run.results}
    assert set(slugs) == {
        f"{name}@{spacing}-005"
        for name in ("unipc-3", "predictor")
        for spacing in ("lam", "uniform")
    }
    assert len(set(slugs.values())) == 4


class Sources(HTMLParser):
    """Collects whatever a page would load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]


def test_the_page_needs_no_other_file(finished):
    page = (finished.folder / "report.html").read_text()
    sources = Sources()
    sources.feed(page)
    assert len(sources.found) == 3 + len(finished.results)
    assert all(source.startswith("data:image/png;base64,") for source in sources.found)
    assert not re.search(r"https?:|url\(|@import|<script|<link", page)


def test_the_record_is_whole(finished):
    record = json.loads((finished.folder / "results.json").read_text())
    assert record["complete"] is True
    assert record["config"] == json.loads(json.dumps(config().model_dump(mode="json")))
    assert record["seeds"] == [0, 11]
    assert set(record["hashes"]) == {"config", "network", "extractor", "data"}
    assert {"torch", "python", "fewstep", "device"} <= set(record["environment"])
    rows = list(csv.DictReader((finished.folder / "results.csv").open()))
    assert len(rows) == len(record["cells"]) == 9
    assert float(rows[0]["frechet_rows-4"]) == record["cells"][0]["frechet_rows-4"]
    for result in finished.results:
        assert (finished.folder / "grids" / f"{result.cell.slug}.png").stat().st_size > 100


def test_no_report_calls_its_distance_fid(finished):
    for name in ("report.md", "report.html", "results.csv", "results.json"):
        text = (finished.folder / name).read_text()
        text = re.sub(r"base64,[^\"]*", "", text).replace("not FID", "")
        assert "fid" not in text.lower()
        assert "rows-4" in text


def test_the_table_names_the_nfe_that_was_spent(finished):
    text = (finished.folder / "report.md").read_text()
    assert re.search(r"\| heun \| \S+ \(3\) \| \S+ \(7\) \| \S+ \(15\) \|", text)
