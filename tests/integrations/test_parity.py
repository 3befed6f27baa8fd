"""The samples of every class of diffusers from its config alone."""

from __future__ import annotations

import logging
import warnings

import diffusers
import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers

from .peers import BROWNIAN, COMPARED, Ask, asks, known_difference, run

TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def quiet():
    """Schedulers of diffusers say at length what they make of a config."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def theirs(ask: Ask) -> torch.Tensor | None:
    """The samples of the original, or None where it crashes or is not finite."""
    try:
        x = run(ask.original(), ask)
    except (ValueError, RuntimeError, AssertionError, IndexError, UnboundLocalError):
        return None
    return x if x.isfinite().all() else None


def check(ask: Ask) -> str:
    """Compare, and say how it went; ours must be finite in any case."""
    ours = fewstep.TableauScheduler.from_config(ask.original().config, like=ask.kind)
    got, expected = run(ours, ask), theirs(ask)
    assert got.isfinite().all(), ask
    if expected is None:
        return "theirs is not finite"
    if reason := known_difference(ask):
        return reason
    error = float((got - expected).norm() / expected.norm())
    # The cosine schedule starts at a sigma of 20,000, of which their float32 keeps four digits.
    cosine = ask.config.get("beta_schedule") == "squaredcos_cap_v2"
    assert error < (2e-2 if cosine else TOLERANCE), f"{error:.2g} off: {ask}"
    original = ask.original()
    original.set_timesteps(ask.steps)
    # Times are sought in float32 there; one half of a step may round to either side.
    rounded = ask.config.get("use_karras_sigmas") or ask.config.get("use_lu_lambdas")
    torch.testing.assert_close(
        ours.timesteps.float(),
        original.timesteps.float(),
        rtol=0,
        atol=1.01 if rounded else 0.1,
    )
    return "equal"


@pytest.mark.parametrize("seed", range(2))
def test_samples_are_those_of_diffusers(seed):
    results = [check(ask) for ask in asks(seed, 15)]
    assert results.count("equal") >= 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(2, 6), *range(100, 140)])
def test_a_thousand_configs(seed):
    for ask in asks(seed, 25):
        check(ask)


# Where their first choices are among the known differences.
PLAIN = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": True},
    "PNDMScheduler": {"skip_prk_steps": True, "set_alpha_to_one": True},
}


@pytest.mark.parametrize("kind", [kind for kind in COMPARED if kind != "IPNDMScheduler"])
def test_every_class_has_a_run_that_is_the_same(kind):
    """But IPNDM, whose first evaluation is ignored there (see the compat test)."""
    # On both sides of where the DPM classes lower the order at the end.
    for steps in (4, 25):
        assert check(Ask(kind, PLAIN.get(kind, {}), steps)) == "equal"


@pytest.mark.parametrize("kind", BROWNIAN)
@pytest.mark.parametrize("steps", [2, 5, 10])
def test_tables_of_classes_with_a_brownian_tree(kind, steps):
    """Their noise cannot be drawn from here; what they make of it is read off."""
    original = getattr(diffusers, kind)(**({"use_karras_sigmas": True} if "SDE" in kind else {}))
    original.set_timesteps(steps)
    theirs = samplers.trace(original).in_basis("x0").expanded()
    ours = fewstep.TableauScheduler.from_config(original.config, like=kind)
    ours.set_timesteps(steps)
    table = ours._plan.table.in_basis("x0").expanded()
    np.testing.assert_allclose(table.outputs[-1], theirs.outputs[-1], atol=1e-5)
    largest = np.abs(theirs.noise).max()
    np.testing.assert_allclose(table.noise, theirs.noise, atol=2e-5 * largest)


def test_networks_of_inverted_sigmas():
    """They count from data to noise, and point the other way."""
    for steps in (4, 10):
        assert check(Ask("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, steps)) == (
            "equal"
        )


COMPAT = [
    Ask("DEISMultistepScheduler", {"use_karras_sigmas": True}, 8),
    Ask("DEISMultistepScheduler", {"use_karras_sigmas": True}, 8, 3),
    Ask(
        "UniPCMultistepScheduler",
        {"use_beta_sigmas": True, "beta_schedule": "scaled_linear", "beta_end": 0.012},
        5,
    ),
    Ask(
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        8,
        3,
    ),
    Ask("DPMSolverMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}, 20),
    Ask("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 8),
    Ask("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}, 7),
    Ask("LMSDiscreteScheduler", {}, 8, 2),
    Ask("PNDMScheduler", {"skip_prk_steps": True}, 8),
    Ask("SASolverScheduler", {"use_karras_sigmas": True}, 8),
    Ask("IPNDMScheduler", {}, 8),
    Ask("EDMEulerScheduler", {"final_sigmas_type": "sigma_min"}, 8),
]


@pytest.mark.parametrize("ask", COMPAT, ids=lambda ask: ask.kind)
def test_compat_repeats_their_defects(ask):
    expected = run(ask.original(), ask)

    def error(compat):
        config = ask.original().config
        ours = fewstep.TableauScheduler.from_config(config, like=ask.kind, compat=compat)
        return float((run(ours, ask) - expected).norm() / expected.norm())

    assert error("diffusers") < TOLERANCE
    # And without it the result is another one: there is something to repeat.
    assert known_difference(ask)
    assert error(None) > TOLERANCE
