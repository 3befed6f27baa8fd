from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fewstep


def test_full_precision_goes_with_either_way_of_allowing_tf32():
    """torch refuses to mix its old and its new settings; both callers must be served."""
    script = """
import os, torch
from fewstep.eval.precision import full_precision
for setting, check in {cases!r}:
    # A process each, because the settings are there for good.
    child = os.fork()
    if not child:
        exec(setting)
        with full_precision("cpu"):
            assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
            assert torch.backends.cudnn.conv.fp32_precision in ("ieee", "none")
        assert eval(check), setting
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, setting
"""
    cases = [
        ("torch.backends.cuda.matmul.allow_tf32 = True",
         "torch.backends.cuda.matmul.allow_tf32"),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'",
         "torch.backends.cuda.matmul.fp32_precision == 'tf32'"),
    ]  # fmt: skip
    paths = os.pathsep.join([str(Path(fewstep.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script.format(cases=cases)],
        env={**os.environ, "PYTHONPATH": paths}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
