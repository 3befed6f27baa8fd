"""Settings for all tests."""

from __future__ import annotations

import diffusers
import hypothesis
import torch

# Everything here is small: one thread is fastest, and leaves the machine to others.
torch.set_num_threads(1)

# Some schedulers warn on every step of a test that calls them outside a pipeline.
diffusers.utils.logging.set_verbosity_error()

# The first example pays for imports.
hypothesis.settings.register_profile("fewstep", deadline=None, max_examples=40)
hypothesis.settings.load_profile("fewstep")


def pytest_configure(config):
    """Third parties' deprecations are not ours to read."""
    for ignored in (
        "ignore::DeprecationWarning:diffusers",
        "ignore::FutureWarning:diffusers",
        "ignore:__array_wrap__ must accept:DeprecationWarning",
    ):
        config.addinivalue_line("filterwarnings", ignored)
