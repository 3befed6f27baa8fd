"""Models of token sequences, and how samples of them are judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt
from torch import Tensor

from ... import zoo
from ...discrete import (
    JumpTable,
    Kernel,
    LogScore,
    MarkovChain,
    Noise,
    chains,
    divergence,
    output_law,
    sample,
    start,
)
from ...discrete.files import known
from ...discrete.kernel import KERNELS
from ...discrete.noise import NOISES
from ...eval.settings import STRICT
from ...eval.text import NGrams, score_text
from ...storage import digest, fingerprint
from ...zoo.text import read_text, windows

# Samples whose text is judged have seeds from here on; no training comes so far.
JUDGED = 2**40


class ChainConfig(BaseModel):
    """A Markov chain with exact scores: "countdown" or "dirichlet" (see `discrete.chains`).

    `noise` is {name: log-linear} or {name: geometric}, with `eps`, or `low` and `high`.
    """

    model_config = STRICT

    chain: Literal["countdown", "dirichlet"] = "countdown"
    states: int = Field(default=3, ge=2)
    length: PositiveInt = 4
    stay: float = Field(default=0.9, gt=0, lt=1)
    seed: NonNegativeInt = 0
    kernel: Literal["absorb", "uniform"] = "absorb"
    noise: dict[str, str | float] = {"name": "log-linear"}


class Judgement(NamedTuple):
    """Numbers of samples by name, and what is wrong with the samples, in words."""

    numbers: dict[str, float]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TokenModel:
    """A log score with its kernel and noise, and the `length` of its sequences.

    `identity` changes with the scores. The law of the data is `chain`, if it is known; otherwise
    `data` are real sequences [M, L], and `grams` is a model of others. Sequences are on `device`.
    """

    log_score: LogScore
    kernel: Kernel
    noise: Noise
    length: int
    identity: str
    chain: MarkovChain | None = None
    data: Tensor | None = None
    grams: NGrams | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @torch.no_grad()
    def judge(self, table: JumpTable, samples: int, batch_size: int = 256) -> Judgement:
        """The exact divergence of the data's law from that of a table's samples; or their score.

        "KL" is in nats per sequence; the others are those of `TextScore`.
        """
        if self.chain is not None:
            law = output_law(self.log_score, table, self.length)
            return Judgement({"KL": float(divergence(self.chain.law(), law))})
        assert self.data is not None
        assert self.grams is not None
        parts = []
        for first in range(0, samples, batch_size):
            seeds = range(JUDGED + first, JUDGED + min(first + batch_size, samples))
            x = start(table, self.length, seeds).to(self.device)
            parts.append(sample(self.log_score, table, x, seeds).cpu())
        score = score_text(torch.cat(parts), self.data, self.grams)
        return Judgement(asdict(score), score.flags)


def token_model(config: str | ChainConfig, device: torch.device | str = "cpu") -> TokenModel:
    """The bundled text model ("text"), that of a folder of `fewstep train text`, or a chain.

    A chain is on the CPU in any case. Raises ValueError where its law is too large to enumerate.
    """
    if isinstance(config, ChainConfig):
        return chain_model(config)
    return text_model(config, torch.device(device))


def chain_model(config: ChainConfig) -> TokenModel:
    """A chain as a model."""
    kernel = KERNELS[config.kernel](config.states)
    noise = known(NOISES, config.noise, "noise")
    if config.chain == "countdown":
        chain = chains.countdown(config.states, config.length, config.stay)
    else:
        chain = chains.dirichlet(config.states, config.length, config.seed)
    chains.sequences(kernel.vocabulary, config.length)
    identity = digest(config.model_dump(mode="json"))
    return TokenModel(chain.log_score(kernel), kernel, noise, config.length, identity, chain)


def text_model(name: str, device: torch.device) -> TokenModel:
    """A text network as a model; it is judged by 4-grams of the text that it was trained on."""
    model = zoo.text_model() if name == "text" else zoo.load_text_model(Path(name))
    model.network.to(device)
    text = read_text(model.data)
    places = torch.arange(0, len(text.held_out) - model.length + 1, model.length)
    return TokenModel(
        model.log_score(),
        model.kernel,
        model.noise,
        model.length,
        digest(fingerprint(model.network), text.sha256),
        data=windows(text.held_out, model.length, places),
        grams=NGrams.of(text.train, model.kernel.states),
        device=device,
    )
