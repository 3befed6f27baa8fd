"""The loop of a diffusers pipeline, one evaluation at a time: a stand-in for its scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, wraps
from inspect import signature, unwrap
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .request import Config, Request
from .scheduler import floats

# What a pipeline calls the number of samples, of each prompt or of all.
COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
UNCONDITIONAL, LABELS, EMBEDS = "batch_size", "class_labels", "prompt_embeds"
# What is not for `call`: every evaluation decides it.
DECIDED = (
    *COUNTS,
    *(UNCONDITIONAL, "latents", "generator", "num_inference_steps"),
    *("output_type", "return_dict", "callback_on_step_end"),
)
ENCODERS = ("encode_prompt", "_encode_prompt")


class Stepped(NamedTuple):
    """What a pipeline hands to `step`: the output, after its guidance, and the state."""

    output: Tensor
    sample: Tensor


class Caught(BaseException):
    """Ends the call of a pipeline with what was looked for; not one that it would catch."""

    def __init__(self, found: Stepped | Request) -> None:
        super().__init__()
        self.found = found


class Place(NamedTuple):
    """Where a network is asked: what it is told, and what diffusers calls sigma there."""

    label: float
    sigma: float


class StandIn:
    """In place of a pipeline's scheduler: the loop goes over `places`, and ends at the first step.

    With None the call ends where its nodes are asked for, before any evaluation.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Config, places: Sequence[Place] | None) -> None:
        self.config, self.places = config, places
        self.timesteps = torch.tensor([each.label for each in places or ()], dtype=torch.float32)
        self.sigmas = torch.tensor([*(each.sigma for each in places or ()), 0.0])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Whatever is asked for, it is `places`."""
        if self.places is None:
            raise Caught(Request(num_inference_steps, floats(sigmas), floats(timesteps), mu))
        self.timesteps = self.timesteps.to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """There is no other place to begin."""

    def scale_model_input(self, sample: Tensor, *_: Any, **__: Any) -> Tensor:
        """States come as the network is shown them."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any) -> Any:
        """End the call."""
        raise Caught(Stepped(model_output, sample))


