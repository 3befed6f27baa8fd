from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fewstep


def test_full_precision_goes_with_either_way_of_allowing_tf32():
    """torch refuses to mix its old and its new settings; both callers must be served."""
    script = """
import torch
from fewstep.eval.precision import full_precision
{setting}
with full_precision("cpu"):
    assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
    assert torch.backends.cudnn.conv.fp32_precision in ("ieee", "none")
{check}
"""
    cases = [
        ("torch.backends.cuda.matmul.allow_tf32 = True",
         "assert torch.backends.cuda.matmul.allow_tf32"),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'",
         "assert torch.backends.cuda.matmul.fp32_precision == 'tf32'"),
    ]  # fmt: skip
    for setting, check in cases:
        code = script.format(setting=setting, check=check)
        paths = os.pathsep.join([str(Path(fewstep.__file__).parents[1]), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, text=True,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
