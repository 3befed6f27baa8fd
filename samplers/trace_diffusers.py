"""Tracing of diffusers schedulers: one impulse for every state, output and noise of every step."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from ..schedules import EDM, Grid
from ..schedules.base import Float, Form
from .basis import Basis, affine, preconditioning
from .diffusers_model import NAMES
from .relations import eliminate
from .tableau import Tableau
from .trace_function import vector

# Entries of a traced scheduler below this share of their row are rounding: its states pass through
# float32.
SINGLE = 3e-7


class Nodes(NamedTuple):
    """alpha and sigma of a scheduler's states [N + 1], and m = p x + q x0 at its calls [N]."""

    alpha: Float
    sigma: Float
    p: Float
    q: Float


def trace_scheduler(scheduler: Any, begin: int, check: bool) -> Tableau:
    """See `trace`.

    Every step gets a fresh unit vector as its state, so that each relation is read at its own scale
    and float32 rounding is not carried along; the relations are chained in float64 afterwards.
    """
    scheduler = raised(scheduler)
    times = scheduler.timesteps[begin:]
    n = len(times)
    if n < 1 or begin < 0:
        raise ValueError(f"trace: begin {begin} is none of {len(scheduler.timesteps)} timesteps")
    # Basis: states 0..n-1, outputs 0..n-1, noises 0..n-1.
    unit = np.eye(3 * n)
    ran = run(
        scheduler,
        begin,
        [vector(unit[k]) for k in range(n)],
        [vector(unit[n + k]) for k in range(n)],
        [vector(unit[2 * n + k]) for k in range(n)],
    )
    relations = np.stack([row.numpy().reshape(-1) for row in ran])
    name = type(scheduler).__name__
    if not np.isfinite(relations).all():
        step = int((~np.isfinite(relations)).any(1).argmax())
        raise ValueError(f"trace: step {step} of {name} is not finite (a repeated noise level?)")
    states, outputs, noises = relations[:, :n], relations[:, n : 2 * n], relations[:, 2 * n :]
    nodes = Nodes(*(values[begin:] for values in scheduler_nodes(scheduler)))
    lam = log_ratio(nodes.alpha, nodes.sigma)
    labels = np.append(times.double().numpy(), 0.0)
    stage = np.append(lam[:-1] >= lam[1:], False)
    if getattr(scheduler, "order", 1) == 2:
        stage[1 - begin % 2 : -1 : 2] = True
    # PNDM's Runge-Kutta steps take four calls each.
    warmup = max(len(getattr(scheduler, "prk_timesteps", ())) - begin, 0)
    stage[:warmup] = (np.arange(warmup) + begin) % 4 != 0
    # A last level that repeats counts as one as long as a step comes before it.
    stage[0] = False
    # States in EDM form say so: a denoiser scales them to its network.
    edm = bool((nodes.alpha == 1).all())
    clock = nodes.sigma if edm else labels
    grid = Grid(clock, nodes.alpha, nodes.sigma, lam, labels, stage, EDM() if edm else None)
    if check:
        check_linear(scheduler, begin, relations, name)
    # m = p x + q x0, and from there x0 = (x - sigma eps) / alpha.
    alpha, sigma, p, q = (values[:n] for values in nodes)
    maps: dict[Basis, tuple[Float, Float]] = {"x0": (p, q)}
    if (alpha > 0).all():
        maps["eps"] = (p + q / alpha, -q * sigma / alpha)
    tables = []
    for basis, (p, q) in maps.items():
        rows = eliminate(states + outputs * p, outputs * q, noises)
        size = np.abs(np.column_stack([rows.carry, rows.weights])).max(1, keepdims=True)
        weights, noise = (
            np.where(np.abs(w) > SINGLE * size, w, 0.0) for w in (rows.weights, rows.noise)
        )
        tables.append(Tableau(grid, rows.carry, weights, noise, basis, name))
    return min(tables, key=lambda table: np.count_nonzero(table.weights))


