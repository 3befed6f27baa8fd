"""One step: from what a network returned to the next state, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..samplers.denoiser import without_variance
from ..samplers.sums import accumulate, check_fits, combine, mix
from .memory import WIDE, Memory, newest
from .program import Line, Numbers

Clip = Callable[[Tensor], Tensor]
Generators = torch.Generator | list[torch.Generator] | None


def given(line: Line, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor, Numbers]:
    """What a pipeline hands in, (x, out) in the dtype of states, with the numbers of the line.

    Compiled, one graph serves all lines: their numbers are tensors. Raises ValueError if the
    network returned neither x's shape nor a variance behind it, and for images of another shape.
    """
    numbers = line.uniform() if torch.compiler.is_compiling() else line.numbers
    x = sample if sample.dtype in WIDE else sample.float()
    if line.vector.ndim > 1:
        check_fits(line.vector.shape[1:], x[0])
    out = output if output.dtype == x.dtype else output.to(x.dtype)
    return x, out if out.shape == x.shape else without_variance(out, x), numbers


def denoised(line: Line, clip: Clip | None, output: Tensor, sample: Tensor) -> Tensor:
    """The clean data that a step goes on with, as pipelines show it; a tensor of its own."""
    x, out, numbers = given(line, output, sample)
    x0 = mix(x, numbers.a, out, numbers.b)
    return x0.clone() if x0 is output else x0 if clip is None else clip(x0)


def drawn(x: Tensor, generator: Generators, variance_noise: Tensor | None) -> Tensor:
    """Noise like x: what the pipeline gives, or from its generator; ValueError for other shapes."""
    if variance_noise is None:
        return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    if variance_noise.shape != x.shape:
        raise ValueError(
            f"variance_noise is {tuple(variance_noise.shape)}, the state {tuple(x.shape)}"
        )
    return variance_noise.to(x.dtype)


def take(
    line: Line,
    memory: Memory,
    clip: Clip | None,
    output: Tensor,
    sample: Tensor,
    generator: Generators,
    variance_noise: Tensor | None,
) -> tuple[Tensor, Memory]:
    """The next state, in the dtype of the network's output, and the memory after this line.

    Raises ValueError for tensors of other shapes than the state's.
    """
    x, out, numbers = given(line, output, sample)
    state = memory.goes_on_from(x, line)
    compiling = torch.compiler.is_compiling()
    outputs, noises = memory.padded(line, x) if compiling else (memory.outputs, memory.noises)
    raw = x0 = None
    if clip is not None:
        raw = mix(x, numbers.a, out, numbers.b)
        x0 = clip(raw)
    if line.calls:
        m = (
            mix(x, numbers.of_x, out, numbers.of_out)
            if x0 is None
            else mix(x, numbers.clipped_x, x0, numbers.clipped_x0)
        )
        # What is kept is ours: a captured network writes its next output into the same tensor.
        theirs = m is output and x.device.type != "cpu"
        outputs = [*outputs, m.clone() if theirs else m]
    if line.draws:
        z = drawn(x, generator, variance_noise)
        noises = [*noises, z] if line.adds else noises
    following = combine(numbers, state, outputs, noises)
    if raw is not None and x0 is not None and line.residual:
        following = accumulate(following, raw - x0, numbers.residual)
    returned = following if following.dtype == output.dtype else following.to(output.dtype)
    if line.leads_inside and returned is following:
        # The pipeline may write into what it gets.
        returned = following.clone()
    if not compiling:
        outputs, noises = newest(outputs, line.keep), newest(noises, line.keep_noise)
    kept = None if returned is following else following
    return returned, Memory(outputs, noises, kept, returned.dtype)
