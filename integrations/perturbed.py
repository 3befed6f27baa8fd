"""Networks of diffusers with perturbed layers: what to guide away from without a second network.

A perturbed pass runs in a copy of the modules on the way to the perturbed layers, which shares all
else with the network, weights included. So the network is never changed: other threads may use it
at the same time, and nothing has to be put back.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from types import MethodType
from typing import Any, Literal, get_args

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import Module, ModuleDict, ModuleList
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

Kind = Literal["identity", "blurred", "skipped"]
# Processors by what they attend to: the tokens of the image, or those of a text behind them, too.
ALONE = frozenset(
    {
        "AttnProcessor",
        "AttnProcessor2_0",
        "SlicedAttnProcessor",
        "WanAttnProcessor",
        "XFormersAttnProcessor",
    }
)
JOINT = frozenset({"JointAttnProcessor2_0"})
# How many names an error lists.
LISTED = 40


def perturbed(
    network: Module, layers: str | Sequence[str], kind: Kind = "identity", blur: float = math.inf
) -> Perturbed:
    """A network that is called as `network`, whose `layers` are perturbed; that itself is not.

    - "identity": tokens attend to themselves, so that attention returns the values (PAG; Ahn et al.
      2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance"). In
      joint attention tokens of the image see themselves and the text, and the text sees all.
    - "blurred": the queries, as they are projected, are blurred over the plane of tokens by a
      Gaussian whose deviation is `blur` tokens; by inf to their mean (SEG; Hong 2024, "Smoothed
      Energy Guidance"). Its rows add up to 1 within the plane, so that inf is the limit,
      and 0 changes nothing. In joint attention it is that of the image's queries.
    - "skipped": layers return their input (skip-layer guidance, as for Stable Diffusion 3.5).

    `layers` are names of modules, names of modules that they are in ("mid_block"), or patterns
    ("*.attn1"): of self-attention, or of any modules to skip whose output is like their input.
    Guide by it as by any worse network: `autoguidance(cond, weak, 1 + s)`.

    Raises ValueError for a layer that is not there, cross-attention, attention of a kind that is
    not known, and, when it is called, for hooks that hold the network itself.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"perturbed: kind is one of {', '.join(get_args(Kind))}, not {kind!r}")
    if not blur >= 0:
        raise ValueError(f"perturbed: blur must be 0 or more, not {blur}")
    patterns = [layers] if isinstance(layers, str) else list(layers)
    found = skippable(network, patterns) if kind == "skipped" else attentions(network, patterns)
    return Perturbed(network, tuple(found), kind, blur)


@dataclass(frozen=True, eq=False)
class Perturbed:
    """A network some of whose layers are perturbed; made by `perturbed`."""

    network: Module
    layers: tuple[str, ...]
    kind: Kind
    blur: float

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the perturbed network returns."""
        if self.kind == "blurred" and self.blur == 0:
            return self.network(*args, **kwargs)
        finite = self.kind == "blurred" and math.isfinite(self.blur)
        return self.module(aspect_of(args, kwargs) if finite else 1.0)(*args, **kwargs)

    def module(self, aspect: float = 1.0) -> Module:
        """The perturbed network as it now is, for images of this height / width.

        A call makes it anew, so that adapters, modes and hooks that came later are in it. To
        compile, take this one.
        """
        changed = {name: self.changed(name, aspect) for name in self.layers}
        return spliced(self.network, changed)

    def changed(self, name: str, aspect: float) -> Module:
        """A layer as it is perturbed."""
        layer = self.network.get_submodule(name)
        new: Any = twin(layer)
        if self.kind == "skipped":
            new.forward = partial(skip, layer, name)
        elif self.kind == "blurred":
            new.to_q = Blurred(new.to_q, self.blur, aspect)
        else:
            joint = type(new.processor).__name__ in JOINT
            new.set_processor(JointValues(new.processor) if joint else Values())
        return new

    @property
    def dtype(self) -> torch.dtype | None:
        """That of the network."""
        return getattr(self.network, "dtype", None)


class Values:
    """Attention whose map is the identity: of each token its own value."""

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Any = None,
    ) -> Tensor:
        """As processors are called; the names are theirs."""
        x = hidden_states
        if getattr(attention, "spatial_norm", None) is not None:
            x = attention.spatial_norm(x, temb)
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if getattr(attention, "group_norm", None) is not None:
            x = attention.group_norm(x.transpose(1, 2)).transpose(1, 2)
        x = attention.to_v(x)
        for layer in attention.to_out:
            x = layer(x)
        if hidden_states.ndim == 4:
            x = x.transpose(1, 2).reshape(hidden_states.shape)
        if getattr(attention, "residual_connection", False):
            x = x + hidden_states
        return x / getattr(attention, "rescale_output_factor", 1.0)


@dataclass(frozen=True)
class JointValues:
    """Attention of image and text in which no token of the image sees another."""

    processor: Any

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """As processors are called; the names are theirs."""
        with Apart(hidden_states.shape[1]):
            return self.processor(attention, hidden_states, encoder_hidden_states, attention_mask)


class Apart(TorchFunctionMode):
    """Attention, in this thread, in which of the first `count` tokens none sees another of them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        seen = torch.eye(query.shape[-2], dtype=torch.bool, device=query.device)
        seen[self.count :] = True
        seen[:, self.count :] = True
        return func(*args, **{**kwargs, "attn_mask": seen})


class Blurred(Module):
    """A projection whose outputs [B, tokens, ..] are blurred over the plane of tokens."""

    def __init__(self, projection: Module, blur: float, aspect: float) -> None:
        super().__init__()
        self.projection, self.blur, self.aspect = projection, blur, aspect

    def forward(self, x: Tensor) -> Tensor:
        """Project and blur."""
        query: Tensor = self.projection(x)
        tokens = query.shape[1]
        if math.isinf(self.blur):
            return query.mean(1, keepdim=True).repeat(1, tokens, 1)
        height = max(round(math.sqrt(tokens * self.aspect)), 1)
        width = tokens // height
        if height * width != tokens:
            raise ValueError(f"perturbed: {tokens} tokens are no plane of the image: use blur=inf")
        down, across = (gaussian(n, self.blur, query) for n in (height, width))
        plane = query.unflatten(1, (height, width))
        return torch.einsum("ih,jw,bhwc->bijc", down, across, plane).flatten(1, 2)


def aspect_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """Height / width of the images that a network is called with."""
    x = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    if not isinstance(x, Tensor) or x.ndim != 4:
        raise ValueError("perturbed: only images [B, C, H, W] can be blurred so far: use blur=inf")
    return x.shape[2] / x.shape[3]


def gaussian(n: int, deviation: float, like: Tensor) -> Tensor:
    """The weights [n, n] of a Gaussian blur of n points, whose rows add up to 1."""
    # On the device from the start: a captured run cannot copy.
    at = torch.arange(n, dtype=torch.float32, device=like.device)
    return (-(((at - at[:, None]) / deviation) ** 2) / 2).softmax(1).to(like.dtype)


def skip(layer: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """What a layer was given, in the form of what it returns.

    For blocks of transformers that diffusers knows that is known. Other layers are run, to see that
    it is one tensor like their first argument; ValueError where it is not.
    """
    # Seconds, which networks of diffusers have paid already.
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        block = TransformerBlockRegistry.get(type(layer))
    except ValueError:
        x = args[0] if args else next(iter(kwargs.values()))
        if getattr(layer.forward(*args, **kwargs), "shape", None) != x.shape:
            raise ValueError(
                f"perturbed: {name} cannot be skipped: its output is not like its input"
            ) from None
        return x
    given = inspect.signature(type(layer).forward).bind(None, *args, **kwargs).arguments
    image = given[getattr(block, "hidden_states_argument_name", "hidden_states")]
    if block.return_encoder_hidden_states_index is None:
        return image
    text = given[getattr(block, "encoder_hidden_states_argument_name", "encoder_hidden_states")]
    return (image, text) if block.return_hidden_states_index == 0 else (text, image)


def attentions(network: Module, patterns: Sequence[str]) -> list[str]:
    """The names of the self-attention that patterns mean."""
    every = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Attention | AttentionModuleMixin)
    }
    own = [name for name, each in every.items() if not getattr(each, "is_cross_attention", False)]
    found = matched(own, patterns, "self-attention", [name for name in every if name not in own])
    for name in found:
        processor = type(every[name].processor).__name__
        fused = getattr(every[name], "fused_projections", False)
        if fused or processor not in ALONE | JOINT:
            raise ValueError(
                f"perturbed: {name} is attention of a kind that is not known "
                f"({'fused projections' if fused else processor}): it can be skipped only"
            )
    return found