def raised(scheduler: Any) -> Any:
    """A copy whose tables of noise levels are float64."""
    scheduler = copy.deepcopy(scheduler)
    names = "sigmas sigmas_interpol alphas_cumprod alphas betas final_alpha_cumprod one"
    for name in names.split():
        value = getattr(scheduler, name, None)
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(scheduler, name, value.double())
    return scheduler


def run(
    scheduler: Any,
    begin: int,
    states: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    noises: Sequence[Tensor],
) -> list[Tensor]:
    """Step a copy of the scheduler from `begin`; a state of None goes on from the step before."""
    scheduler = copy.deepcopy(scheduler)
    # Euler and its kin would warn that their input was not scaled; impulses need no scaling.
    scheduler.is_scale_input_called = True
    # Steps in order, also where two of them have the same (rounded) time.
    if getattr(scheduler, "begin_index", 0) is None:
        scheduler.set_begin_index(begin)
    # A subclass draws with the function that its parent's module imported.
    modules = {sys.modules[kind.__module__] for kind in type(scheduler).__mro__}
    drawn: list[int] = []

    def draw(*_: Any, **__: Any) -> Tensor:
        drawn.append(call)
        if drawn.count(call) > 1:
            raise ValueError("trace: the sampler draws noise twice between two network calls")
        return noises[call]

    # Brownian motion in sigma: every interval between two calls has one noise of its own.
    levels = scheduler_nodes(scheduler).sigma[begin:]

    def increment(start: Any, stop: Any) -> Tensor:
        shares = -np.diff(np.clip(levels, float(stop), float(start)))
        shares = np.where(shares > 1e-6 * shares.sum(), shares, 0.0)
        # A step of no length adds noise of no size; its levels are float32, hence the threshold.
        total = shares.sum() or 1.0
        return sum(
            (noises[k] * (shares[k] / total) ** 0.5 for k in np.flatnonzero(shares).tolist()),
            torch.zeros_like(noises[call]),
        )

    results: list[Tensor] = []
    with ExitStack() as stack:
        for name, substitute in (
            ("randn_tensor", draw),
            ("BrownianTreeNoiseSampler", lambda *_, **__: increment),
        ):
            for module in modules:
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, substitute))
        for call, time in enumerate(scheduler.timesteps[begin:]):
            state = states[call] if states[call] is not None else results[-1]
            stepped = scheduler.step(outputs[call], time, state, return_dict=False)[0]
            results.append(stepped.double())
    return results


def scheduler_nodes(scheduler: Any) -> Nodes:
    """Where a diffusers scheduler's states live, and what its network predicts."""
    config, n = scheduler.config, len(scheduler.timesteps)
    kind = cast(Basis, NAMES.get(config.get("prediction_type", "epsilon"), "eps"))
    flow = bool(config.get("use_flow_sigmas"))
    if "FlowMatch" in type(scheduler).__name__:
        kind, flow = "flow", True
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double().numpy()
        between = middles(scheduler, sigmas)
        if between is not None:
            sigmas = np.where(np.arange(n + 1) % 2 == 1, between[: n + 1], sigmas[: n + 1])
            sigmas[-1] = scheduler.sigmas[-1]
        form: Form = "flow" if flow else "edm" if is_scaled(scheduler) else "vp"
        alpha, sigma = from_ratio(sigmas[: n + 1], form)
        if "sigma_data" in config:
            _, skip, out = preconditioning(sigma[:-1], config["sigma_data"])
            # There a v_prediction is F with the other sign.
            out = -out if kind == "v" else out
            return Nodes(alpha, sigma, -skip / out, 1 / out)
        if form == "edm" and kind == "v":
            # v is defined on the variance-preserving state x / sqrt(1 + sigma^2).
            a, s = from_ratio(sigma[:-1], "vp")
            p, q = predicted("v", a, s)
            return Nodes(alpha, sigma, p * a, q)
        return Nodes(alpha, sigma, *predicted(kind, alpha[:-1], sigma[:-1]))
    if hasattr(scheduler, "alphas_cumprod"):
        bar = scheduler.alphas_cumprod.double().numpy()
        times = scheduler.timesteps.numpy()
        after = times[-1] - config["num_train_timesteps"] // scheduler.num_inference_steps
        last = bar[after] if after >= 0 else float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        product = np.append(bar[times], last)
        alpha, sigma = np.sqrt(product), np.sqrt(1 - product)
        return Nodes(alpha, sigma, *predicted(kind, alpha[:-1], sigma[:-1]))
    # IPNDM: its own law, and outputs that it reads as v.
    alpha, sigma = scheduler.alphas.double().numpy(), scheduler.betas.double().numpy()
    return Nodes(alpha, sigma, *predicted("v", alpha[:-1], sigma[:-1]))


