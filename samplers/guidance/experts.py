"""One denoiser of several experts, each of which knows a part of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ...schedules.grid import Node
from ..recall import Denoiser
from ..streams import uniform
from .guided import Ask, Guided

Mode = Literal["full", "top", "gumbel", "nucleus", "sample", "sample-once", "oracle"]
# Modes with one expert a sample, which may change.
CHANGING = ("top", "gumbel", "sample")
# What is remembered of each sample: its expert, and how often that changed.
EXPERT, SWITCHES = "expert", "switches"


def ensemble(
    experts: Sequence[Denoiser],
    router: Callable[[Tensor, Node], Tensor] | None = None,
    mode: Mode = "full",
    *,
    top: int = 1,
    mass: float = 0.9,
    margin: float = 0.0,
    restart: bool = False,
    seeds: Sequence[int] = (),
    choice: Tensor | None = None,
    name: str = "",
) -> Denoiser:
    """x0 = sum_k r_k(x) x0_k(x), where r_k is the probability that a state belongs to part k.

    `experts` are denoisers of the parts, of networks of any prediction; `router(x, node)` [B, K] is
    r, positive, which is scaled to add up to 1. With exact experts and p(k | x), which has the size
    of the parts in it, this is the denoiser of all data, and so it is in eps, v and the score
    (McAllister et al. 2025, "Decentralized Diffusion Models", eq. 5).

    An expert is asked for those samples only to which it contributes, in one sub-batch:

    - "full": all experts for all samples.
    - "top": the `top` of the greatest r, which are scaled to add up to 1. With one, a sample keeps
      its expert unless another's r is greater by more than `margin`. In noise the greatest is that
      of a large part for almost all samples, which then have too much of it.
    - "gumbel": the one of the greatest r_k / e_k, with e_k exponential and drawn once for each
      sample: the Gumbel-max trick with noise that stays. At any node that is a draw from r, so
      that small parts come as often as they should, and a sample changes its expert only as r
      changes.
    - "nucleus": the fewest that have at least `mass` together.
    - "sample": one at every node, drawn from r by itself; "sample-once": at the first node, for the
      whole run.
    - "oracle": expert `choice` [B] for the whole run, without a router.

    What is drawn is drawn from the streams of `seeds`, one per sample of a run from its beginning.
    Between experts x0 jumps, and multistep solvers then mix outputs of two: the state of the run
    counts, in its memory, how often a sample's expert ("expert") changed ("switches"); two in one
    denoiser need two names, which go before these. With `restart` outputs of the expert before
    count no more for a sample that has a new one, whose next step is of first order. Which samples
    are whose is read from the device once for each expert, so such a run can be neither captured
    nor compiled.

    Raises ValueError for another mode, a router without K columns, seeds or choices that are not
    one per sample.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"ensemble: mode is one of {', '.join(get_args(Mode))}, not {mode!r}")
    if mode != "oracle" and router is None:
        raise ValueError(f"ensemble: {mode} needs a router")
    count = len(experts)
    if not 1 <= top <= count or not 0 < mass <= 1:
        raise ValueError(f"ensemble: top is 1 to {count} and mass above 0 and at most 1")
    if top > 1 and mode != "top":
        raise ValueError(f"ensemble: top is for top, and does nothing for {mode}")
    if restart and (mode not in CHANGING or top > 1):
        raise ValueError(f"ensemble: samples of {mode} have no one expert to restart at")
    if margin and (mode != "top" or top > 1):
        raise ValueError(f"ensemble: margin is for one expert of top, not for {top} of {mode}")

    def rule(ask: Ask) -> Tensor:
        if mode == "oracle" or router is None:
            weights = one_hot(kept_choice(ask, choice, name), count)
        else:
            shares = shares_of(router, ask.x, ask.node, count)
            if mode == "full":
                weights = shares
            elif mode == "nucleus":
                weights = scaled(shares, nucleus(shares, mass))
            elif mode == "top" and top > 1:
                weights = scaled(shares, greatest(shares, top))
            else:
                weights = one_hot(one_of(ask, shares, mode, margin, restart, seeds, name), count)
        return mixed(ask, experts, weights)

    return Guided(rule)


