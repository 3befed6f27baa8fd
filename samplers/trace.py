"""Third-party samplers as tables: run them on unit impulses and read the numbers off."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from ..schedules import EDM, Grid
from ..schedules.base import Float, Form
from .basis import Basis, affine
from .diffusers_model import NAMES
from .relations import eliminate
from .tableau import Expanded, Tableau

# Entries of a traced scheduler below this share of their row are rounding: its states pass through
# float32.
SINGLE = 3e-7


def trace(sampler: Any, sigmas: Sequence[float] | None = None, *, check: bool = True) -> Tableau:
    """The table of a linear sampler that was written as code.

    Parameters
    ----------
    sampler
        A diffusers scheduler after its `set_timesteps` (it is copied, not changed), deterministic
        or stochastic; or a function `sample(model, x, sigmas)` in the style of k-diffusion.
    sigmas
        The noise levels for such a function, falling, in EDM form.
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
        return trace_scheduler(sampler, check)
    if callable(sampler) and sigmas is not None:
        return trace_function(sampler, sigmas, check)
    raise ValueError("trace: give a diffusers scheduler, or a sampling function and its sigmas")


class Nodes(NamedTuple):
    """alpha and sigma of a scheduler's states [N + 1], and m = p x + q x0 at its calls [N]."""

    alpha: Float
    sigma: Float
    p: Float
    q: Float


def trace_scheduler(scheduler: Any, check: bool) -> Tableau:
    """See `trace`.

    Every step gets a fresh unit vector as its state, so that each relation is read at its own scale
    and float32 rounding is not carried along; the relations are chained in float64 afterwards.
    """
    scheduler = raised(scheduler)
    times = scheduler.timesteps
    n = len(times)
    # Basis: states 0..n-1, outputs 0..n-1, noises 0..n-1.
    unit = np.eye(3 * n)
    ran = run(
        scheduler,
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
    nodes = scheduler_nodes(scheduler)
    lam = log_ratio(nodes.alpha, nodes.sigma)
    labels = np.append(times.double().numpy(), 0.0)
    stage = np.append(lam[:-1] >= lam[1:], False)
    if getattr(scheduler, "order", 1) == 2:
        stage[1:-1:2] = True
    # PNDM's Runge-Kutta steps take four calls each.
    warmup = len(getattr(scheduler, "prk_timesteps", ()))
    stage[:warmup] = np.arange(warmup) % 4 != 0
    # A last level that repeats counts as one as long as a step comes before it.
    stage[0] = False
    # States in EDM form say so: a denoiser scales them to its network.
    edm = bool((nodes.alpha == 1).all())
    clock = nodes.sigma if edm else labels
    grid = Grid(clock, nodes.alpha, nodes.sigma, lam, labels, stage, EDM() if edm else None)
    if check:
        check_linear(scheduler, relations, name)
    # m = p x + q x0, and from there x0 = (x - sigma eps) / alpha.
    alpha, sigma, p, q = (values[:n] for values in nodes)
    maps: dict[Basis, tuple[Float, Float]] = {"x0": (p, q)}
    if (alpha > 0).all():
        maps["eps"] = (p + q / alpha, -q * sigma / alpha)
    tables = []
    for basis, (p, q) in maps.items():
        rows = eliminate(states + outputs * p, outputs * q, noises)
        size = np.abs(np.column_stack([rows.carry, rows.weights])).max(1, keepdims=True)
        weights, noise = (np.where(np.abs(w) > SINGLE * size, w, 0.0) for w in rows[1:])
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


def vector(values: Float) -> Tensor:
    """A float64 sample [1, D, 1, 1] whose channels are coordinates."""
    return torch.from_numpy(np.array(values)).reshape(1, -1, 1, 1)


def run(
    scheduler: Any,
    states: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    noises: Sequence[Tensor],
) -> list[Tensor]:
    """Step a copy of the scheduler; a state of None goes on from the step before."""
    scheduler = copy.deepcopy(scheduler)
    # Euler and its kin would warn that their input was not scaled; impulses need no scaling.
    scheduler.is_scale_input_called = True
    # Steps in order, also where two of them have the same (rounded) time.
    if getattr(scheduler, "begin_index", 0) is None:
        scheduler.set_begin_index(0)
    # A subclass draws with the function that its parent's module imported.
    modules = {sys.modules[kind.__module__] for kind in type(scheduler).__mro__}
    drawn: list[int] = []

    def draw(*_: Any, **__: Any) -> Tensor:
        drawn.append(call)
        if drawn.count(call) > 1:
            raise ValueError("trace: the sampler draws noise twice between two network calls")
        return noises[call]

    results: list[Tensor] = []
    with ExitStack() as stack:
        for name, substitute in (
            ("randn_tensor", draw),
            ("BrownianTreeNoiseSampler", lambda *_, **__: draw),
        ):
            for module in modules:
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, substitute))
        for call, time in enumerate(scheduler.timesteps):
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
        if hasattr(scheduler, "sigmas_interpol"):
            # Schedulers with midpoints keep them apart; every second call is at one.
            between = scheduler.sigmas_interpol.double().numpy()
            sigmas = np.where(np.arange(n + 1) % 2 == 1, between[: n + 1], sigmas[: n + 1])
            sigmas[-1] = scheduler.sigmas[-1]
        form: Form = "flow" if flow else "edm" if is_scaled(scheduler) else "vp"
        alpha, sigma = from_ratio(sigmas[: n + 1], form)
        if "sigma_data" in config:
            nsr, data = sigma[:-1], config["sigma_data"]
            total = np.hypot(nsr, data)
            skip, out = (data / total) ** 2, nsr * data / total
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


