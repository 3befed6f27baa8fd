"""Random legal configs of the scheduler classes of diffusers, and runs of a toy network on them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from fewstep.integrations.families import FAMILIES, defaults

# Their noise comes from a tree of its own, not from the generator.
BROWNIAN = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
COMPARED = [name for name in FAMILIES if name not in BROWNIAN]

MIX = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)) / 2


def network(x: torch.Tensor, t: Any) -> torch.Tensor:
    """Not linear, mixes channels, and depends on the time it is told."""
    told = torch.as_tensor(float(t))
    return 0.6 * x + 0.4 * torch.tanh(torch.einsum("ij,bjhw->bihw", MIX, x)) * (
        0.7 + 0.3 * torch.cos(told / 300)
    )


# The levels of Stable Diffusion.
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def start(scheduler: Any, seed: int = 0) -> torch.Tensor:
    """What a pipeline starts a run with."""
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x * scheduler.init_noise_sigma


def finish(scheduler: Any, x: torch.Tensor, begin: int = 0, **options: Any) -> torch.Tensor:
    """The rest of a run from step `begin` on."""
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(network(x, t), t, x, **options).prev_sample
    return x


@dataclass(frozen=True)
class Ask:
    """A class, its config, and a run."""

    kind: str
    config: dict[str, Any]
    steps: int
    begin: int = 0

    def original(self) -> Any:
        return getattr(diffusers, self.kind)(**self.config)


def run(scheduler: Any, ask: Ask, seed: int = 0) -> torch.Tensor:
    """Sample as a pipeline does."""
    scheduler.set_timesteps(ask.steps)
    begin = ask.begin * scheduler.order
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 4, 4, generator=generator)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    known = inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if "generator" in known else {}
    for t in scheduler.timesteps[begin:]:
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(shown, t), t, x, **options, return_dict=False)[0]
    return x


def asks(seed: int, count: int) -> list[Ask]:
    """`count` random configs that their class accepts."""
    rng = np.random.default_rng(seed)
    return [random_ask(rng) for _ in range(count)]


def random_ask(rng: np.random.Generator) -> Ask:
    """A class and every second of its keys at random."""
    kind = str(rng.choice(COMPARED))
    keys = defaults(kind)

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    choices: dict[str, Any] = {
        "beta_schedule": pick("linear", "scaled_linear", "squaredcos_cap_v2"),
        "num_train_timesteps": pick(1000, 1000, 500),
        "timestep_spacing": pick("linspace", "leading", "trailing"),
        "steps_offset": pick(0, 1),
        "prediction_type": pick("epsilon", "v_prediction"),
        "solver_order": pick(1, 2, 3),
        "solver_type": pick("midpoint", "heun"),
        "algorithm_type": pick("dpmsolver++", "sde-dpmsolver++"),
        "lower_order_final": pick(True, False),
        "euler_at_final": pick(True, False),
        "final_sigmas_type": pick("zero", "zero", "sigma_min"),
        "thresholding": pick(False, False, True),
        "clip_sample": pick(False, True),
        "predictor_order": pick(1, 2, 3),
        "corrector_order": pick(1, 2, 3),
        "flow_shift": pick(1.0, 3.0, 7.0),
        "shift": pick(1.0, 3.0),
        "sigma_schedule": pick("karras", "exponential"),
        "rho": pick(7.0, 5.0),
        "variance_type": pick("fixed_small", "fixed_large"),
        "disable_corrector": pick([], [0], [0, 1]),
        "stochastic_sampling": pick(False, True),
        "skip_prk_steps": True,
        "set_alpha_to_one": pick(True, False),
    }
    config = {key: value for key, value in choices.items() if key in keys and rng.random() < 0.5}
    named = ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas", "flow_sigmas")
    spacings = [f"use_{key}" for key in named if f"use_{key}" in keys]
    if spacings and rng.random() < 0.5:
        key = str(rng.choice(spacings))
        config[key] = True
        if key == "use_flow_sigmas":
            config["prediction_type"] = "flow_prediction"
    match kind:
        case "UniPCMultistepScheduler":
            config["solver_type"] = pick("bh1", "bh2")
        case "DEISMultistepScheduler":
            config.pop("solver_type", None)
            config.pop("algorithm_type", None)
        case "SASolverScheduler":
            config["algorithm_type"] = pick("data_prediction", "noise_prediction")
        case "PNDMScheduler":
            config["skip_prk_steps"] = True
    if kind not in ("DDPMScheduler",):
        config.pop("variance_type", None)
    steps = int(rng.integers(1, 61))
    begin = int(rng.integers(0, steps)) if rng.random() < 0.4 else 0
    return Ask(kind, config, steps, begin)


def known_difference(ask: Ask) -> str | None:
    """Why a run is not that of diffusers, where it should not be; None where it should."""
    config = {**defaults(ask.kind), **ask.config}
    total = config["num_train_timesteps"]
    spaced = [key for key in config if key.startswith("use_") and config[key] is True]
    cut = {"use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas"}
    if cut & set(spaced) and ask.kind.startswith(("DPM", "UniPC", "DEIS", "SA")):
        return "times are cut to integers"
    to_min = config.get("final_sigmas_type") == "sigma_min"
    twice = ask.kind.startswith(("DEIS", "SA")) or to_min
    if twice and (spaced or ask.kind.startswith(("EDM", "Euler"))):
        return "the last sigma comes twice, and the last evaluation is for nothing"
    family = FAMILIES[ask.kind]
    even = family.law == "table" and config.get("timestep_spacing") == "linspace"
    if even and ask.steps == 1 and not family.placement.ahead:
        return "a single step is at the cleanest level"
    if config.get("set_alpha_to_one") is False:
        return "the last step may have no length"
    if ask.kind in ("DDIMScheduler", "PNDMScheduler"):
        if total % ask.steps or config.get("timestep_spacing") == "linspace":
            return "it steps by T // n from nodes that are not that far apart"
        if ask.kind.startswith("PNDM") and (ask.begin or config["prediction_type"] != "epsilon"):
            return "it repeats its first step wherever it begins, and mixes v of different times"
    if ask.kind == "IPNDMScheduler":
        return "the first evaluation is ignored"
    if config.get("shift", 1.0) != 1 and ask.kind.startswith("FlowMatch"):
        return "the ends of the nodes are shifted twice"
    third = config.get("solver_order") == 3
    if third and ask.kind.endswith("MultistepScheduler") and "DPM" in ask.kind:
        return "the third order has half of its second derivative"
    if third and "sde" in config.get("algorithm_type", ""):
        return "the third order of the SDE is not one"
    if ask.kind == "LMSDiscreteScheduler" and ask.begin:
        return "the first steps use weights for a history that is not there"
    if ask.kind == "DDPMScheduler" and config["variance_type"] == "fixed_large":
        return "noise is left in the result"
    if ask.kind.startswith("EDM") and ask.steps == 1 and config["sigma_schedule"] == "exponential":
        return "the only node is the last one"
    if (
        config.get("beta_schedule") == "squaredcos_cap_v2"
        and config["prediction_type"] == "epsilon"
    ):
        return "x0 is a difference of numbers 20,000 times as large"
    return None