def middles(scheduler: Any, sigmas: Float) -> Float | None:
    """The levels at which every second call of a two-stage scheduler is made, if it has such."""
    if hasattr(scheduler, "sigmas_interpol"):
        between = scheduler.sigmas_interpol.double().numpy()
        # The ancestral one looks them up under the index of the call before.
        return np.roll(between, 1) if hasattr(scheduler, "sigmas_up") else between
    if hasattr(scheduler, "mid_point_sigma"):
        return np.sqrt(np.append(0.0, sigmas[:-1] * sigmas[1:]))
    return None


def predicted(kind: Basis, alpha: Float, sigma: Float) -> tuple[Float, Float]:
    """(p, q) of m = p x + q x0 as diffusers reads a prediction: v by x0 = alpha x - sigma v."""
    if kind == "v":
        return alpha / sigma, -1 / sigma
    return affine(kind, alpha, sigma)


def is_scaled(scheduler: Any) -> bool:
    """Whether states are in EDM form, x0 + sigma eps, and scaled only for the network."""
    one = torch.ones(1, dtype=torch.float64)
    return bool(copy.deepcopy(scheduler).scale_model_input(one, scheduler.timesteps[0]) != one)


def from_ratio(sigmas: Float, form: Form) -> tuple[Float, Float]:
    """(alpha, sigma) from what diffusers calls sigma: the ratio, or sigma itself for flow."""
    if form == "flow":
        return 1 - sigmas, sigmas
    alpha = np.ones_like(sigmas) if form == "edm" else 1 / np.sqrt(1 + sigmas**2)
    return alpha, sigmas * alpha


def log_ratio(alpha: Float, sigma: Float) -> Float:
    """log(alpha / sigma), infinite at the ends."""
    with np.errstate(divide="ignore"):
        return np.log(alpha) - np.log(sigma)


def check_linear(scheduler: Any, begin: int, relations: Float, name: str) -> None:
    """Compare the relations with the original on random tensors; ValueError if they differ."""
    n = len(relations)
    generator = torch.Generator().manual_seed(0)
    # Large enough for any clipping of x0 to bite.
    x, *rest = (
        3 * torch.randn((1, 3, 4, 4), generator=generator, dtype=torch.float64)
        for _ in range(2 * n + 1)
    )
    got = run(scheduler, begin, [x, *[None] * (n - 1)], rest[:n], rest[n:])
    states = [x]
    for step, (row, state) in enumerate(zip(relations, got, strict=True)):
        states.append(state)
        terms = [*states[:n], *[torch.zeros_like(x)] * (n - len(states[:n])), *rest]
        used = np.flatnonzero(row)
        expected = torch.stack([row[k] * terms[k] for k in used]).sum(0)
        error = float((state - expected).abs().max())
        if not error <= 1e-3 * max(1.0, float(expected.abs().max())):
            raise ValueError(
                f"trace: {name} is not linear: step {step} differs from its own impulses by "
                f"{error:.3g}; switch off thresholding and clip_sample"
            )
