"""The code in the documents runs."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import rows

ROOT = Path(__file__).parents[1]


def block(name):
    """The first Python block of a document."""
    text = (ROOT / name).read_text()
    return textwrap.dedent(re.search(r"^( *)```python\n(.*?)^\1```", text, re.S | re.M).group(2))


def test_the_quick_start_draws_digits():
    names = {}
    exec(block("README.md"), names)
    images = names["images"]
    assert images.shape == (8, 1, 28, 28)
    read = fewstep.zoo.mnist_classifier()(images).argmax(1).tolist()
    assert sum(a == b for a, b in zip(read, range(8), strict=True)) >= 7


def test_the_page_of_learned_tables_draws_digits_in_a_pipeline():
    names = {}
    exec(block("docs/learned-tables.md"), names)
    pixels = np.stack([np.array(each) for each in names["images"]])
    drawn = torch.from_numpy(pixels)[:, None].float() / 127.5 - 1
    read = fewstep.zoo.mnist_classifier()(drawn).argmax(1).tolist()
    assert sum(a == b for a, b in zip(read, range(10), strict=True)) >= 9


def test_the_page_of_solver_schedules_samples_a_population():
    names = {}
    exec(block("docs/solver-schedules.md"), names)
    assert names["images"].shape == (6, 4, 1, 28, 28)
    assert [table.nfe for table in names["tables"]] == [5] * 6


def test_the_page_of_teleportation_draws_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block("docs/teleportation.md"), names)
    assert names["table"].nfe == 5
    read = fewstep.zoo.mnist_classifier()(names["images"]).argmax(1).tolist()
    assert sum(a == b for a, b in zip(read, range(8), strict=True)) >= 7


def test_the_page_of_grids_places_some(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block("docs/grids.md"), names)
    assert [table.nfe for table in names["tables"]] == [6, 6, 6]


def test_the_page_of_time_shift_samples():
    names = {}
    exec(block("docs/time-shift.md"), names)
    assert names["images"].shape == (4, 1, 28, 28)
    bare = fewstep.sample(names["denoiser"], names["shift"].table, names["x"])
    assert not torch.equal(names["images"], bare)
    assert names["found"].window >= 0


def test_the_page_of_dpm_solver_v3_samples_with_statistics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block("docs/dpm-v3.md"), names)
    assert names["x"].shape == (8, 4)
    assert names["table"].weights.shape == (6, 6, 4)
    # Nearer to the data than with l = 1, s = b = 0.
    grid, denoiser = names["grid"], names["denoiser"]
    x = fewstep.noise(grid, (4,), seeds=range(8))
    fine = fewstep.build("unipc-3", fewstep.grid(names["law"], 200, "uniform"))
    end = fewstep.sample(denoiser, fine, x)
    plain = fewstep.sample(denoiser, fewstep.build("dpm-v3", grid, order=2), x)
    assert (names["x"] - end).norm() < (plain - end).norm()


def test_the_page_of_discrete_samplers_writes_text(capsys):
    exec(block("docs/discrete.md"), {})
    lines = capsys.readouterr().out.split("\n")
    assert [len(line) for line in lines[:4]] == [64] * 4
    assert "_" not in "".join(lines)


@pytest.mark.parametrize("nfe", [1, 2, 3, 10])
def test_the_solver_of_the_guide_is_the_registered_one(nfe):
    names = {"np": np, "Grid": fewstep.Grid, "Tableau": fewstep.Tableau, "tableau": rows.tableau}
    exec("from __future__ import annotations\n" + block("CONTRIBUTING.md"), names)
    grid = fewstep.grid(fewstep.schedules.VPLinear(), nfe, "lam")
    ours, registered = names["dpmpp_2m"](grid), fewstep.build("dpmpp-2m", grid)
    np.testing.assert_allclose(ours.weights, registered.weights, atol=1e-13)
    np.testing.assert_allclose(ours.carry, registered.carry, atol=1e-13)


def test_names_of_other_programs_lead_to_solvers():
    """Every solver of the migration table, with its options, builds; and so do all spacings."""
    text = (ROOT / "docs" / "migration.md").read_text()
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    solvers, spacings = ([line.split("|")[-2] for line in table[2:]] for table in tables[:2])
    grid = fewstep.grid(fewstep.schedules.VPLinear(), 5, "lam")
    found = [name for cell in solvers for name in re.findall(r"`([a-z][^`]*)`", cell)]
    assert len(found) >= 20
    for cell in solvers:
        options = re.search(r"`(\{.*\})`", cell)
        name = re.search(r"`([a-z][^`]*)`", cell).group(1)
        fewstep.build(name, grid, **(ast.literal_eval(options.group(1)) if options else {}))
    for name in found:
        fewstep.build(name, grid)
    law = fewstep.schedules.VPDiscrete(fewstep.schedules.betas("linear"))
    for cell in spacings:
        assert fewstep.grid(law, 5, ast.literal_eval(cell.strip().strip("`"))).nfe == 5


def test_the_page_of_compensation_draws_digits():
    names = {}
    exec(block("docs/compensation.md"), names)
    assert names["table"].nfe == 4
    read = fewstep.zoo.mnist_classifier()(names["images"]).argmax(1).tolist()
    assert read == [0, 1, 2, 3]


def test_the_page_of_guidance_draws_digits():
    text = (ROOT / "docs/guidance.md").read_text()
    names = {}
    for part in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(part, names)
        read = fewstep.zoo.mnist_classifier()(names["images"]).argmax(1).tolist()
        assert sum(a == b for a, b in zip(read, range(8), strict=True)) >= 6


def test_the_page_of_steering_finds_what_is_rewarded():
    names = {}
    exec(block("docs/steering.md"), names)
    found, chain = names["found"], names["chain"]
    assert found.x.shape == (8, 1, 28, 28)
    assert found.evaluations == 8 * 12
    bare = fewstep.steering.best_of(chain, names["reward"], 1, count=8)
    assert found.mean_reward() > bare.mean_reward()
