"""A script on two processes of gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fewstep


def run_script(text: str, folder: Path, near: Path) -> list[list[str]]:
    """Run a script with the argument `folder` beside the modules of `near`; the words it prints."""
    script = folder / "script.py"
    script.write_text(text)
    paths = [str(Path(fewstep.__file__).parents[1]), str(near)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(script), str(folder)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *sys.path])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line.split() for line in done.stdout.splitlines()]
