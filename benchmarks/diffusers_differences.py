"""What the differences from diffusers' schedulers amount to, on data whose exact answer is known.

    python benchmarks/diffusers_differences.py [--out docs/diffusers-differences.md]

Data are Gaussian, N(mean, diag(variance)), and the network is the exact one at the level that it is
told. There (x - alpha mean) / sqrt(alpha^2 variance + sigma^2) never changes along the exact
solution, so every run has one right answer: the error is the distance from it, relative to the
deviation of the data. As in a pipeline both runs start from the same noise, times
`init_noise_sigma`; one that begins late starts from the exact state there.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import fewstep
import numpy as np
import torch
from fewstep.samplers import from_diffusers_config
from fewstep.samplers.basis import affine
from fewstep.samplers.trace_diffusers import scheduler_nodes
from fewstep.schedules.base import alpha_sigma

# Directions from narrow to wide. Much narrower ones only measure where the last node is.
MEAN = torch.linspace(-1, 1, 8, dtype=torch.float64)
DEVIATION = torch.logspace(-0.3, 0.3, 8, dtype=torch.float64)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KARRAS, BETA = {"use_karras_sigmas": True}, {**SD, "use_beta_sigmas": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


def no_noise(t: float) -> float:
    """The stochasticity of the ODE, as a function of time."""
    return 0.0


@dataclass(frozen=True)
class Case:
    """A class and its config, how many steps, where the run begins; what is said about it."""

    kind: str
    steps: int
    there: str
    here: str
    config: Mapping[str, Any] = field(default_factory=dict)
    begin: int = 0


MULTI, TIMES = "DPMSolverMultistepScheduler", "times are floats"
CASES = (
    Case(
        MULTI,
        20,
        "third order: half of the second derivative, so it converges with order 2 (uniform lambda)",
        "the exact third order",
        {**SD, "solver_order": 3, "use_lu_lambdas": True},
    ),
    Case(MULTI, 20, "the same (Karras)", "the same", {**SD, **KARRAS, "solver_order": 3}),
    Case(
        "DEISMultistepScheduler",
        20,
        "Karras, exponential, beta and flow nodes: the last comes twice, the last step has no "
        "length (DEIS, SA)",
        "the last step goes on to clean data",
        {**SD, **KARRAS, "solver_order": 3},
    ),
    Case("SASolverScheduler", 40, "the same", "the same", {**SD, **KARRAS, "tau_func": no_noise}),
    Case(
        "EDMDPMSolverMultistepScheduler",
        10,
        'final_sigmas_type="sigma_min": the same (on such nodes, in EDM and Euler classes)',
        "the last node is sigma_min, and every evaluation counts",
        {"final_sigmas_type": "sigma_min"},
    ),
    Case(
        "UniPCMultistepScheduler",
        25,
        "exponential, beta and flow times are cut to whole numbers",
        TIMES,
        {**SD, "use_exponential_sigmas": True},
    ),
    Case("UniPCMultistepScheduler", 38, "and may repeat, which ends the run", TIMES, BETA),
    Case(MULTI, 30, "the same cut, for flows", TIMES, FLOW),
    Case(
        "FlowMatchEulerDiscreteScheduler",
        8,
        "a shifted flow has the ends of its nodes shifted twice",
        "shifted once",
        {"shift": 12.0},
    ),
    Case(
        "EulerDiscreteScheduler",
        12,
        'interpolation_type="log_linear": the network is told evenly spaced times',
        "the times of the levels",
        {**SD, "interpolation_type": "log_linear"},
    ),
    Case(
        "DDIMScheduler",
        7,
        "steps go down by T // n, also where the nodes are not that far apart (DDIM, PNDM)",
        "to the next node",
        {**SD, "timestep_spacing": "trailing", "clip_sample": False},
    ),
    Case(
        "PNDMScheduler",
        10,
        "v predictions of different times are mixed as they are",
        "eps are mixed",
        {**SD, "skip_prk_steps": True, "prediction_type": "v_prediction", "set_alpha_to_one": True},
    ),
    Case(
        "LMSDiscreteScheduler",
        12,
        "a run that begins late has weights for a history that it has not",
        "the history starts where the run does",
        SD,
        begin=6,
    ),
    Case("IPNDMScheduler", 12, "the first evaluation is ignored", "it is used"),
    Case(
        "UniPCMultistepScheduler",
        10,
        "lower_order_final=False, bh1 and eps divide by zero into clean data",
        "the limit",
        {**SD, "lower_order_final": False},
    ),
    Case(MULTI, 1000, "as many steps as levels: a node repeats", "times are not rounded then", SD),
    Case(
        "EulerDiscreteScheduler",
        1,
        "a single linspace step is taken from the cleanest level",
        "from the noisiest",
        SD,
    ),
    Case(
        "EDMEulerScheduler",
        1,
        "a single step on exponential nodes is taken from sigma_min",
        "from sigma_max",
        {"sigma_schedule": "exponential"},
    ),
    Case(
        "DEISMultistepScheduler",
        400,
        "coefficients are differences of float32 numbers",
        "float64",
        {**SD, "solver_order": 3},
    ),
)

# What cannot be put as an error of one run.
OTHERS = (
    (
        "SDE-DPM++ of third order has a wrong sign; that of other classes crashes",
        "the exact third order",
    ),
    (
        "PNDM repeats its first step wherever a run begins",
        "at the start only",
    ),
    (
        "DDIM and PNDM with set_alpha_to_one=False may end in a step of no length",
        "in clean data",
    ),
    (
        "DDPM with fixed_large leaves noise in the result",
        "none after the last step",
    ),
    (
        "lambda_min_clipped with trailing times gives fewer steps than were asked for",
        "as many",
    ),
    (
        "add_noise before set_timesteps has the levels in reverse (DPM, UniPC, DEIS)",
        "those of training",
    ),
    (
        "DPM++ and UniPC have no scale_noise, DPM++ takes no sigmas: Flux, SD3 or LTX fail",
        "both, everywhere",
    ),
    (
        "two equal times: the index of the first is found at the second (crash at the end)",
        "the index is the place in `timesteps`, not the value",
    ),
    (
        "Euler ends at the last of the sigmas that it is given",
        "at clean data, as with given timesteps",
    ),
    (
        "levels are products of float32 numbers, off by up to 8e-5 at t = 0",
        "float64",
    ),
)


# Tests in tests/schedulers of diffusers 0.40 that do not pass, of the DPMSolver classes, UniPC,
# DEIS, SASolver, Heun, Euler, EulerAncestral, EDMEuler and EDMDPMSolverMultistep.
TESTS = (
    (
        "full loops of DPMSolver, UniPC and SASolver with Karras or Lu sigmas, and of "
        "EDMDPMSolverMultistep",
        "their configs have a last sigma that comes twice; 13 tests",
    ),
    ("UniPC, flow_and_karras_sigmas_values", "times that are cut to whole numbers"),
    ("Euler, custom_timesteps with log_linear", "given times are float32: 1e-4 in a sum"),
    ("Heun and Euler, full_loop_with_noise", "sums of 75,000 off by 0.03 and 0.07 in float32"),
    (
        "Euler and EulerAncestral, rescale_betas_zero_snr",
        "nodes that start at pure noise cut to half precision, and go back up from there",
    ),
)


def clean(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """The mean of x0 given alpha x0 + sigma eps = x."""
    variance = DEVIATION**2
    gain = variance * alpha / (alpha**2 * variance + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def network(scheduler: Any, shown: torch.Tensor, t: float) -> torch.Tensor:
    """The exact output at the level that the network is told, in the form that it is shown."""
    config = scheduler.config
    kind = config.get("like", type(scheduler).__name__)
    if kind == "IPNDMScheduler":
        alpha, sigma = np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)
        return combined("v", shown, alpha, sigma)
    schedule, prediction = from_diffusers_config(
        {key: value for key, value in config.items() if value is not None}
    )
    if prediction == "edm":
        sigma, data = float(np.exp(4 * t)), config["sigma_data"]
        total = float(np.hypot(sigma, data))
        x = shown * total
        return (clean(x, 1.0, sigma) - (data / total) ** 2 * x) / (sigma * data / total)
    if schedule.form == "flow":
        return combined("flow", shown, 1 - t / 1000, t / 1000)
    alpha, sigma = alpha_sigma(schedule.lam(min(max(t, 0.0), 999.0)), "vp")
    return combined(prediction, shown, float(alpha), float(sigma))


def combined(kind: Any, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """The prediction of a kind at one level."""
    p, q = affine(kind, alpha, sigma)
    return p * x + q * clean(x, alpha, sigma)


def level(scheduler: Any, begin: int) -> tuple[float, float]:
    """Alpha and sigma of the state before a row."""
    if isinstance(scheduler, fewstep.TableauScheduler):
        grid = scheduler._plan.table.grid
        return float(grid.alpha[begin]), float(grid.sigma[begin])
    nodes = scheduler_nodes(scheduler)
    return float(nodes.alpha[begin]), float(nodes.sigma[begin])


def error(scheduler: Any, noisiest: tuple[float, float], case: Case) -> float:
    """The relative distance of a run from its exact answer."""
    scheduler.set_timesteps(case.steps)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    if case.begin:
        scheduler.set_begin_index(case.begin)
        alpha, sigma = level(scheduler, case.begin)
        x = alpha * MEAN + (alpha**2 * DEVIATION**2 + sigma**2).sqrt() * z
    else:
        x = z * float(getattr(scheduler, "init_noise_sigma", 1.0))
        alpha, sigma = noisiest
        total = float(np.hypot(alpha, sigma)) if alpha < 1 else sigma
        z = (z * total - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2).sqrt()
    x = x.float()
    for t in scheduler.timesteps[case.begin :]:
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = network(scheduler, shown.double(), float(t)).float()
        x = scheduler.step(out, t, x, return_dict=False)[0]
    gap = (x.double() - MEAN - DEVIATION * z) / DEVIATION
    return float(gap.square().mean().sqrt())


def noisiest_level(scheduler: Any) -> tuple[float, float]:
    """Alpha and sigma of the noise that pipelines start from."""
    scheduler.set_timesteps(20)
    return level(scheduler, 0)


def figure(scheduler: Any, noisiest: tuple[float, float], case: Case) -> str:
    """The error as it is printed."""
    try:
        value = error(scheduler, noisiest, case)
    except (ValueError, RuntimeError, AssertionError, IndexError) as problem:
        return type(problem).__name__
    return f"{value:.2g}" if np.isfinite(value) else "NaN"


def report() -> str:
    """The page, as Markdown."""
    lines = [
        "# Where the result is not that of diffusers",
        "",
        "From the config of a class alone, samples are those of that class, to 1e-4 in float32 "
        "(2e-2 on the cosine schedule, whose first level of sigma 20,000 leaves four digits in "
        "their float32); `tests/integrations/test_parity.py` compares a thousand random configs. "
        'Where diffusers is wrong they are not, unless `compat="diffusers"` asks for its table, '
        "which is read off its own class.",
        "",
        "The errors are those of whole runs on Gaussian data with the exact network, relative to "
        "the deviation of the data. They are shown as they come out: a correction need not be a "
        "gain in a short run on such smooth data, and where errors are equal it did not matter.",
        "",
        f"- Python with torch {torch.__version__}, diffusers {diffusers.__version__}, float32, "
        f"CPU, seed 0, {date.today()}",
        "- `python benchmarks/diffusers_differences.py --out docs/diffusers-differences.md`",
        "",
        "| class, steps | diffusers | its error | fewstep | its error |",
        "| --- | --- | ---: | --- | ---: |",
    ]
    for case in CASES:
        original = getattr(diffusers, case.kind)(**case.config)
        ours = fewstep.TableauScheduler.from_config(original.config, like=case.kind)
        name = case.kind.removesuffix("Scheduler")
        asked = f"{name}, {case.steps}" + (f", begun at {case.begin}" if case.begin else "")
        noisiest = noisiest_level(ours)
        errors = [figure(each, noisiest, case) for each in (original, ours)]
        cells = (asked, case.there, errors[0], case.here, errors[1])
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "And what is no error of a single run:", "", "| diffusers | fewstep |"]
    lines += ["| --- | --- |", *[f"| {there} | {here} |" for there, here in OTHERS], ""]
    lines += [
        "diffusers' own tests of DPMSolver, UniPC, DEIS, SASolver, Heun, Euler and EDM classes, "
        "run against `TableauScheduler` with the config of the class, pass but for these:",
        "",
        "| tests of diffusers | why not |",
        "| --- | --- |",
        *[f"| {tests} | {why} |" for tests, why in TESTS],
        "",
    ]
    lines.append(
        "Rows of their tables that differ show in `tests/samplers/test_diffusers_defects.py`."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the Markdown here")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    page = report()
    print(page)
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
