"""Third-party samplers as tables: run them on unit impulses and read the numbers off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .tableau import Tableau
from .trace_diffusers import trace_scheduler
from .trace_function import trace_function


def trace(
    sampler: Any, sigmas: Sequence[float] | None = None, *, begin: int = 0, check: bool = True
) -> Tableau:
    """The table of a linear sampler that was written as code.

    Parameters
    ----------
    sampler
        A diffusers scheduler after its `set_timesteps` (it is copied, not changed), deterministic
        or stochastic; or a function `sample(model, x, sigmas)` in the style of k-diffusion.
    sigmas
        The noise levels for such a function, falling, in EDM form.
    begin
        The index of the first of a diffusers scheduler's timesteps, for a run that starts late.
    check
        Run the original once more on random tensors and compare.

    Returns
    -------
    Tableau
        In the x0 or eps basis, whichever leaves fewer entries. A diffusers scheduler is asked for
        its coefficients in float64 where it can (its tables of sigmas are raised first), so that
        the numbers are those it means, not their float32 rounding.

    Raises
    ------
    ValueError
        When the sampler is not linear in the state, the outputs and the noise (thresholding,
        clipping, norm-dependent steps), or draws noise twice between two network calls.
    """
    if hasattr(sampler, "step") and hasattr(sampler, "timesteps"):
        if sampler.num_inference_steps is None:
            raise ValueError("trace: call set_timesteps on the scheduler first")
        return trace_scheduler(sampler, begin, check)
    if callable(sampler) and sigmas is not None:
        if begin:
            raise ValueError("trace: a function begins at the first of its sigmas; give it fewer")
        return trace_function(sampler, sigmas, check)
    raise ValueError("trace: give a diffusers scheduler, or a sampling function and its sigmas")
