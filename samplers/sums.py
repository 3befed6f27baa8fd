"""Weighted sums of tensors: all that a step computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

# A scalar, or a tensor that broadcasts against the state.
Coefficient = float | Tensor
Pairs = tuple[tuple[int, Coefficient], ...]


class Sum(Protocol):
    """carry x + sum weights m + sum noise z + bias."""

    @property
    def carry(self) -> Coefficient:
        """The factor of the state."""

    @property
    def weights(self) -> Pairs:
        """Positions of outputs with their coefficients."""

    @property
    def noise(self) -> Pairs:
        """Positions of noises with their coefficients."""

    @property
    def bias(self) -> Coefficient | None:
        """What is added whatever the state is; None adds nothing."""


def check_fits(shape: Sequence[int], x: Tensor) -> None:
    """ValueError unless coefficients of this shape broadcast against the state without growing it.

    Each dimension from the last one on is 1 or that of the state.
    """
    own = tuple(x.shape)
    pairs = zip(reversed(shape), reversed(own), strict=False)
    if len(shape) > len(own) or any(a not in (1, b) for a, b in pairs):
        raise ValueError(
            f"the coefficients of this table are images of shape {tuple(shape)}, the state is {own}"
        )


def combine(row: Sum, x: Tensor, outputs: Sequence[Tensor], noises: Sequence[Tensor]) -> Tensor:
    """carry x + sum weights m + sum noise z + bias, as one new tensor."""
    total = scaled(x, row.carry)
    for terms, tensors in ((row.weights, outputs), (row.noise, noises)):
        for i, weight in terms:
            # In place where that costs no gradient: `total` is ours alone.
            if isinstance(weight, float):
                total.add_(tensors[i], alpha=weight)
            else:
                total = accumulate(total, tensors[i], weight)
    if row.bias is None:
        return total
    return total + (row.bias if isinstance(row.bias, float) else row.bias.to(total))


def mix(x: Tensor, p: Coefficient, m: Tensor, q: Coefficient) -> Tensor:
    """p x + q m, in the dtype of x; m itself where p = 0 and q = 1."""
    if not isinstance(p, float) or not isinstance(q, float):
        return accumulate(scaled(x, p), m, q)
    if p == 0 and q == 1:
        return m
    if p == 1:
        return x.add(m, alpha=q)
    return (x * p).add_(m, alpha=q)


def scaled(x: Tensor, factor: Coefficient) -> Tensor:
    """Factor x, in the dtype of x."""
    return x * (factor if isinstance(factor, float) else factor.to(x))


def accumulate(total: Tensor, term: Tensor, weight: Coefficient) -> Tensor:
    """Total + weight term; `total` is ours alone, so scalars add in place."""
    if isinstance(weight, float):
        return total.add_(term, alpha=weight)
    return total + term * weight.to(total)