def check_linear(scheduler: Any, relations: Float, name: str) -> None:
    """Compare the relations with the original on random tensors; ValueError if they differ."""
    n = len(relations)
    generator = torch.Generator().manual_seed(0)
    # Large enough for any clipping of x0 to bite.
    x, *rest = (
        3 * torch.randn((1, 3, 4, 4), generator=generator, dtype=torch.float64)
        for _ in range(2 * n + 1)
    )
    got = run(scheduler, [x, *[None] * (n - 1)], rest[:n], rest[n:])
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


class Seen(NamedTuple):
    """What a sampling function showed its model, the levels it named, and what it returned."""

    states: list[Tensor]
    levels: list[float]
    result: Tensor


def trace_function(sample: Callable[..., Tensor], sigmas: Sequence[float], check: bool) -> Tableau:
    """See `trace`: the states that the model is shown are the rows of the expanded table."""
    ladder = torch.as_tensor(sigmas, dtype=torch.float64)
    name = getattr(sample, "__name__", "traced")
    generator = torch.Generator().manual_seed(0)

    def random(_: int) -> Tensor:
        return 3 * torch.randn((1, 3, 4, 4), generator=generator, dtype=torch.float64)

    # A first run counts the calls and is the comparison at the end.
    outputs, noises = Lazy(random), Lazy(random)
    start = random(0)
    original = follow(sample, ladder, start, outputs, noises)
    n = len(original.states)
    unit = np.eye(2 * n + 1)
    seen = follow(
        sample,
        ladder,
        vector(unit[0]),
        Lazy(lambda k: vector(unit[1 + k])),
        Lazy(lambda k: vector(unit[1 + n + k])),
    )
    rows = np.stack([state.numpy().reshape(-1) for state in (*seen.states, seen.result)])
    full = Expanded(rows[:, 0], rows[:, 1 : n + 1], rows[:, n + 1 :])
    levels = np.append(seen.levels, float(ladder[-1]))
    # A call between the ladder's levels, or before the last call at the same level, is a stage.
    stage = ~np.isin(levels, ladder.numpy()) | np.append(levels[:-1] <= levels[1:], False)
    table = Tableau.from_expanded(
        Grid.from_times(EDM(), levels, stage), full, basis="x0", name=name
    )
    terms = [start, *[outputs[k] for k in range(n)], *[noises[k] for k in range(n)]]
    expected = torch.stack([w * term for w, term in zip(rows[-1], terms, strict=True)]).sum(0)
    error = float((original.result - expected).abs().max())
    if check and not error <= 1e-6 * float(expected.abs().max()):
        raise ValueError(
            f"trace: {name} is not linear: it differs from its own impulses by {error:.3g}"
        )
    return table


class Lazy(dict[int, Tensor]):
    """Tensors made when first asked for, and then kept."""

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, key: int) -> Tensor:
        self[key] = self.make(key)
        return self[key]


def follow(
    sample: Callable[..., Tensor], ladder: Tensor, x: Tensor, outputs: Lazy, noises: Lazy
) -> Seen:
    """Run a k-diffusion style sampler with given outputs and noises; noise k follows call k."""
    seen = Seen([], [], x)
    drawn: list[int] = []

    def model(state: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        seen.states.append(state.clone())
        seen.levels.append(float(sigma.reshape(-1)[0]))
        return outputs[len(seen.states) - 1]

    def draw(*_: Any, **__: Any) -> Tensor:
        drawn.append(len(seen.states) - 1)
        if drawn.count(drawn[-1]) > 1:
            raise ValueError("trace: the sampler draws noise twice between two network calls")
        return noises[drawn[-1]]

    known = inspect.signature(sample).parameters
    options = {"disable": True, "noise_sampler": draw}
    with patch.object(torch, "randn_like", draw):
        result = sample(model, x, ladder, **{k: v for k, v in options.items() if k in known})
    return Seen(seen.states, seen.levels, result)
