"""A small masked-diffusion model of English text: data, network, bound, loader."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ..discrete import Absorb, LogLinear, LogScore, scores
from ..discrete.kernel import noised

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
KERNEL, NOISE = Absorb(len(ALPHABET)), LogLinear()
# Of every ten blocks of the text one is held out.
BLOCK = 2048


class TextConfig(BaseModel):
    """What `fewstep train text` needs; saved as `config.json` beside the weights.

    `data` is "pydoc", the language reference that Python carries, or the path of a text file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "pydoc"
    length: PositiveInt = 64
    width: PositiveInt = 160
    dilations: tuple[PositiveInt, ...] = Field(default=(1, 2, 4, 1), min_length=1)
    steps: PositiveInt = 3000
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    seed: int = Field(default=0, ge=0)


class Text(NamedTuple):
    """A text as tokens, int64 [n], in two shares, and the SHA-256 of the whole."""

    train: Tensor
    held_out: Tensor
    sha256: str


def encode(text: str) -> Tensor:
    """Tokens of a text, int64 [n]: small letters, and one space for each run of anything else."""
    plain = re.sub("[^a-z]+", " ", text.lower()).encode("ascii")
    codes = torch.tensor(list(plain), dtype=torch.long)
    return torch.where(codes == ord(" "), 0, codes - ord("a") + 1)


def decode(tokens: Tensor) -> str:
    """The text of tokens [n]; a mask shows as an underscore."""
    return "".join((ALPHABET + "_")[token] for token in tokens.tolist())


def read_text(data: str = "pydoc") -> Text:
    """The text that `TextConfig.data` names, as tokens; ValueError if it is not there.

    Python's text differs between its versions. Every tenth block of 2048 tokens is held out.
    """
    if data == "pydoc":
        if find_spec("pydoc_data") is None:
            raise ValueError("this Python has no pydoc_data.topics: give the path of a text file")
        from pydoc_data.topics import topics

        raw = " ".join(topics[name] for name in sorted(topics))
    else:
        try:
            raw = Path(data).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the text {data}: {error}") from error
    tokens = encode(raw)
    if len(tokens) < 10 * BLOCK:
        raise ValueError(
            f"the text {data} has {len(tokens)} letters, too few; {10 * BLOCK} are the least"
        )
    blocks = tokens.split(BLOCK)
    train = torch.cat([block for k, block in enumerate(blocks) if k % 10 != 9])
    return Text(
        train, torch.cat(blocks[9::10]), hashlib.sha256(decode(tokens).encode()).hexdigest()
    )


class Block(nn.Module):
    """x + mix(gelu(conv(norm(x)))), with a dilated convolution over five places."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, L] to the same."""
        return x + self.mix(functional.gelu(self.conv(self.norm(x))))


class TextNetwork(nn.Module):
    """Logits of the clean token [B, L, 27] from tokens and masks [B, L] of any length.

    It is not told the time, which an absorbing kernel leaves without news (RADD).
    """

    def __init__(self, width: int = 160, dilations: Sequence[int] = (1, 2, 4, 1)) -> None:
        super().__init__()
        self.embedding = nn.Embedding(KERNEL.vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width, dilation) for dilation in dilations))
        self.norm = nn.GroupNorm(1, width)
        self.head = nn.Conv1d(width, KERNEL.states, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Float32 [B, L, 27]."""
        x = self.blocks(self.embedding(tokens).transpose(1, 2))
        return self.head(functional.gelu(self.norm(x))).transpose(1, 2)


class TextModel(NamedTuple):
    """A network with its kernel and noise.

    `length` is that of the sequences it was trained on, and `data` says of which text (see
    `TextConfig`).
    """

    network: TextNetwork
    kernel: Absorb
    noise: LogLinear
    length: int
    data: str

    def log_score(self) -> LogScore:
        """What the samplers of `discrete` ask."""
        return scores.from_posterior(lambda x, node: self.network(x), self.kernel)


def windows(tokens: Tensor, length: int, starts: Tensor) -> Tensor:
    """The pieces of a text that begin at `starts` [B], [B, length]."""
    return tokens[starts[:, None] + torch.arange(length)]


def masked(x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noised sequences x [B, L], and their times [B]: one in each of B strata of [0, 1]."""
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    time = (torch.arange(len(x0)) + offset) / len(x0)
    return noised(KERNEL, x0, NOISE.total(time), generator), time


def bound(network: nn.Module, x0: Tensor, x: Tensor, time: Tensor) -> Tensor:
    """The mean of (cross entropy over masked places) / t, per token: nats, a scalar.

    Over all times and noises an upper bound on the negative log likelihood (Sahoo et al. 2024,
    "Simple and Effective Masked Diffusion Language Models", eq. 10).
    """
    cross = functional.cross_entropy(network(x).transpose(1, 2), x0, reduction="none")
    hidden = torch.where(x == KERNEL.states, cross, 0).sum(1)
    return (hidden / time.to(hidden)).mean() / x0.shape[1]


@torch.no_grad()
def held_out_bits(network: nn.Module, text: Text, length: int, rounds: int = 4) -> float:
    """The bound on the held-out share, bits per character, with noise that is always the same."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.arange(0, len(text.held_out) - length + 1, length).repeat(rounds)
    starts = starts[torch.randperm(len(starts), generator=generator)]
    total = 0.0
    for some in starts.split(64):
        x0 = windows(text.held_out, length, some)
        total += len(some) * float(bound(network, x0, *masked(x0, generator)))
    return total / len(starts) / math.log(2)


def load_text_model(folder: Path) -> TextModel:
    """The model that `train_text` saved in `folder`, in evaluation mode, on the CPU."""
    card = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = TextConfig(**card["config"])
    network = TextNetwork(config.width, config.dilations)
    network.load_state_dict(
        {name: each.float() for name, each in load_file(folder / "model.safetensors").items()}
    )
    frozen = network.eval().requires_grad_(False)
    return TextModel(frozen, KERNEL, NOISE, config.length, config.data)
