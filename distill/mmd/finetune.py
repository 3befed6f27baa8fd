"""A network fine-tuned for few steps of one sampler, on the statistics of its samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from ...eval.evaluate import outputs_of
from ...eval.extractors import extractor, unrounded
from ...eval.images import quantise, save_grid
from ...eval.metrics import KernelDistance
from ...eval.models import Draw, LabelRule, NetworkModel, label_rule
from ...eval.models.networks import dtype_of
from ...eval.progress import Progress, silent
from ...eval.results import save_model, write_card
from ...eval.settings import STRICT, ExtractorConfig, ModelConfig, SolverConfig, table_within
from ...eval.sources import ImageSet, open_images
from ...samplers import Tableau
from ...samplers.denoiser import checkpointed
from ...training import TrainingSettings, accelerator_for, gathered, train
from .discrepancy import KernelName, Space, clamped, kernel
from .lora import add_adapters, merge_adapters
from .task import REAL, Classes, Images, mmd_task, no_classes

PREVIEW = 40
# What a training is like unless its settings say otherwise.
TRAINING = TrainingSettings(
    learning_rate=5e-6, lr_scheduler="constant", max_grad_norm=0.5, max_train_steps=500
)


class SpaceConfig(BaseModel):
    """A feature space of the loss: an extractor, the kernel in it, and its weight."""

    model_config = STRICT

    features: ExtractorConfig
    kernel: KernelName = "cubic"
    weight: PositiveFloat = 1.0


class MMDConfig(BaseModel):
    """What is fine-tuned, for which sampler, and how.

    The network of `model` is trained for `solver` at exactly `nfe` evaluations on `spacing`, so
    that batches of `train_batch_size` samples (over all processes) are like the images of
    `model.data`, `real_batch_size` of them a step, in all `spaces`. Features alone leave what they
    do not see to grow, such as a speckled background: hence pixels among them. `judge` is an
    extractor that is not trained on; its kernel distance on `validation_images` others decides
    which weights are kept. `labels` had better be drawn as often as the images have them, as in
    `label_rule`; balanced ones are not independent, and pairs of samples must be.

    `lora` is the rank of adapters that are trained instead of all weights, and merged in the end;
    `dropout` leaves dropout on, as the published code does. `memory_steps`, `gather_features` and
    `gradient_checkpointing` as in `mmd_task` and `table_task`. Settings of the training may stand
    here by their own names.
    """

    model_config = STRICT

    model: ModelConfig = ModelConfig(id="mnist", data="mnist")
    nfe: PositiveInt = 5
    solver: SolverConfig = SolverConfig(name="ddim")
    spacing: str = "uniform"
    spaces: tuple[SpaceConfig, ...] = Field(min_length=1)
    judge: ExtractorConfig | None = None
    validation_images: PositiveInt = 500
    labels: LabelRule = "random"
    guidance: float = 1.0
    first_seed: NonNegativeInt = 2**31
    train_batch_size: PositiveInt = 128
    real_batch_size: PositiveInt = REAL
    memory_steps: NonNegativeInt = 0
    gather_features: bool = True
    gradient_checkpointing: bool = False
    lora: PositiveInt | None = None
    dropout: bool = False
    training: TrainingSettings = TRAINING

    @model_validator(mode="before")
    @classmethod
    def by_name(cls, values: Any) -> Any:
        """Accept settings of the training by their own names."""
        return gathered(values, TRAINING)


@dataclass(frozen=True, eq=False)
class Tuned:
    """The table, the numbers of the validation before and after, and where the network is."""

    table: Tableau
    before: Mapping[str, float]
    after: Mapping[str, float]
    folder: Path


def finetune(
    config: MMDConfig, model: NetworkModel, folder: Path, progress: Progress = silent
) -> Tuned:
    """Fine-tune the network of `model`, in place, and write it with its sampler to `folder`/model.

    Resumed, on several processes or not, as `training.train` says. Raises ValueError for a model
    without real images, and a solver that cannot spend `nfe`.
    """
    law, scale = model.schedule, config.guidance
    if config.solver.besides:
        raise ValueError(
            f"solver.{config.solver.besides[0]}: what is saved runs a table alone, and so does its "
            "training"
        )
    table = table_within(law, config.solver, config.nfe, config.spacing, "zero", scale)
    if table.nfe != config.nfe:
        raise ValueError(f"{config.solver.name} takes {table.nfe} evaluations, not {config.nfe}")
    if config.model.data is None:
        raise ValueError("model.data: which real images are the samples to be like?")
    data = open_images(config.model.data)
    if dtype_of(model.network) != torch.float32:
        raise ValueError(
            f"weights in {dtype_of(model.network)} lose small updates: train in float32, with "
            "mixed_precision bf16 or fp16"
        )
    accelerator = accelerator_for(config.training, folder, model.device)
    images = images_of(config, model, table)
    spaces = [space_of(each, data, accelerator.device, progress) for each in config.spaces]
    judges = {f"kd_{space.name}": space for space in spaces}
    if len(judges) < len(spaces):
        names = ", ".join(space.name for space in spaces)
        raise ValueError(f"spaces: {names}: two of one name cannot be told apart")
    if config.judge is not None:
        judge = SpaceConfig(features=config.judge)
        found = space_of(judge, data, accelerator.device, progress)
        # First, because that decides.
        judges = {f"judge_kd_{found.name}": found, **judges}

    def validate(module: nn.Module) -> dict[str, float]:
        with lent(model.network, module), evaluated(model.network):
            return judgement(judges, images, config, range(-config.validation_images, 0))

    def preview(module: nn.Module, path: Path) -> None:
        with lent(model.network, module), evaluated(model.network), torch.no_grad():
            save_grid(quantise(images(range(-PREVIEW, 0))), path)

    fingerprint = model.fingerprint
    # Of others than those that choose weights.
    numbers = range(-2 * config.validation_images, -config.validation_images)
    before = judgement(judges, images, config, numbers)
    model.network.requires_grad_(True).train(config.dropout)
    if config.lora is not None:
        torch.manual_seed(config.training.seed)
        add_adapters(model.network, config.lora)
    task = mmd_task(
        model.network,
        images,
        spaces,
        accelerator,
        batch_size=config.train_batch_size,
        real_batch_size=config.real_batch_size,
        memory_steps=config.memory_steps,
        seed=config.training.seed,
        gather_features=config.gather_features,
        classes=classes_of(config, model),
        facts=facts_of(config, table, fingerprint, data, judges),
        validate=validate,
        preview=preview,
    )
    outcome = train(task, config.training, folder, accelerator, progress)
    if config.lora is not None:
        merge_adapters(model.network)
    model.network.eval().requires_grad_(False)
    # It was that of other weights.
    vars(model).pop("fingerprint", None)
    after = judgement(judges, images, config, numbers)
    if accelerator.is_main_process:
        save_model(model, table, folder / "model")
        write_card(
            folder / "model",
            f"{model.name} in {table.nfe} evaluations of {table.name}",
            f"Fine-tuned from the network {fingerprint} (MMD-DDM) for this sampler at this number "
            f"of steps; with others it may be worse than before. {outcome.steps} steps; the best "
            f"weights are those after {outcome.best[1] if outcome.best else outcome.steps}. "
            f"Kernel distances of {config.validation_images} samples:",
            ["features", "before", "after"],
            [[name, f"{before[name]:.5f}", f"{value:.5f}"] for name, value in after.items()],
            config.model_dump(mode="json", exclude_defaults=True),
            model.device,
        )
    accelerator.wait_for_everyone()
    return Tuned(table, before, after, folder / "model")


def facts_of(
    config: MMDConfig,
    table: Tableau,
    fingerprint: str,
    data: ImageSet,
    judges: Mapping[str, Space],
) -> dict[str, Any]:
    """What the training depends on besides its own settings."""
    aside = {"training", "model", "gradient_checkpointing"}
    return {
        **config.model_dump(mode="json", exclude=aside),
        "table": table.to_dict(),
        "model": fingerprint,
        "data": data.identity,
        "extractors": {name: space.identity for name, space in judges.items()},
    }


def images_of(config: MMDConfig, model: NetworkModel, table: Tableau) -> Images:
    """Samples by their numbers, with gradients; the validation has those below zero."""

    def images(numbers: Sequence[int]) -> Tensor:
        draw = draw_of(config, model, numbers)
        return model.sampled(table, draw, checkpointed if config.gradient_checkpointing else None)

    return images


def classes_of(config: MMDConfig, model: NetworkModel) -> Classes:
    """The labels of samples by their numbers, and the shares that they are drawn with."""
    rule = config.labels
    if model.classes is None or isinstance(rule, int):
        return no_classes
    shares = torch.tensor(rule) if isinstance(rule, tuple) else torch.ones(model.classes)

    def classes(numbers: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        labels = draw_of(config, model, numbers).labels
        return None if labels is None else (labels, shares)

    return classes


def draw_of(config: MMDConfig, model: NetworkModel, numbers: Sequence[int]) -> Draw:
    """The noises and labels of samples by their numbers."""
    seeds = [config.first_seed + number for number in numbers]
    labels = label_rule(config.labels, model.classes, model.shape, seeds, "cpu")
    return Draw(seeds, labels, config.guidance)


def space_of(
    config: SpaceConfig, data: ImageSet, device: torch.device, progress: Progress = silent
) -> Space:
    """A feature space with the features of all real images, in a unit of their power."""
    built = extractor(config.features.id, device, **config.features.options)
    real = outputs_of(data, built, progress=progress).features
    # A radial kernel sees differences only.
    power = real.var(0) if config.kernel == "rbf" else real.square().mean(0)
    return Space(
        built.name,
        built.fingerprint,
        lambda images: unrounded(built, clamped(images)),
        real,
        kernel(config.kernel, real.shape[1]),
        float(power.mean().sqrt()) or 1.0,
        config.weight,
    )


@torch.no_grad()
def judgement(
    spaces: Mapping[str, Space], images: Images, config: MMDConfig, numbers: range
) -> dict[str, float]:
    """The kernel distance (that of KID) in every space, between real images and some samples."""
    size = min(config.train_batch_size, config.validation_images)
    made = [images(numbers[i : i + size]) for i in range(0, len(numbers), size)]
    found = {}
    for name, space in spaces.items():
        distance = KernelDistance(space.real).to(made[0].device)
        for each in made:
            distance.update(space.features(each))
        found[name] = float(distance.compute())
    return found


@contextmanager
def lent(network: nn.Module, other: nn.Module) -> Iterator[None]:
    """Give a network the weights of another of its kind while inside."""
    if other is network:
        yield
        return
    own = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(other.state_dict())
    try:
        yield
    finally:
        network.load_state_dict(own)


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """A network without dropout while inside."""
    mode = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(mode)
