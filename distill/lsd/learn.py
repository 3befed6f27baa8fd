"""Discrete samplers for a model, learned from a better one: one jump table for each NFE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, Field, PositiveInt, model_validator
from torch import Tensor, nn

from ...discrete import JumpTable, build, nodes, record, start
from ...discrete.solvers import Spacing
from ...eval.progress import Progress, silent
from ...eval.settings import STRICT, Evaluations
from ...storage import digest, read_arrays, write_arrays
from ...training import Task, TrainingSettings, accelerator_for, gathered, share, shuffled, train
from .jumps import (
    LearnedJumps,
    What,
    best_times,
    hamming,
    mmd_loss,
    path_loss,
    relaxed,
    score_loss,
    spectrum,
)
from .models import ChainConfig, Judgement, TokenModel

Objective = Literal["mmd", "path_ml", "score_l2", "score_log"]
# Of the teacher's samples: how many choose times.
CHOOSING = 256
# What objectives learn, by default first.
LEARNS: dict[Objective, tuple[tuple[What, ...], ...]] = {
    "mmd": (("phi", "beta"),),
    "path_ml": (("phi", "beta"),),
    "score_l2": (("phi",), ("times",)),
    "score_log": (("power",),),
}
# What a training is like unless its settings say otherwise.
TRAINING = TrainingSettings(
    max_train_steps=200,
    learning_rate=0.06,
    lr_scheduler="linear",
    adam_beta2=0.99,
    use_ema=True,
    ema_max_decay=0.97,
)


class LSDConfig(BaseModel):
    """What discrete samplers are learned from, and how.

    `model` is "text" (the bundled model), the folder of another that `fewstep train text` made, or
    a chain. A teacher, `base` at `teacher_steps`, is run on `samples` noises. For each NFE, `base`
    on `spacing` (or, with `dp`, on those of the teacher's nodes that suit it best) gets the numbers
    `what` by `objective`:

    - "mmd": the discrepancy of samples in `kernel`, by score-function gradients. The one to take.
    - "path_ml": the likelihood of the teacher's steps, a loose bound.
    - "score_l2", "score_log": as published, and as released, by Fu et al. 2025. They learn phi, or
      times, and power; see `score_loss` for why samples are worse for it. `relaxation` is the share
      of places in which the student's noise may differ from the teacher's.

    `what` is phi and beta unless given, or what the objective learns.

    Settings of the training may stand here by their own names; parameters are averaged over its
    last part (`use_ema`). Samples of text are judged by `judged` of them.
    """

    model_config = STRICT

    model: str | ChainConfig = "text"
    nfe: Evaluations = (8,)
    base: str = "euler"
    spacing: Spacing = "trailing"
    dp: bool = False
    what: tuple[What, ...] | None = None
    objective: Objective = "mmd"
    kernel: Literal["hamming", "bigrams"] = "hamming"
    relaxation: float = Field(default=0.0, ge=0, le=1)
    samples: PositiveInt = 4096
    teacher_steps: PositiveInt = 64
    judged: PositiveInt = 1024
    train_batch_size: PositiveInt = 768
    training: TrainingSettings = TRAINING

    @model_validator(mode="before")
    @classmethod
    def by_name(cls, values: Any) -> Any:
        """Accept settings of the training by their own names."""
        return gathered(values, TRAINING)

    @property
    def learns(self) -> tuple[What, ...]:
        """What is learned."""
        return self.what or LEARNS[self.objective][0]

    @model_validator(mode="after")
    def fitting(self) -> Self:
        """Refuse what the objective has no use for."""
        possible = LEARNS[self.objective]
        if len(possible[0]) == 1 and self.learns not in possible:
            known = " or ".join(str(list(each)) for each in possible)
            raise ValueError(f"{self.objective} learns {known}, not {list(self.learns)}")
        if self.relaxation and not self.objective.startswith("score"):
            raise ValueError("relaxation is for the objectives score_l2 and score_log")
        if self.train_batch_size < 2:
            raise ValueError("train_batch_size must be at least 2")
        return self


@dataclass(frozen=True, eq=False)
class LearnedSampler:
    """A table, and the judgements of the base solver on `spacing` and of what was learned."""

    table: JumpTable
    before: Judgement
    after: Judgement


def learn_jumps(
    config: LSDConfig, model: TokenModel, folder: Path, progress: Progress = silent
) -> dict[int, LearnedSampler]:
    """Learn a table for every NFE of `config`, and write each to `folder`/jumps-NFE.json.

    Trainings go on where they were stopped, as `training.train` says. Raises ValueError for an NFE
    that the base solver cannot spend, or the teacher has no nodes for.
    """
    fine = nodes(config.teacher_steps, config.spacing)
    states = taught(config, model, fine, folder / "teacher.npz", progress)
    found = {}
    for nfe in config.nfe:
        plain = nodes(nfe, config.spacing)
        times = plain
        if config.dp:
            some = [each[:CHOOSING] for each in states]
            with torch.no_grad():
                times = best_times(model.kernel, model.noise, fine, some, model.log_score, nfe)
        module = LearnedJumps(config.base, model.kernel, model.noise, times, config.learns)
        task = jumps_task(module, config, model, fine, states)
        out = folder / f"training-{nfe:03d}"
        accelerator = accelerator_for(config.training, out, model.device)
        train(task, config.training, out, accelerator, progress)
        marks = {"objective": config.objective, "model": model.identity}
        table = module.table().renamed(f"lsd-{nfe}", learned=marks)
        table.save(folder / f"jumps-{nfe:03d}.json")
        before = build(config.base, model.kernel, model.noise, plain)
        found[nfe] = LearnedSampler(
            table, *(model.judge(each, config.judged) for each in (before, table))
        )
    return found


@torch.no_grad()
def taught(
    config: LSDConfig, model: TokenModel, fine: Tensor, path: Path, progress: Progress
) -> list[Tensor]:
    """The teacher's states [samples, L] at all of its nodes, from the file if it has them."""
    table = build(config.base, model.kernel, model.noise, fine)
    key = digest(table.to_dict(), model.identity, config.samples, model.length)
    known = read_arrays(path, key)
    if known is None:
        parts = []
        for first in range(0, config.samples, config.train_batch_size):
            seeds = range(first, min(first + config.train_batch_size, config.samples))
            x = start(table, model.length, seeds).to(model.device)
            parts.append(torch.stack(record(model.log_score, table, x, seeds).states).cpu())
            progress(seeds.stop, config.samples, "the teacher's samples")
        known = {"states": torch.cat(parts, 1).numpy()}
        write_arrays(path, key, known)
    return list(torch.from_numpy(known["states"]).to(model.device))


def jumps_task(
    module: LearnedJumps, config: LSDConfig, model: TokenModel, fine: Tensor, states: list[Tensor]
) -> Task:
    """The training of a table by the objective; `states` are the teacher's at the times `fine`."""
    count, size, seed = config.samples, config.train_batch_size, config.training.seed
    if size > count:
        raise ValueError(f"train_batch_size {size} is more than the {count} samples")
    likeness = hamming() if config.kernel == "hamming" else spectrum(2, model.kernel.states)
    logarithms = config.objective == "score_log"

    def factors() -> Tensor:
        if module.times.numel():
            # What a row does beside a step of the teacher.
            return -torch.diff(module.nodes()) * config.teacher_steps
        return (module.power if logarithms else module.phi).exp()

    def loss(given: nn.Module, step: int, part: int, parts: int) -> Tensor:
        table: JumpTable = given()
        if parts > 1 and config.objective == "mmd":
            raise ValueError(
                "the objective mmd compares a batch as a whole: one process, and "
                "gradient_accumulation_steps 1"
            )
        rows = shuffled(count, size, seed, step)[share(size, part, parts)]
        # Beyond the teacher's own.
        seeds = range(count + step * size + part, count + (step + 1) * size, parts)
        if config.objective == "mmd":
            real = states[-1][rows]
            return mmd_loss(table, model.log_score, model.length, seeds, real, likeness)
        # The teacher's states at the nearest of its times.
        places = (table.time.detach()[:, None] - fine).abs().argmin(1).tolist()
        theirs = [states[place][rows] for place in places]
        if config.objective == "path_ml":
            return path_loss(table, model.log_score, theirs)
        x = relaxed(theirs[0], config.relaxation, model.kernel.states, seeds[0])
        return score_loss(
            *(table, model.log_score, factors(), theirs, x, seeds), logarithms=logarithms
        )

    said = config.model_dump(mode="json", exclude={"training", "nfe", "judged", "model"})
    facts = {**said, "begun": module.table().to_dict(), "scores": model.identity}
    return Task(module, loss, facts=facts)