def shares_of(
    router: Callable[[Tensor, Node], Tensor], x: Tensor, node: Node, count: int
) -> Tensor:
    """The router's shares, scaled to add up to 1, [B, K]."""
    found = router(x, node)
    if found.shape != (len(x), count):
        raise ValueError(
            f"ensemble: a router of {count} experts gives [{len(x)}, {count}], not "
            f"{list(found.shape)}"
        )
    return found / found.sum(1, keepdim=True)


def mixed(ask: Ask, experts: Sequence[Denoiser], weights: Tensor) -> Tensor:
    """sum_k w_k x0_k, each expert asked for the samples where its weight is not zero."""
    total = torch.zeros_like(ask.x)
    for k, expert in enumerate(experts):
        rows = weights[:, k].nonzero()[:, 0]
        if len(rows) == 0:
            continue
        if len(rows) == len(ask.x):
            x0 = ask(expert)
        else:
            ask.one_level("an ensemble")
            x0 = ask.part(expert, rows)
        share = weights[rows, k].to(total).view(-1, *[1] * (total.ndim - 1))
        total.index_add_(0, rows, (share * x0).to(total.dtype))
    return total


def one_of(
    ask: Ask,
    shares: Tensor,
    mode: Mode,
    margin: float,
    restart: bool,
    seeds: Sequence[int],
    name: str,
) -> Tensor:
    """One expert for each sample, [B], remembered."""
    before = ask.memory.get(name + EXPERT)
    if mode == "sample-once" and before is not None:
        return before.to(shares.device)
    if mode == "gumbel":
        u = uniform(ask.streams(seeds, f"{name}ensemble"), 0, shares)
        found = (shares / -torch.log1p(-u).clamp(max=-1e-300)).argmax(1)
    elif mode == "top":
        found = shares.argmax(1)
        if before is not None:
            rows = torch.arange(len(shares), device=shares.device)
            last = before.to(shares.device)
            better = shares[rows, found] > shares[rows, last] + margin
            found = torch.where(better, found, last)
    else:
        u = uniform(ask.streams(seeds, f"{name}ensemble"), ask.node.index, shares[:, :1])
        found = (shares.double().cumsum(1) <= u).sum(1).clamp(max=shares.shape[1] - 1)
    if before is not None:
        other = found != before.to(found.device)
        ask.remember(name + SWITCHES, ask.memory[name + SWITCHES].to(found.device) + other)
        if restart:
            ask.forget(other)
    else:
        ask.remember(name + SWITCHES, torch.zeros_like(found))
    ask.remember(name + EXPERT, found)
    return found


def kept_choice(ask: Ask, choice: Tensor | None, name: str) -> Tensor:
    """The experts that were given, remembered with the samples."""
    kept = ask.memory.get(name + EXPERT)
    if kept is None:
        if choice is None or choice.shape != (len(ask.x),):
            raise ValueError(f"ensemble: oracle needs a choice for each of {len(ask.x)} samples")
        kept = choice.to(ask.x.device)
        ask.remember(name + EXPERT, kept)
    return kept.to(ask.x.device)


def one_hot(which: Tensor, count: int) -> Tensor:
    """Weights of one expert each, float64 [B, K]."""
    return torch.nn.functional.one_hot(which.long(), count).double()


def greatest(shares: Tensor, top: int) -> Tensor:
    """Where the greatest are, [B, K]."""
    return torch.zeros_like(shares).scatter(1, shares.topk(top, 1).indices, 1.0)


def nucleus(shares: Tensor, mass: float) -> Tensor:
    """Where the fewest are that have this mass together, [B, K]."""
    values, order = shares.sort(1, descending=True)
    # Those before which there is too little.
    needed = (values.cumsum(1) - values) < mass
    return torch.zeros_like(shares).scatter(1, order, needed.to(shares))


def scaled(shares: Tensor, kept: Tensor) -> Tensor:
    """The kept shares, scaled to add up to 1."""
    found = shares * kept
    return found / found.sum(1, keepdim=True)
