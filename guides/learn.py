"""Training of classifiers of noisy states."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from ..eval.images import dequantise
from ..eval.models import NetworkModel
from ..eval.progress import Progress, silent
from ..eval.sources import ImageSet
from ..samplers.streams import salted, standard_normal
from ..schedules import Schedule, grid
from ..schedules.files import to_dict
from ..storage import digest, write_json
from ..training import Task, accelerator_for, share, shuffled, train
from ..zoo.classifier import shifted
from ..zoo.data.labels import Labels, load_labels
from ..zoo.train import stratified_timesteps
from .classifier import FOLDER, NoisyClassifier
from .labels import images_of
from .settings import ClassifierConfig

# Noise levels that are trained on.
LEVELS = 1000


def train_classifier(
    config: ClassifierConfig,
    model: NetworkModel,
    folder: Path,
    progress: Progress = silent,
    labels: Labels | None = None,
) -> Path:
    """Train a classifier to tell the labels of noisy images, and save it at `folder`/classifier.

    `labels` are those that the settings name, if none are given. Resumed, on several processes or
    not, as `training.train` says. `folder`/accuracy.json has the share of held-out images that it
    tells right at ten noise levels. Raises ValueError for labels of other images, and for data
    without classes of their own where "own" are asked for.
    """
    images = images_of(config.model.data, model)
    known = labels_of(config, images) if labels is None else labels
    held_out, kept = stratified_split(known, config.held_out, config.training.seed)
    levels = levels_of(model.schedule, config.spacing)
    torch.manual_seed(config.training.seed)
    channels = {"in_channels": model.shape[0], **config.network}
    network = NoisyClassifier(known.classes, to_dict(model.schedule), **channels)
    accelerator = accelerator_for(config.training, folder, model.device)
    task = Task(
        network,
        partial(loss_of, config, images, known, kept, levels, accelerator),
        partial(validated, images, known, held_out, levels, accelerator),
        facts={
            **config.model_dump(mode="json", exclude={"training", "model"}),
            "schedule": to_dict(model.schedule),
            "labels": digest(known.labels.numpy()),
            "data": images.identity,
        },
    )
    train(task, config.training, folder, accelerator, progress)
    if accelerator.is_main_process:
        network.eval().save_pretrained(folder / FOLDER)
        write_json(
            folder / "accuracy.json",
            accuracies(network, images, known, held_out, levels, accelerator.device),
        )
    accelerator.wait_for_everyone()
    return folder / FOLDER


def labels_of(config: ClassifierConfig, images: ImageSet) -> Labels:
    """The labels that are to be learned."""
    if config.labels != "own":
        return load_labels(config.labels, images.identity)
    if images.labels is None:
        raise ValueError(
            f"labels: {images.name} has no classes of its own; name a folder of labels"
        )
    return Labels(images.labels, int(images.labels.max()) + 1, images.identity)


def levels_of(schedule: Schedule, spacing: str = "uniform") -> Tensor:
    """alpha, sigma and the network's time of so many levels from noise to data, float64 [3, N]."""
    nodes = grid(schedule, LEVELS, spacing, end="min").nodes
    # Of pure noise there is nothing to tell.
    rows = [(node.alpha, node.sigma, float(node.label)) for node in nodes if node.alpha > 0]
    return torch.tensor(rows, dtype=torch.float64).T


def stratified_split(labels: Labels, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Which images are held out, that share of every label and at least one, and all others."""
    order = torch.randperm(len(labels.labels), generator=torch.Generator().manual_seed(seed))
    out = torch.zeros(len(order), dtype=torch.bool)
    for each in range(labels.classes):
        rows = order[labels.labels[order] == each]
        if len(rows) < 2:
            raise ValueError(f"label {each} has {len(rows)} images: too few to learn and to check")
        out[rows[: max(1, round(held_out * len(rows)))]] = True
    return out.nonzero()[:, 0], (~out).nonzero()[:, 0]


def loss_of(
    config: ClassifierConfig,
    images: ImageSet,
    labels: Labels,
    rows: Tensor,
    levels: Tensor,
    accelerator: Accelerator,
    module: nn.Module,
    step: int,
    part: int,
    parts: int,
) -> Tensor:
    """The cross-entropy of a part of a batch, noised at times that are evenly spread over it."""
    size, seed = config.train_batch_size, config.training.seed
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    index = rows[shuffled(len(rows), size, seed, step)]
    x0 = dequantise(images.read(index.tolist()))
    if config.shift:
        x0 = shifted(x0, config.shift, generator)
    if config.flip:
        mirrored = torch.rand(size, generator=generator) < 0.5
        x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
    chosen = stratified_timesteps(size, levels.shape[1], generator)
    z = torch.randn(x0.shape, generator=generator)
    own = share(size, part, parts)
    x, times = noised(x0[own], z[own], levels[:, chosen[own]], accelerator.device)
    target = labels.labels[index[own]].to(accelerator.device)
    return functional.cross_entropy(module(x, times).float(), target)


def noised(x0: Tensor, z: Tensor, levels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """alpha x0 + sigma z of samples each at a level, and the times that go with it."""
    alpha, sigma, times = levels.float()
    x = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * z
    return x.to(device), times.to(device)


def validated(
    images: ImageSet,
    labels: Labels,
    rows: Tensor,
    levels: Tensor,
    accelerator: Accelerator,
    module: nn.Module,
) -> Mapping[str, float]:
    """The cross-entropy of held-out images, each at a level and with a noise that stay the same."""
    # In an order of their own: data may be sorted by their labels.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    chosen = order * levels.shape[1] // len(rows)
    logits, target = told(module, images, labels, rows, levels[:, chosen], accelerator.device)
    right = (logits.argmax(1) == target).double().mean()
    return {
        "cross_entropy": float(functional.cross_entropy(logits, target)),
        "accuracy": float(right),
    }


@torch.no_grad()
def told(
    module: nn.Module,
    images: ImageSet,
    labels: Labels,
    rows: Tensor,
    levels: Tensor,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Logits of images, each at its level of `levels` [3, N], and what they should say."""
    found = []
    for some in torch.arange(len(rows)).split(500):
        index = rows[some].tolist()
        x0 = dequantise(images.read(index))
        z = standard_normal(salted(index, "held out"), 0, x0)
        x, times = noised(x0, z, levels[:, some], device)
        found.append(module(x, times).float().cpu())
    return torch.cat(found), labels.labels[rows]


def accuracies(
    network: nn.Module,
    images: ImageSet,
    labels: Labels,
    rows: Tensor,
    levels: Tensor,
    device: torch.device,
) -> dict[str, Any]:
    """The share of images told right at ten noise levels, from much noise to little."""
    places = torch.linspace(0, levels.shape[1] - 1, 10).round().long()
    found = []
    for place in places.tolist():
        same = levels[:, [place]].expand(-1, len(rows))
        logits, target = told(network, images, labels, rows, same, device)
        found.append(round(float((logits.argmax(1) == target).double().mean()), 4))
    nsr = (levels[1] / levels[0])[places].tolist()
    return {
        "held_out": len(rows),
        "sigma_over_alpha": [round(each, 4) for each in nsr],
        "accuracy": found,
        "by_chance": round(float(labels.shares.max()), 4),
    }
