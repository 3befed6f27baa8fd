"""Our solvers as k-diffusion's: what ComfyUI, A1111 and k-diffusion call `sample`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..samplers import State, Tableau, advance, build, initial
from ..schedules import FlowMatching, Grid
from ..schedules.grid import Node
from .methods import check_options

Sample = Callable[..., Tensor]
States = Literal["edm", "flow"]


def sampler(name: str | Tableau, *, states: States | None = None, **options: Any) -> Sample:
    """A solver as `sample(model, x, sigmas, extra_args=None, callback=None, disable=None)`.

    Parameters
    ----------
    name
        A name of `samplers.solvers()`, or a table for runs of as many steps as it has, which keeps
        its own levels between the first sigma and the last.
    states
        "edm" for states x0 + sigma eps, "flow" for (1 - sigma) x0 + sigma eps. By default "flow"
        where a model of ComfyUI says so (its `model_sampling` is a `CONST`), else "edm".
    options
        Options of the solver's builder.

    Returns
    -------
    Callable
        `sample` takes `model(x, sigma, **extra_args)` -> x0 with sigma [B], x [B, ...] at the first
        of the falling `sigmas` [N + 1], and returns the state at the last. `callback` gets a dict
        of x, i, sigma, sigma_hat and denoised of each step, `disable` hides the progress bar.
        Noise is that of `noise_sampler(sigma, sigma_next)` if one is given; else of one stream per
        sample, from `extra_args["seed"]` on, or from torch's global generator without a seed.

    Raises
    ------
    ValueError
        For an unknown name, sigmas that do not fall, or a table of another number of steps.
    """
    if states not in (None, "edm", "flow"):
        raise ValueError(f"states must be 'edm', 'flow' or None, got {states!r}")
    if isinstance(name, Tableau):
        if options:
            raise ValueError(f"a table is what it is: {', '.join(options)} says nothing to it")
    else:
        # Now, not at the first image.
        check_options(name, options)

    @torch.no_grad()
    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        if len(sigmas) < 2:
            return x
        kwargs = dict(extra_args or {})
        table = table_on(name, sigmas, states or states_of(model), options)
        levels = torch.tensor(table.grid.sigma, dtype=x.dtype, device=x.device)

        def denoiser(state: Tensor, node: Node) -> Tensor:
            shown = state.to(x.dtype)
            return model(shown, levels[node.index].expand(len(x)), **kwargs)

        def noise(k: int, like: Tensor) -> Tensor:
            assert noise_sampler is not None
            return noise_sampler(levels[k], levels[k + 1]).to(like)

        before, steps = x, 0
        bar = tqdm(total=int((~table.grid.stage[1:]).sum()), disable=disable)

        def report(state: State, x0: Tensor | None) -> None:
            nonlocal before, steps
            row = state.step - 1
            if callback is not None and x0 is not None and not table.grid.stage[row]:
                sigma = levels[row]
                callback(
                    {"x": before, "i": steps, "sigma": sigma, "sigma_hat": sigma, "denoised": x0}
                )
            before = state.x
            if not table.grid.stage[state.step]:
                steps += 1
                bar.update()

        seed = kwargs.get("seed")
        seeds = None if seed is None else range(int(seed), int(seed) + len(x))
        state = initial(table, x, () if noise_sampler is not None else seeds)
        with bar:
            state = advance(
                state,
                denoiser,
                table,
                table.grid.nfe,
                callback=report,
                noise=None if noise_sampler is None else noise,
            )
        return state.x.to(x.dtype)

    return sample


def table_on(
    name: str | Tableau, sigmas: Tensor, states: States, options: Mapping[str, Any]
) -> Tableau:
    """The table of a solver on those levels; or a table, whose own levels start at the first."""
    levels = sigmas.double().cpu().numpy()
    if isinstance(name, Tableau):
        if name.grid.nfe != len(levels) - 1:
            raise ValueError(
                f"{name!r} has {name.grid.nfe} rows, and {len(levels)} sigmas ask for "
                f"{len(levels) - 1}"
            )
        table = name.in_form(states)
        ends = table.grid.sigma[[0, -1]]
        if not np.allclose(ends, levels[[0, -1]], rtol=1e-3):
            raise ValueError(
                f"{name!r} runs from sigma {ends[0]:.6g} to {ends[1]:.6g}, the sigmas from "
                f"{levels[0]:.6g} to {levels[-1]:.6g}"
            )
        return table
    flow = states == "flow"
    grid = Grid.from_times(FlowMatching(), levels) if flow else Grid.from_sigmas(levels)
    return build(name, grid, **options)


def states_of(model: Any) -> States:
    """The form of the states that a model of ComfyUI works on; "edm" for all others."""
    patcher = getattr(getattr(model, "inner_model", model), "model_patcher", None)
    if patcher is None:
        return "edm"
    kinds = type(patcher.get_model_object("model_sampling")).__mro__
    return "flow" if any(kind.__name__ == "CONST" for kind in kinds) else "edm"
