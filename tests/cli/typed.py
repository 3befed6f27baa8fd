"""The command as a person types it."""

from __future__ import annotations

import os
from pathlib import Path

import fewstep
import pytest
from fewstep import cli
from fewstep.cli import console
from typer.testing import CliRunner


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Consoles that write where the runner looks, 200 columns wide."""
    monkeypatch.setattr(console, "out", console.Console(width=200))
    monkeypatch.setattr(console, "err", console.Console(width=200, stderr=True))


def environment():
    """That of a process that finds the package where this one did."""
    above = Path(fewstep.__file__).parents[1]
    paths = [str(above), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
