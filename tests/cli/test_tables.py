from __future__ import annotations

import fewstep
import pytest
from fewstep.cli import tables
from PIL import Image

from .typed import run, wide  # noqa: F401 - a fixture


def test_help_names_every_command():
    text = run("--help")
    assert "Exit codes" in text
    for name in (
        *("bench", "report", "generate", "score", "stats", "doctor"),
        *("sample", "show", "solvers", "train", "card", "convert"),
    ):
        assert name in text
        assert len(run(name, "--help")) > 300


def test_solvers_lists_all():
    text = run("solvers")
    for solver in fewstep.samplers.solvers():
        assert solver.name in text


def test_show_prints_the_numbers_of_the_table(tmp_path):
    text = run("show", "dpmpp-2m", "--nfe", 5, "--out", tmp_path / "a.png")
    grid = fewstep.grid(tables.SCHEDULES["discrete"], 5, "lam")
    table = fewstep.build("dpmpp-2m", grid)
    assert "m[n-1]" in text
    assert f"{table.weights[3, 2]:.4f}" in text
    assert f"{table.carry[3]:.4f}" in text
    assert Image.open(tmp_path / "a.png").width > 300


def test_show_stays_within_the_nfe():
    assert "NFE 7" in run("show", "heun", "--nfe", 8)
    assert "z[n]" in run("show", "ddpm", "--nfe", 3, "--schedule", "edm")


@pytest.mark.parametrize("schedule", ["discrete", "edm", "flow"])
def test_show_has_a_spacing_for_every_schedule(schedule):
    assert "NFE 4" in run("show", "unipc-2", "--nfe", 4, "--schedule", schedule)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nope"], "unknown solver 'nope'"),
        (["show", "ddim", "--schedule", "nope"], "unknown schedule"),
        (["show", "ddim", "--spacing", "nope"], "unknown spacing"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, message):
    text = run(*arguments, code=2)
    assert message in text
    assert text.startswith(f"fewstep {arguments[0]}: ")
    assert "Traceback" not in text
