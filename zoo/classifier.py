"""A small digit classifier: the feature extractor and the judge of the evaluations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from . import data as datasets

Architecture = Literal["pooled", "lenet"]


class ClassifierConfig(BaseModel):
    """What `fewstep train mnist-classifier` needs; saved as `config.json` beside the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "mnist"
    architecture: Architecture = "pooled"
    classes: PositiveInt = 10
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 100
    learning_rate: PositiveFloat = 3e-3
    shift: int = Field(default=2, ge=0)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    held_out: float = Field(default=0.1, gt=0, lt=1)
    seed: int = 0


def pooled_body() -> tuple[nn.Module, int]:
    """3x3 convolutions with batch norm, averaged over space to 64 features."""

    def block(channels: int, out: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(out), nn.ReLU()]

    layers = [*block(1, 16, 1), *block(16, 32, 2), *block(32, 64, 2), *block(64, 64, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 64


def lenet_body() -> tuple[nn.Module, int]:
    """5x5 convolutions and a dense layer of 96 features, after LeCun et al. 1998, without norms."""
    layers: list[nn.Module] = []
    for channels, out in [(1, 12), (12, 24)]:
        layers += [nn.Conv2d(channels, out, 5, padding=2), nn.GELU(), nn.MaxPool2d(2)]
    dense = [nn.Flatten(), nn.Dropout(0.2), nn.Linear(24 * 7 * 7, 96), nn.GELU()]
    return nn.Sequential(*layers, *dense), 96


BODIES: dict[Architecture, Callable[[], tuple[nn.Module, int]]] = {
    "pooled": pooled_body,
    "lenet": lenet_body,
}


class Classifier(nn.Module):
    """Logits [N, classes] from images [N, 1, 28, 28] in [-1, 1].

    `features` gives the penultimate layer [N, width]: 64 spatial averages after a ReLU ("pooled")
    or 96 dense units ("lenet").
    """

    def __init__(self, architecture: Architecture = "pooled", classes: int = 10) -> None:
        super().__init__()
        self.body, self.width = BODIES[architecture]()
        self.head = nn.Linear(self.width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate activations, float32 [N, width]."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits, float32 [N, classes]."""
        return self.head(self.features(images))


def shifted(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to `reach` pixels each way; what enters is background (-1)."""
    n, channels, height, width = images.shape
    padded = functional.pad(images, [reach] * 4, value=-1.0)
    down, right = torch.randint(2 * reach + 1, (2, n), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    each = torch.arange(n)[:, None, None, None]
    return padded[each, torch.arange(channels)[None, :, None, None], rows, columns]


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Share of images whose largest logit is their label."""
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    hits = sum(int((classifier(x).argmax(1) == y).sum()) for x, y in batches)
    return hits / len(labels)


def fit_classifier(
    config: ClassifierConfig,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> tuple[Classifier, float]:
    """Train on the packaged data; return the classifier and its accuracy on the held-out share.

    AdamW with a one-cycle learning rate and random shifts: a minute and a half on one CPU core.
    The global random state is left as it was. `progress(done, total, text)` is called every batch.
    """
    images, labels = datasets.load_images(config.data)
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(images), generator=generator)
    test, train = order.tensor_split([round(config.held_out * len(order))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classifier = Classifier(config.architecture, config.classes)
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-2)
        per_epoch = -(-len(train) // config.batch_size)
        total = config.epochs * per_epoch
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total)
        for epoch in range(config.epochs):
            shuffled = train[torch.randperm(len(train), generator=generator)]
            for i, index in enumerate(shuffled.split(config.batch_size)):
                logits = classifier(shifted(images[index], config.shift, generator))
                loss = functional.cross_entropy(
                    logits, labels[index], label_smoothing=config.label_smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
                progress(epoch * per_epoch + i + 1, total, f"loss {loss.item():.3f}")
    classifier.eval().requires_grad_(False)
    return classifier, accuracy(classifier, images[test], labels[test])


def train_classifier(
    config: ClassifierConfig,
    out: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Path:
    """Train as `fit_classifier` does and save weights, config and accuracy in the folder `out`."""
    classifier, held_out_accuracy = fit_classifier(config, progress)
    out.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), out / "model.safetensors")
    card = {"config": config.model_dump(), "held_out_accuracy": round(held_out_accuracy, 4)}
    (out / "config.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return out


def load_classifier(folder: Path) -> Classifier:
    """The classifier that `train_classifier` saved in `folder`, in evaluation mode, on the CPU.

    Raises FileNotFoundError that says how to make it if there is none.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no classifier in {folder}: `fewstep train mnist-classifier --out {folder}` makes one "
            "(a few minutes), of other features with --set architecture=lenet --set seed=1"
        )
    card = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = ClassifierConfig(**card["config"])
    classifier = Classifier(config.architecture, config.classes)
    classifier.load_state_dict(load_file(folder / "model.safetensors"))
    return classifier.eval().requires_grad_(False)
