"""The diffusers scheduler: a thin adapter from its contract to a table and the executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..samplers.executor import combine
from .keys import OWN_KEYS, UNSET, merged, resolved, with_all_keys
from .nodes import Request
from .plan import (
    Plan,
    make_plan,
    starting_scale,
    table_of_alphas,
    training_levels,
    training_sigmas,
)

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class TableauSchedulerOutput(BaseOutput):
    """`prev_sample` is the next state, `pred_original_sample` the x0 that the network predicts."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class Before(NamedTuple):
    """The history before a row was run."""

    row: int
    outputs: tuple[Tensor, ...]
    noises: tuple[Tensor, ...]


class Own(NamedTuple):
    """The state after a row as it was summed, and what was returned of it."""

    state: Tensor
    returned: Tensor
    version: int | None

    def instead_of(self, sample: Tensor, x: Tensor, inside: bool) -> Tensor:
        """The state to go on from when a pipeline hands in `sample` (x in the state's dtype).

        Inside a step it is our own, whatever was done to the sample. Between steps a sample that
        was changed counts; one that was only rounded to the network's dtype does not.
        """
        same = sample is self.returned and self.version is not None
        return self.state if inside or (same and version(sample) == self.version) else x


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


# States are kept in these as they come, and raised to float32 from others.
WIDE = (torch.float32, torch.float64)