def skippable(network: Module, patterns: Sequence[str]) -> list[str]:
    """The names of the modules that patterns mean, without those inside of others."""
    every = [
        name
        for name, module in network.named_modules()
        if name and not isinstance(module, ModuleList | ModuleDict)
    ]
    found = matched(sorted(every, key=lambda name: name.count(".")), patterns, "module", [])
    return [name for name in found if not any(name.startswith(f"{each}.") for each in found)]


def matched(
    names: Sequence[str], patterns: Sequence[str], what: str, refused: Collection[str]
) -> list[str]:
    """The names that patterns mean; ValueError where there are none."""

    def means(pattern: str, name: str) -> bool:
        return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)

    if not patterns:
        raise ValueError("perturbed: no layers were named")
    for pattern in patterns:
        if not any(means(pattern, name) for name in names):
            cross = any(means(pattern, name) for name in refused)
            there = ", ".join(names[:LISTED]) + (", .." if len(names) > LISTED else "")
            raise ValueError(
                f"perturbed: {pattern!r} is {'cross-attention' if cross else 'no ' + what}; "
                f"there is {there or 'none'}"
            )
    return [name for name in names if any(means(pattern, name) for pattern in patterns)]


def spliced(module: Module, layers: Mapping[str, Module]) -> Module:
    """A module with other layers at these names, which shares all else."""
    new = twin(module)
    inside: dict[str, dict[str, Module]] = {}
    for name, layer in layers.items():
        child, _, rest = name.partition(".")
        if rest:
            inside.setdefault(child, {})[rest] = layer
        else:
            new._modules[child] = layer
    for child, own in inside.items():
        new._modules[child] = spliced(module.get_submodule(child), own)
    return new


def twin(module: Module) -> Module:
    """A module of its own with the same parameters, buffers and children.

    A forward of the instance (hooks of accelerate, which move weights) moves along; ValueError for
    one that would call the module that it was made for.
    """
    registry: Any = getattr(module, "_diffusers_hook", None)
    new: Module = object.__new__(type(module))
    new.__dict__.update({name: moved(each, module, new) for name, each in vars(module).items()})
    held = "forward" in vars(module) and new.forward is module.forward
    if held or getattr(registry, "hooks", None):
        raise ValueError(
            f"perturbed: a {type(module).__name__} is compiled, or has hooks of diffusers (caches, "
            "offloading of groups), which hold the module itself: perturb a network without them"
        )
    new._modules = dict(module._modules)
    # A module that was compiled in place would call itself.
    vars(new).pop("_compiled_call_impl", None)
    return new


def moved(value: Any, old: Module, new: Module) -> Any:
    """A method, or a function with a first argument, of a module as that of another."""
    if isinstance(value, MethodType) and value.__self__ is old:
        return MethodType(value.__func__, new)
    if isinstance(value, partial) and any(each is old for each in value.args):
        args = (new if each is old else each for each in value.args)
        return partial(value.func, *args, **value.keywords)
    return value
