from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from fewstep.eval.bench import PublishedConfig, run_bench
from fewstep.eval.report import quantities, write_report
from fewstep.eval.report.bench_report import notes, to_json
from fewstep.eval.report.panel import is_about, lines
from PIL import Image

from ..bench.fakes import config, model, ready

pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")
METRICS = ("frechet", "neighbours")


def made(folder, **changes):
    settings = config(nfe=[4, 8], metrics=METRICS, **changes)
    run = run_bench(settings, folder, lambda asked: ready(model(), METRICS))
    write_report(run)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return made(tmp_path_factory.mktemp("report"))


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
    # Two quantities against NFE, the Pareto front, the overview; a grid for every cell.
    assert len(sources.found) == 4 + len(finished.results)
    assert all(source.startswith("data:image/png;base64,") for source in sources.found)
    assert not re.search(r"https?:|url\(|@import|<script|<link", page)


def test_the_record_is_whole(finished):
    record = json.loads((finished.folder / "results.json").read_text())
    assert record["complete"] is True
    assert record["config"] == json.loads(json.dumps(finished.config.model_dump(mode="json")))
    assert {"torch", "python", "fewstep", "device"} <= set(record["environment"])
    about = record["models"]["gaussian"]
    assert about["fingerprint"] == model().fingerprint
    assert about["extractors"]["rows-4"]["reference"]["n"] == 600
    assert record["references"][0]["images"] == 40
    rows = list(csv.DictReader((finished.folder / "results.csv").open()))
    assert len(rows) == len(record["cells"]) == 6
    cell = record["cells"][0]["values"]["frechet/rows-4"]
    assert float(rows[0]["frechet/rows-4"]) == cell["value"]
    assert float(rows[0]["frechet/rows-4 ±"]) == cell["error"]
    for result in finished.results:
        assert Image.open(finished.folder / "grids" / f"{result.cell.slug}.png").width > 50


def test_no_report_calls_its_distance_fid(finished):
    for name in ("report.md", "report.html", "results.csv", "results.json"):
        text = (finished.folder / name).read_text()
        text = re.sub(r"base64,[^\"]*", "", text).replace("is FID", "")
        assert not re.search(r"\bfid\b", text.lower())
        assert "rows-4" in text


def test_the_table_names_the_nfe_that_was_spent(finished):
    text = (finished.folder / "report.md").read_text()
    assert re.search(r"\| heun \| [^|]+ \(3\) \| [^|]+ \(7\) \|", text)


def test_every_plot_that_is_named_is_there(finished):
    text = (finished.folder / "report.md").read_text()
    names = re.findall(r"\]\(([^)]+\.png)\)", text)
    assert set(names) == {"frechet-vs-nfe.png", "rmse-vs-nfe.png", "pareto.png", "samples.png"}
    for name in names:
        assert Image.open(finished.folder / name).width > 300


@pytest.fixture(scope="module")
def beside(finished, tmp_path_factory):
    """The report of the same run beside published values of four kinds."""
    ours = {"quantity": "frechet/rows-4", "images": 40, "values": {"ddim": {4: 99.0}}}
    papers = (
        ours | {"source": "one of ours"},
        ours | {"source": "one of guidance", "guidance": 2.0},
        ours | {"source": "one of others", "values": {"deis-3": {4: 99.0}}},
        {"source": "one of Inception", "values": {"ddim": {4: 99.0}}},
    )
    published = tuple(PublishedConfig.model_validate(paper) for paper in papers)
    config = finished.config.model_copy(update={"published": published})
    folder = tmp_path_factory.mktemp("beside")
    write_report(replace(finished, config=config, folder=folder))
    return (folder / "report.md").read_text()


def test_a_published_value_is_set_beside_ours(beside):
    assert "Published: one of ours" in beside
    assert re.search(r"\| ddim \| 4 \| [^|]+ \| 99 \| -\d+\.\d% \| differs \|", beside)


def test_values_of_another_guidance_are_not_set_beside_ours(beside):
    assert "one of guidance" not in beside


@pytest.mark.parametrize(("model", "guidance", "about"), [("m", 1.0, True), ("n", 1.0, False)])
def test_values_are_of_one_model(model, guidance, about):
    published = PublishedConfig(source="a", model="m", values={})
    assert is_about(published, {"model": model, "guidance": guidance}) == about


def test_published_curves_that_did_not_run_are_named(beside):
    assert "one of others has deis-3, too, which did not run" in beside
    assert "Published: one of others" not in beside


def test_published_fids_are_not_set_beside_other_features(beside):
    assert "one of Inception" not in beside


def test_panels_have_sections_and_pictures_of_their_own(tmp_path):
    made(tmp_path, guidance=[1, 2], solvers=["ddim", "dpmpp-2m"])
    text = (tmp_path / "report.md").read_text()
    for scale in (1, 2):
        assert f"## RMSE to the converged samples (guidance {scale})" in text
        assert (tmp_path / f"rmse-vs-nfe-guidance-{scale}.png").exists()


def test_repeats_show_mean_and_least(tmp_path):
    made(tmp_path, seeds=[0, 40], solvers=["ddim"])
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"\| ddim \| \**[^|]+, min [^|]+ \|", text)
    assert "seeds 0 to 39 and 40 to 79" in text


def test_an_unfinished_run_says_so(tmp_path):
    def interrupt(done, of, text):
        if text.startswith("heun"):
            raise KeyboardInterrupt

    settings = config(nfe=[4])
    run = run_bench(settings, tmp_path, lambda asked: ready(), interrupt)
    write_report(run)
    assert "INCOMPLETE: 1 cells" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["missing"] == ["heun-003"]


def test_a_run_without_any_result_has_a_report(tmp_path):
    def interrupt(done, of, text):
        raise KeyboardInterrupt

    run = run_bench(config(), tmp_path, lambda asked: ready(), interrupt)
    write_report(run)
    assert "INCOMPLETE: 9 cells" in (tmp_path / "report.md").read_text()


def test_models_that_a_run_did_not_come_to_are_missing(finished):
    stopped = replace(finished, unseen=("b",))
    assert "INCOMPLETE: all of b missing; the same command goes on." in notes(stopped)
    assert to_json(stopped)["complete"] is False


def test_a_bias_is_spoken_of_where_there_is_a_distance(finished):
    without = replace(finished, config=finished.config.model_copy(update={"metrics": ()}))
    assert "are biased upwards" in " ".join(notes(finished))
    assert "are biased upwards" not in " ".join(notes(without))


def test_a_floor_is_drawn_once_for_all_repeats(tmp_path):
    run = run_bench(config(nfe=[4], seeds=[0, 40]), tmp_path, lambda asked: ready())
    for quantity in quantities([result.record for result in run.results])[:2]:
        assert len(list(lines(run, "", quantity))) == 1
