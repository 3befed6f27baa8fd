"""Log scores from networks: what a checkpoint puts out, as log s_v = log p_t(x, v at i) / p_t(x).

All are [B, L, states] over clean tokens; the entry of the token that is there is ignored. What is
time-dependent is computed in log space in the dtype of the output, without overflow at either end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .executor import LogScore
from .kernel import Absorb, Kernel, Uniform
from .noise import Time, double, log_expm1
from .table import Node

# (tokens x [B, L], node) -> whatever a network puts out, [B, L, states or vocabulary].
Network = Callable[[Tensor, Node], Tensor]


def positive(total: Time) -> Tensor:
    """The total noise of a node that has a score; ValueError for a clean one."""
    found = double(total)
    if bool((found <= 0).any()):
        raise ValueError(f"there is no score without noise: total is {float(found.min()):g}")
    return found


def masked(log_posterior: Tensor, total: Time) -> Tensor:
    """Absorbing: log s_v = log p(x0 = v | unmasked) - log(e^sb - 1) at masked sites.

    Ou et al. 2024, "Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions
    of Clean Data" (RADD), theorem 1.
    """
    return log_posterior - log_expm1(positive(total)).to(log_posterior)


def uniform(log_rest: Tensor, x: Tensor, total: Time) -> Tensor:
    """Uniform: log s_v = log(1 + r pi_v) - log(1 + r pi_u), with u = x_i and r = states/(e^sb - 1).

    pi = p(x0_i | all other sites of x) is given by its log, [B, L, states]; see `rest`.
    """
    level = math.log(log_rest.shape[-1]) - log_expm1(positive(total)).to(log_rest)
    raised = torch.logaddexp(torch.zeros_like(log_rest), level + log_rest)
    return raised - raised.gather(-1, x[..., None])


def rest(log_posterior: Tensor, x: Tensor, total: Time) -> Tensor:
    """Uniform: log p(x0_i | all other sites) from log p(x0_i | x), which has seen x_i as well.

    What x_i says is divided out: it makes u = x_i likelier by the factor 1 + r, see `uniform`.
    """
    states = log_posterior.shape[-1]
    level = math.log(states) - log_expm1(positive(total)).to(log_posterior)
    factor = torch.logaddexp(torch.zeros_like(level), level)
    without = log_posterior.scatter_add(-1, x[..., None], -factor.expand(*x.shape, 1))
    return without.log_softmax(-1)


def from_posterior(network: Network, kernel: Kernel) -> LogScore:
    """The log score of a network that puts out logits of the clean token, given the noised x.

    Masked diffusion models (MDLM, RADD, MaskGIT and others; what they put on the mask is ignored),
    and denoisers for the uniform kernel (D3PM).
    """

    def log_score(x: Tensor, node: Node) -> Tensor:
        log_posterior = network(x, node)[..., : kernel.states].log_softmax(-1)
        if isinstance(kernel, Absorb):
            return masked(log_posterior, node.total)
        return uniform(rest(log_posterior, x, node.total), x, node.total)

    return log_score


def from_sedd(network: Network, kernel: Kernel, *, scale_by_sigma: bool = True) -> LogScore:
    """The log score of SEDD, whose networks put out log scores over the vocabulary.

    Absorbing checkpoints with `scale_by_sigma` leave out -log(e^sb - 1) - log(states).
    """
    scaled = scale_by_sigma and not isinstance(kernel, Uniform)

    def log_score(x: Tensor, node: Node) -> Tensor:
        output = network(x, node)[..., : kernel.states]
        return masked(output, node.total) - math.log(kernel.states) if scaled else output

    return log_score
