"""Kernels: what a token becomes when noise replaces it.

A kernel *is* its prior law. In total noise sb a token u survives with probability e^-sb, and is
drawn anew from the prior otherwise:

    q(v | u) = e^-sb 1[u = v] + (1 - e^-sb) prior(v)

so that tokens jump to v at the rate prior(v), and the reversed process from a token u to v at

    R_v = rate(t) prior(u) s_v,    s_v = p_t(x with v in place of u) / p_t(x)

(Campbell et al. 2022, "A Continuous Time Framework for Discrete Denoising Models"; SEDD, eq. 9).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import Time, double


@dataclass(frozen=True, slots=True)
class Uniform:
    """Replaced by any of `states` tokens, all alike."""

    states: int

    def __post_init__(self) -> None:
        several(self.states)

    @property
    def vocabulary(self) -> int:
        """How many tokens a noised sequence may hold."""
        return self.states

    def law(self) -> Tensor:
        """The prior, float64 [vocabulary]."""
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Absorb:
    """Replaced by a mask, the token `states`, which clean sequences do not hold."""

    states: int

    def __post_init__(self) -> None:
        several(self.states)

    @property
    def vocabulary(self) -> int:
        """How many tokens a noised sequence may hold, the mask among them."""
        return self.states + 1

    def law(self) -> Tensor:
        """The prior, float64 [vocabulary]: all on the mask."""
        law = torch.zeros(self.vocabulary, dtype=torch.float64)
        law[self.states] = 1
        return law


Kernel = Uniform | Absorb
KERNELS: dict[str, type[Uniform] | type[Absorb]] = {"uniform": Uniform, "absorb": Absorb}


def several(states: int) -> None:
    """ValueError unless there are at least two tokens."""
    if isinstance(states, bool) or not isinstance(states, int) or states < 2:
        raise ValueError(f"a kernel needs at least 2 states, got {states!r}")


def matrix(kernel: Kernel, total: Time) -> Tensor:
    """q(v | u) after `total` noise: float64 [states, vocabulary]."""
    total, size = double(total), (kernel.states, kernel.vocabulary)
    return torch.exp(-total) * torch.eye(*size, dtype=torch.float64) - torch.expm1(
        -total
    ) * kernel.law().expand(size)


def closed(kernel: Kernel, x: Tensor) -> Tensor:
    """Where tokens x [..] cannot jump to, bool [.., states]: themselves, or anywhere for good ones.

    Backwards nothing leaves a token that noise never makes.
    """
    tokens = torch.arange(kernel.states, device=x.device)
    stays = kernel.law().to(x.device)[x] == 0
    return stays[..., None] | (x[..., None] == tokens)


def draw(law: Tensor, u: Tensor) -> Tensor:
    """Tokens int64 [...] from laws [..., V] by uniform numbers u [...] in [0, 1).

    The first token whose cumulated probability exceeds u; never one of probability 0, whatever the
    sum of the law was rounded to.
    """
    cumulated = law.double().cumsum(-1)
    whole = cumulated[..., -1:]
    wanted = torch.minimum(u.double()[..., None] * whole, torch.nextafter(whole, 0 * whole))
    return torch.searchsorted(cumulated, wanted, right=True)[..., 0]


def prior(kernel: Kernel, u: Tensor) -> Tensor:
    """Pure noise, int64 like u [...], from uniform numbers in [0, 1)."""
    law = kernel.law().to(u.device)
    return draw(law.expand(*u.shape, kernel.vocabulary), u)


def noised(
    kernel: Kernel, x0: Tensor, total: Time, generator: torch.Generator | None = None
) -> Tensor:
    """A draw of q(. | x0), int64 like x0 [B, L]; `total` is one number, or one per sequence [B]."""
    replaced = -torch.expm1(-double(total)).to(x0.device)
    u, fresh = torch.rand(
        (2, *x0.shape), generator=generator, dtype=torch.float64, device=x0.device
    )
    return torch.where(u < replaced.reshape(-1, 1), prior(kernel, fresh), x0)