class Drawn(TorchFunctionMode):
    """Inside, noise of the shape of x from `generator` is x: for pipelines that take no latents."""

    def __init__(self, x: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.x, self.generator = x, generator

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer `torch.randn`, and leave all else alone."""
        given = dict(kwargs or {})
        if func is torch.randn and given.get("generator") is self.generator:
            shape = args[0] if isinstance(args[0], Sequence) else args
            if tuple(shape) == tuple(self.x.shape):
                return self.x
        return func(*args, **given)


@dataclass(frozen=True, eq=False)
class Loop:
    """A pipeline that is called for one evaluation, or for what it does before or after its loop.

    `call` are arguments of every call, `config` that of the scheduler. What prompts are encoded as
    is kept in `known`. During a call the pipeline has a stand-in for its scheduler; afterwards
    it is as it was, whatever happened. What it draws beside the state, such as noise on a
    condition, is the same in every call.
    """

    pipe: Any
    call: Mapping[str, Any]
    config: Config
    known: dict[Any, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class of the pipeline."""
        return type(self.pipe).__name__

    @cached_property
    def takes(self) -> frozenset[str]:
        """The names of the pipeline's arguments."""
        found = signature(type(self.pipe).__call__).parameters.values()
        return frozenset(each.name for each in found if each.kind != each.VAR_KEYWORD) - {"self"}

    @cached_property
    def kinds(self) -> int:
        """How many prompts or labels there are."""
        for name in ("prompt", EMBEDS, LABELS):
            if isinstance(self.call.get(name), list | tuple | Tensor):
                return len(self.call[name])
        return 1

    def requested(self, steps: int) -> Request:
        """What the pipeline asks its scheduler for in a call of so many steps."""
        found = self.run(StandIn(self.config, None), self.kinds, num_inference_steps=steps)
        if not isinstance(found, Request):
            raise ValueError(f"{self.name} cannot be driven: it never calls set_timesteps")
        return found

    def evaluated(self, place: Place, size: int, x: Tensor | None = None) -> Stepped:
        """One evaluation of given states, or of ones that the pipeline draws itself."""
        found = self.run(StandIn(self.config, [place]), size, x)
        if not isinstance(found, Stepped):
            raise ValueError(
                f"{self.name} cannot be driven: its call came to an end without a step of its "
                "scheduler"
            )
        return found

    def output(self, x: Tensor, place: Place) -> Tensor:
        """What the network of the pipeline, with its guidance, says of states [B, ...] at a place.

        ValueError if that was said of other states.
        """
        output, sample = self.evaluated(place, len(x), x)
        # Some step both halves of a guided batch.
        seen = sample[: len(x)].to(x.dtype)
        if seen.shape != x.shape or not torch.allclose(seen, x, 0, 0, equal_nan=True):
            raise ValueError(
                f"{self.name} cannot be driven: it was given states {tuple(x.shape)}, and steps "
                f"others, {tuple(sample.shape)}"
            )
        return output[: len(x)]

    def rest(self, x: Tensor) -> Tensor:
        """What the pipeline makes of states that its loop would end with, in [0, 1]."""
        found = self.run(StandIn(self.config, []), len(x), x, output_type="pt")[0]
        if not isinstance(found, Tensor):
            raise ValueError(f"{self.name} decodes to {type(found).__name__}, not to a tensor")
        return found

    def run(self, scheduler: StandIn, size: int, x: Tensor | None = None, **more: Any) -> Any:
        """A call for so many samples: what the stand-in caught, or what the call returned.

        Without the `no_grad` around it, so that the caller decides.
        """
        # On the CPU pipelines take one for any device.
        generator = torch.Generator().manual_seed(0)
        usual = {"num_inference_steps": 1, "generator": generator, "return_dict": False, **more}
        inside: Any = nullcontext()
        if x is not None and "latents" in self.takes:
            usual["latents"] = x
        elif x is not None:
            inside = Drawn(x, generator)
        given = {key: value for key, value in usual.items() if key in self.takes}
        with self.borrowed(scheduler), inside:
            try:
                return unwrap(type(self.pipe).__call__)(
                    self.pipe, **{**self.call, **self.repeated(size), **given}
                )
            except Caught as caught:
                return caught.found

    def repeated(self, size: int) -> dict[str, Any]:
        """The arguments that make so many samples, those of one prompt in a row."""
        each, left = divmod(size, self.kinds)
        if left:
            raise ValueError(f"{size} samples of {self.kinds} prompts: give as many of each")
        if EMBEDS in self.call:
            # Which not all pipelines repeat themselves. The same objects every time, see `named`.
            if each not in self.known:
                told = {name: value for name, value in self.call.items() if "prompt" in name}
                self.known[each] = {name: in_a_row(value, each) for name, value in told.items()}
            return dict(self.known[each])
        for name in (*COUNTS, UNCONDITIONAL):
            if name in self.takes:
                return {name: each}
        return {LABELS: in_a_row(self.call[LABELS], each)} if LABELS in self.call else {}

    @contextmanager
    def borrowed(self, scheduler: StandIn) -> Iterator[None]:
        """The pipeline with another scheduler, silent, and with encoders that remember."""
        own = vars(self.pipe)
        kept = dict(own)
        try:
            # Past its `__setattr__`, which writes the class of a scheduler into the config.
            own["scheduler"] = scheduler
            self.pipe.set_progress_bar_config(disable=True)
            for name in ENCODERS:
                if hasattr(self.pipe, name):
                    own[name] = remembered(getattr(self.pipe, name), self.known)
            yield
        finally:
            own.clear()
            own.update(kept)


def in_a_row(values: Any, each: int) -> Any:
    """Every row of a tensor or a list, so many times; anything else as it is."""
    if isinstance(values, Tensor):
        return values.repeat_interleave(each, 0)
    return [v for v in values for _ in range(each)] if isinstance(values, list) else values


def remembered(method: Callable[..., Any], known: dict[Any, Any]) -> Callable[..., Any]:
    """A method that is called once for the same arguments: equal plain values, the same objects."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        key = method.__name__, named(args), named(kwargs)
        if key not in known:
            with torch.no_grad():
                found = method(*args, **kwargs)
            # With the arguments: while they are held no other object has their id.
            known[key] = found, args, kwargs
        return known[key][0]

    return call


def named(value: Any) -> Any:
    """What is the same for the same value: itself if it is plain, else its identity."""
    if isinstance(value, Mapping):
        return tuple((key, named(value[key])) for key in sorted(value))
    if isinstance(value, list | tuple):
        return tuple(map(named, value))
    plain = value is None or isinstance(value, str | int | float | torch.device | torch.dtype)
    return (type(value), value if plain else id(value))
