"""The rules of the house: who may import whom, what is packaged, what the README promises."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()

# Lower floors first; a floor imports only from itself and from floors below it.
FLOORS = (
    "storage",
    "configs",
    "schedules",
    "samplers",
    "discrete",
    "steering",
    "integrations",
    "training",
    "zoo",
    "eval",
    *("distill", "search", "guides", "cli"),
)
MODULES = [
    path
    for package in PROJECT["tool"]["setuptools"]["packages"]
    for path in (ROOT / package.removeprefix("fewstep").strip(".").replace(".", "/")).glob("*.py")
    if path.name != "conftest.py"
]


def imports(path):
    """First names of the relative imports that leave a floor, and `fewstep` for absolute ones."""
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth and depth > 1:
            names = [node.module] if node.module else [each.name for each in node.names]
            yield from (name.split(".")[0] for name in names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ["fewstep"] if node.module.split(".")[0] == "fewstep" else []
        elif isinstance(node, ast.Import):
            yield from ("fewstep" for each in node.names if each.name.split(".")[0] == "fewstep")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_relative_and_go_down(path):
    floor = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if floor not in FLOORS:
        assert floor == "__init__"
        return
    below = FLOORS[: FLOORS.index(floor)]
    assert [name for name in imports(path) if name not in below] == []


def test_every_package_is_listed():
    hidden = {"tests", "benchmarks", "docs", "build", "runs"}
    found = {
        ".".join(("fewstep", *path.parent.relative_to(ROOT).parts))
        for path in ROOT.rglob("__init__.py")
        if not any(part.startswith(".") or part in hidden for part in path.relative_to(ROOT).parts)
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_package_is_imported_once():
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    assert [name for name, file in files.items() if file == str(ROOT / "__init__.py")] in (
        [],
        ["fewstep"],
    )


def test_ci_runs_the_readme_test_line():
    lines = [line for line in README.splitlines() if line.startswith("pip install")]
    assert len(lines) == 2
    assert lines[0].endswith("&& fewstep bench")
    for tool in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert tool in lines[1]
    assert all("-c constraints.txt" in line for line in lines)


def test_every_command_of_the_readme_exists():
    from fewstep import cli

    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    known |= {group.name for group in cli.app.registered_groups}
    assert known >= set(re.findall(r"(?:`|&& )fewstep ([a-z]+)", README))


def test_diffusers_is_imported_only_when_it_is_needed():
    """It takes seconds, which `fewstep --help` should not."""
    code = "import sys, fewstep, fewstep.cli; print('diffusers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
