"""The diffusers scheduler: a thin adapter from its contract to a table and the executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from ..samplers.sums import scaled
from .families import defaults
from .keys import OWN_KEYS, UNSET, resolved, with_all_keys
from .memory import Memory
from .noising import levels_of, lookup
from .plan import Plan, make_plan
from .program import End, Line
from .request import Request
from .stepping import Generators, denoised, take
from .training import starting_scale, table_of_alphas, training_nodes
from .translation import merged


@dataclass
class TableauSchedulerOutput(BaseOutput):
    """`prev_sample` is the next state, `pred_original_sample` the x0 that the network predicts."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


# A compiled step cannot look up a time.
LATE = "the run begins late: call scheduler.set_begin_index before a compiled step"


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
        A name of `schedules.SPACINGS` in place of its nodes, with `spacing_options`; or nodes that
        were placed (`schedules.Placed`): as `to_dict` writes them, or the path of a file or of the
        folder of a run, of which the config then holds a copy.
    nfe
        Network evaluations of a run, whatever number of steps the pipeline asks for.
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
        spacing: str | dict[str, Any] | None = None,
        spacing_options: dict[str, Any] | None = None,
        nfe: int | None = None,
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
        self._plan: Plan | None = None
        self._asked = 0
        # The line at which the run begins, the one that is next once it has begun, what is
        # remembered there, and the line and the memory before it.
        self._first: Line | None = None
        self._line: Line | End | None = None
        self._memory = Memory()
        self._before: tuple[Line, Memory] | None = None
        # The scheduler that `use` put this one in the place of.
        self.replaced: Any = None
        # Some pipelines slice it in the middle of a run; no table needs it.
        self.last_sample: Tensor | None = None
        self.timesteps = torch.tensor(training_nodes(self.config)[0], dtype=torch.float32)

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
        request = Request(num_inference_steps, floats(sigmas), floats(timesteps), mu)
        self._plan = plan = make_plan(dict(self.config), request, device)
        labels = plan.table.grid.label[:-1]
        whole = plan.law == "table" and not plan.scaled and not (labels % 1).any()
        dtype = torch.int64 if whole else torch.float32
        self.timesteps = torch.tensor(labels, dtype=dtype, device=device)
        self.num_inference_steps, self._asked = plan.steps, request.count
        self._begin_index = None
        self._first = plan.program(0)[0]
        self.restart()

    def restart(self) -> None:
        """Go back to the first step, without the history of a run."""
        self._line = self._before = None
        self._memory = Memory()

    @property
    def sigmas(self) -> Tensor:
        """Sigma / alpha of the nodes (sigma for flows), float32 on the CPU."""
        if self._plan is not None:
            return torch.tensor(self._plan.sigmas, dtype=torch.float32)
        return torch.tensor(training_nodes(self.config)[1], dtype=torch.float32)

    @property
    def init_noise_sigma(self) -> Tensor:
        """What pipelines multiply standard noise with to start a run."""
        first = None
        if self._plan is not None and self.config["tableau"] is not None:
            node = self._plan.table.grid.nodes[0]
            first = node.alpha, node.sigma
        return torch.tensor(starting_scale(self.config, float(self.sigmas.max()), first))

    @property
    def order(self) -> int:
        """Network calls per step, of solvers that make the same number in each."""
        order = None if self._plan is None else self._plan.order
        if order is None and self.config["tableau"] is None:
            free = {**self.config, "compat": None, "nfe": None}
            order = make_plan(free, Request(4, mu=1.0)).order
        return order or 1

    # --- where a run is --------------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        """The row that the next `step` runs; None before the first."""
        return None if self._line is None else self._line.index

    @property
    def _step_index(self) -> int | None:
        return self.step_index

    @_step_index.setter
    def _step_index(self, index: int | None) -> None:
        # Pipelines step back to take a step once more, for the unconditional branch.
        if index is None:
            self.restart()
        elif self._before is not None and index == self._before[0].index:
            (self._line, self._memory), self._before = self._before, None
        elif index != self.step_index:
            raise ValueError(
                f"a run goes on step by step, or one back: it is at {self.step_index}, and "
                f"{index} was asked for; set_begin_index says where it begins"
            )

    @property
    def begin_index(self) -> int | None:
        """The row at which a run was told to begin."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this index of `timesteps` (image to image); the history starts there."""
        if self._plan is not None:
            rows, nfe = self._plan.table.grid.nfe, self.config["nfe"]
            if begin_index and nfe is not None and self._asked != self._plan.steps:
                raise ValueError(
                    f"the pipeline begins late, counting in the {self._asked} steps that it asked "
                    f"for, and nfe={nfe} holds the run at {self._plan.steps}: call it with "
                    f"num_inference_steps={self._plan.steps}"
                )
            if not 0 <= begin_index < rows:
                raise ValueError(f"the run has {rows} steps, it cannot begin at {begin_index}")
            self._first = self._plan.program(begin_index)[0]
        self._begin_index = begin_index

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
        found, places = lookup(self._run.table.grid, np.array([timestep]))
        return int(places[0]) if found[0] else self._run.table.grid.nfe - 1

    @property
    def _run(self) -> Plan:
        """The run; a step at every level of training if nobody asked for fewer."""
        if self._plan is None:
            begin = self._begin_index
            self.set_timesteps(int(self.config.get("num_train_timesteps", 1000)))
            if begin is not None:
                self.set_begin_index(begin)
        assert self._plan is not None
        return self._plan

    def _next(self, timestep: float | Tensor | None) -> Line:
        """The line that is next: the first at the begin index, or where `timestep` says."""
        if self._line is None:
            run, first = self._run, self._first
            assert first is not None
            if torch.compiler.is_compiling():
                # A value cannot be looked up without reading it; that it is the first can be told.
                if self._begin_index is None and isinstance(timestep, Tensor):
                    label = self.timesteps[first.index]
                    torch._assert_async(timestep.reshape(-1)[0] == label, LATE)
            elif self._begin_index is None and timestep is not None:
                first = run.program(self.index_for_timestep(timestep))[0]
            self.restart()
            self._line = first
        if isinstance(self._line, End):
            raise ValueError(
                f"the run is over: its {self._line.index} steps were taken; call set_timesteps"
            )
        return self._line

    # --- the run ---------------------------------------------------------------------------------

    @property
    def model_outputs(self) -> list[Tensor]:
        """The newest outputs, as far as later steps need them."""
        return self._memory.outputs

    @model_outputs.setter
    def model_outputs(self, outputs: list[Tensor]) -> None:
        self._memory.outputs = outputs

    def scale_model_input(
        self, sample: Tensor, timestep: float | Tensor | None = None, **_: Any
    ) -> Tensor:
        """What the network is to be shown: the state, in the form that it was trained on.

        Some callers hand in their generator, too, which says nothing here.
        """
        line = self._next(timestep)
        scale = (line.uniform() if torch.compiler.is_compiling() else line.numbers).scale
        return sample if isinstance(scale, float) and scale == 1 else scaled(sample, scale)

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
        line, memory = self._next(timestep), self._memory
        # Given up before anything is made, which then lands in memory that is still in cache.
        self._before = None
        clip = self._run.clip
        returned, self._memory = take(
            line, memory, clip, model_output, sample, generator, variance_noise
        )
        self._before, self._line = (line, memory), line.next
        if not return_dict:
            return (returned,)
        return TableauSchedulerOutput(returned, denoised(line, clip, model_output, sample))

    # --- noise on data ---------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps at the levels of `timesteps` [B].

        In a run that was told where to begin it is the level at hand: that of the begin index, or
        of the next step once there was one. Otherwise it is that of each timestep in the nodes of
        the run, or, for one that is none of them and before `set_timesteps`, in training.
        """
        alpha, sigma = self._levels(timesteps, original_samples)
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, in the order of arguments that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha eps - sigma x0 at the levels of `timesteps`, the target of v-prediction."""
        alpha, sigma = self._levels(timesteps, sample)
        return (alpha * noise - sigma * sample).to(sample.dtype)

    def _levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of timesteps; see `add_noise`."""
        grid = None if self._plan is None else self._plan.table.grid
        row = self._begin_index
        if row is not None and self.step_index is not None:
            row = self.step_index
        return levels_of(self.config, grid, row, timesteps, like)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 of the table of levels, float32."""
        return torch.from_numpy(table_of_alphas(self.config)).float()

    @property
    def betas(self) -> Tensor:
        """beta of the table of levels, float32: 1 - the ratio of neighbours in alpha^2."""
        product = table_of_alphas(self.config)
        return torch.from_numpy(1 - product / np.append(1.0, product[:-1])).float()

    def __repr__(self) -> str:
        usual = {**defaults(self.config["like"]), **dict.fromkeys(OWN_KEYS)}
        said = [(k, repr(v)) for k, v in self.config.items() if k[0] != "_" and v != usual.get(k)]
        short = [f"{key}={value if len(value) < 60 else '..'}" for key, value in said]
        return f"TableauScheduler({', '.join(short)})"

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


# model_index.json records this name, and `import fewstep` is then all that loading needs.
TableauScheduler.__module__ = __name__.split(".", maxsplit=1)[0]


def floats(values: Any) -> list[float] | None:
    """Plain floats from a list, an array or a tensor."""
    if values is None:
        return None
    return [float(v) for v in (values.tolist() if hasattr(values, "tolist") else values)]