class TableauScheduler(SchedulerMixin, ConfigMixin):
    """Any solver, spacing or saved table in any diffusers pipeline.

    Parameters
    ----------
    like
        The scheduler class of diffusers whose keys, nodes and states are meant, such as
        "EulerDiscreteScheduler"; its keys follow under their own names and with its defaults.
    solver
        A name of `samplers.solvers()` in place of what that class does, with `solver_options`.
    spacing
        A name of `schedules.SPACINGS` in place of its nodes, with `spacing_options`.
    tableau
        A table as `Tableau.to_dict` writes it, or a mapping from numbers of steps to such.
    compat
        "diffusers" repeats what diffusers does to the digit, known defects included.

    Raises
    ------
    ValueError
        For a key that says nothing to that class, keys that contradict each other, or nodes that
        cannot be stepped through.
    """

    _compatibles: ClassVar[list[str]] = [each.name for each in KarrasDiffusionSchedulers]

    @register_to_config  # type: ignore[untyped-decorator]
    @with_all_keys
    def __init__(
        self,
        like: str = "DPMSolverMultistepScheduler",
        solver: str | None = None,
        solver_options: dict[str, Any] | None = None,
        spacing: str | None = None,
        spacing_options: dict[str, Any] | None = None,
        tableau: dict[str, Any] | None = None,
        compat: str | None = None,
        **keys: Any,
    ) -> None:
        own = {name: self.config[name] for name in OWN_KEYS}
        config = resolved(own, keys)
        # As ConfigMixin has it: a class that reads this config has defaults of its own for these.
        unset = [key for key in config if keys.get(key, own.get(key)) is None]
        self._internal_dict = FrozenDict({**config, UNSET: unset})
        self.num_inference_steps: int | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._plan: Plan | None = None
        self._first = 0
        self.model_outputs: list[Tensor] = []
        self._noises: tuple[Tensor, ...] = ()
        self._own: Own | None = None
        self._ran: Before | None = None
        # Some pipelines slice it in the middle of a run; no table needs it.
        self.last_sample: Tensor | None = None
        total = int(self.config.get("num_train_timesteps", 1000))
        self.timesteps = torch.arange(total - 1, -1, -1, dtype=torch.float32)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **overrides: Any
    ) -> Any:
        """A scheduler from the config of any scheduler class of diffusers, or of this one.

        The config of another class keeps all its meaning: schedule, prediction, nodes, solver. Keys
        in `overrides` replace those of the config; with `solver` or `tableau` those that said how
        to step are dropped. Raises ValueError for a class that is not known.
        """
        unused = {key: overrides.pop(key) for key in ("subfolder",) if key in overrides}
        scheduler = cls(**merged(config, overrides))
        if "_class_name" in config:
            # As ConfigMixin has it: what was read from a file says so.
            said = {key: value for key, value in scheduler.config.items() if key != UNSET}
            private = {"_class_name": cls.__name__, "_diffusers_version": diffusers.__version__}
            scheduler._internal_dict = FrozenDict({**said, **private})
        return (scheduler, unused) if return_unused_kwargs else scheduler

    # --- nodes -----------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Place the nodes of a run and build its table; the history starts anew.

        `sigmas` or `timesteps` may name the nodes instead of a number of steps; `mu` is the shift
        of this image where shifting is dynamic. The config is read now, not before.
        """
        if num_inference_steps is None and sigmas is None and timesteps is None:
            raise ValueError("set_timesteps: give num_inference_steps, sigmas or timesteps")
        if sigmas is None and timesteps is None and int(num_inference_steps or 0) < 1:
            raise ValueError(f"set_timesteps: at least 1 step is needed, got {num_inference_steps}")
        request = Request(
            num_inference_steps,
            None if sigmas is None else numbers(sigmas),
            None if timesteps is None else numbers(timesteps),
            None if mu is None else float(mu),
        )
        self._plan = plan = make_plan(dict(self.config), request)
        labels = plan.table.grid.label[:-1]
        whole = plan.law == "table" and not plan.scaled and not (labels % 1).any()
        self.timesteps = torch.as_tensor(labels).to(
            device=device, dtype=torch.int64 if whole else torch.float32
        )
        self._labels = labels
        self.num_inference_steps = num_inference_steps or request.count
        self._begin_index = self._step_index = None
        self._prepare(0)
        self.restart()

    def restart(self) -> None:
        """Forget the history of a run."""
        self.model_outputs, self._noises = [], ()
        self._own = self._ran = None

    @property
    def sigmas(self) -> Tensor:
        """Sigma / alpha of the nodes (sigma for flows), float32 on the CPU."""
        if self._plan is not None:
            return torch.from_numpy(self._plan.sigmas).float()
        return torch.from_numpy(training_sigmas(dict(self.config))).float()

    @property
    def init_noise_sigma(self) -> Tensor:
        """What pipelines multiply standard noise with to start a run."""
        return torch.tensor(starting_scale(dict(self.config), float(self.sigmas.max())))

    @property
    def order(self) -> int:
        """Network calls per step, of solvers that make the same number in each."""
        order = None if self._plan is None else self._plan.order
        if order is None and self.config["tableau"] is None:
            order = make_plan({**self.config, "compat": None}, Request(steps=4)).order
        return order or 1

    # --- where a run is --------------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        """The row that the next `step` runs; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The row at which a run was told to begin."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this index of `timesteps` (image to image); the history starts there."""
        self._begin_index = begin_index
        if self._plan is not None:
            self._prepare(begin_index)

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """The index of a timestep: its place in `timesteps` if it was taken from there.

        A number, or a tensor from elsewhere, is looked up by value (which reads a device tensor
        back): the second match if there are two, the last index if there is none.
        """
        if isinstance(timestep, Tensor):
            whole = self.timesteps
            if timestep.untyped_storage()._cdata == whole.untyped_storage()._cdata:
                return int(timestep.storage_offset() - whole.storage_offset())
            timestep = float(timestep.reshape(-1)[0])
        found = np.flatnonzero(self._labels.astype(np.float32) == np.float32(timestep))
        return int(found[min(1, len(found) - 1)]) if len(found) else len(self._labels) - 1

    def _prepare(self, begin: int) -> None:
        """Make the rows of a run from `begin` on ready, its history starting there."""
        assert self._plan is not None
        self._first = begin
        self._plan.program(begin)

    def _begin(self, timestep: float | Tensor | None) -> int:
        """Start a run at the begin index, or where `timestep` says."""
        if self._plan is None:
            # Nobody asked for fewer: a step at every level of training.
            self.set_timesteps(int(self.config.get("num_train_timesteps", 1000)))
        if self._begin_index is None:
            begin = 0 if timestep is None else self.index_for_timestep(timestep)
            if begin != self._first:
                self._prepare(begin)
        self._step_index = self._first
        self.restart()
        return self._first

    # --- the run ---------------------------------------------------------------------------------

    def scale_model_input(
        self, sample: Tensor, timestep: float | Tensor | None = None, **_: Any
    ) -> Tensor:
        """What the network is to be shown: the state, in the form that it was trained on."""
        n = self._step_index if self._step_index is not None else self._begin(timestep)
        scale = self._plan.readings[n].scale  # type: ignore[union-attr]
        return sample if scale == 1 else sample * scale

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One row: the state at the next node from the network's output at this one.

        The sum is taken in float32 at least and returned in the dtype of `model_output`. Noise
        comes from `variance_noise`, or from `generator` (one, or a list of one per sample).
        `timestep` matters for the first step only, where it says where the run begins if
        `set_begin_index` did not. Returns a `TableauSchedulerOutput`, or (prev_sample,) without
        `return_dict`.
        """
        n = self._step_index if self._step_index is not None else self._begin(timestep)
        plan, row = self._plan, n - self._first
        assert plan is not None
        line = plan.program(self._first)[row]
        x = sample if sample.dtype in WIDE else sample.float()
        out = model_output if model_output.dtype == x.dtype else model_output.to(x.dtype)
        if out.shape != x.shape:
            # A variance that the network learned comes behind its prediction.
            out = out[:, : x.shape[1]]
        if self._ran is not None and self._ran.row == row:
            # The same row once more, as pipelines do that step back for the unconditional branch.
            self.model_outputs, self._noises = list(self._ran.outputs), self._ran.noises
        self._ran = Before(row, tuple(self.model_outputs), self._noises)
        x0, removed = None, None
        if plan.clip is not None:
            raw = self._x0(n, x, out)
            x0 = plan.clip(raw)
            removed = raw - x0 if line.residual else None
            m = x0 if line.to_x == 0 else (x * line.to_x).add_(x0, alpha=line.to_x0)
        else:
            m = out if line.ratio is None else torch.add(x, out, alpha=line.ratio)
        outputs = (*self.model_outputs, m) if line.step.call else tuple(self.model_outputs)
        noises = self._noises
        if line.draws:
            z = variance_noise
            if z is None:
                z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            noises = (*noises, z.to(x.dtype)) if line.step.draws else noises
        state = x if self._own is None else self._own.instead_of(sample, x, line.inside)
        prev = combine(line.step, state, outputs, noises)
        if removed is not None:
            prev = prev.add_(removed, alpha=line.residual)
        self.model_outputs = [outputs[i] for i in line.step.keep]
        self._noises = tuple([noises[i] for i in line.step.keep_noise])
        self._step_index = n + 1
        returned = prev if prev.dtype == model_output.dtype else prev.to(model_output.dtype)
        keeps = line.leads_inside or returned is not prev
        self._own = Own(prev, returned, version(returned)) if keeps else None
        if not return_dict:
            return (returned,)
        if x0 is None:
            x0 = m * line.unit if line.unit else self._x0(n, x, out)
        return TableauSchedulerOutput(returned, x0)

    def _x0(self, n: int, x: Tensor, out: Tensor) -> Tensor:
        """The clean data that the network predicts at node n."""
        reading = self._plan.readings[n]  # type: ignore[union-attr]
        return (x * reading.a).add_(out, alpha=reading.b)

    # --- noise on data ---------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps at the levels of `timesteps` [B].

        In a run that was told where to begin it is the level at hand: that of the begin index, or
        of the next step once there was one. Otherwise it is that of each timestep in the nodes of
        the run, or, for one that is none of them and before `set_timesteps`, in training.
        """
        alpha, sigma = self._levels(timesteps)
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (
            torch.as_tensor(level).to(original_samples).reshape(shape) for level in (alpha, sigma)
        )
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, in the order of arguments that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha eps - sigma x0 at the levels of `timesteps`, the target of v-prediction."""
        alpha, sigma = self._levels(timesteps)
        shape = (-1, *[1] * (sample.ndim - 1))
        alpha, sigma = (torch.as_tensor(v).to(sample).reshape(shape) for v in (alpha, sigma))
        return alpha * noise - sigma * sample

    def _levels(self, timesteps: Tensor) -> tuple[Any, Any]:
        """(alpha, sigma) [B] of timesteps; see `add_noise`."""
        count = len(timesteps.reshape(-1))
        if self._plan is not None and self._begin_index is not None:
            n = self._begin_index if self._step_index is None else self._step_index
            node = self._plan.table.grid.nodes[n]
            return np.full(count, node.alpha), np.full(count, node.sigma)
        labels = timesteps.reshape(-1).double().cpu().numpy()
        alpha, sigma = training_levels(dict(self.config), labels)
        if self._plan is not None:
            grid = self._plan.table.grid
            known = {
                np.float32(label): k for k, label in reversed(list(enumerate(grid.label[:-1])))
            }
            for i, label in enumerate(labels.astype(np.float32)):
                if label in known:
                    alpha[i], sigma[i] = grid.alpha[known[label]], grid.sigma[known[label]]
        return alpha, sigma

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 of the table of levels, float32."""
        return torch.from_numpy(table_of_alphas(dict(self.config))).float()

    @property
    def betas(self) -> Tensor:
        """beta of the table of levels, float32: 1 - the ratio of neighbours in alpha^2."""
        product = table_of_alphas(dict(self.config))
        return torch.from_numpy(1 - product / np.append(1.0, product[:-1])).float()

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


# model_index.json records this name, and `import fewstep` is then all that loading needs.
TableauScheduler.__module__ = __name__.split(".", maxsplit=1)[0]


def numbers(values: Any) -> list[float]:
    """Plain floats from a list, an array or a tensor."""
    return [float(v) for v in (values.tolist() if hasattr(values, "tolist") else values)]
