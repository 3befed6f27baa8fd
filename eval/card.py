"""The model card of a digit model: what is measured, and the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional

from .. import samplers
from ..schedules import grid
from ..storage import environment, write_atomically
from ..zoo.classifier import ClassifierConfig, accuracy, fit_classifier
from .evaluate import outputs_of
from .extractors import Extractor
from .images import dequantise, quantise, save_grid
from .metrics import frechet_distance, half_split_distances, moments
from .models import Draw, NetworkModel, in_batches, label_rule
from .progress import Counter, Progress, silent
from .sources import ImageSet, in_memory

DDIM_STEPS = 100
FAST_SOLVER, FAST_STEPS = "unipc-3", 25
SPLITS = 5
# A stray pixel is brighter than this (of 255) and farther than REACH from ink brighter than INK.
STRAY, INK, REACH = 32, 127, 2


@dataclass(frozen=True, eq=False)
class Card:
    """What was measured of a model; `grid` holds class-conditional samples of 100-step DDIM."""

    model: NetworkModel
    extractor: Extractor
    real: int
    seed: int
    judged: int
    judge_accuracy: float
    agreement: float
    images: int
    frechet: float
    halves: tuple[float, ...]
    speckled: float
    speckled_data: float
    grid: Tensor


def speckled(pixels: Tensor) -> Tensor:
    """Which uint8 images [N, 1, H, W] have a bright pixel away from all ink; bool [N]."""
    x = pixels.float()
    near = functional.max_pool2d((x > INK).float(), 2 * REACH + 1, stride=1, padding=REACH) > 0
    return ((x > STRAY) & ~near).flatten(1).any(1)


def measure_model(
    model: NetworkModel,
    data: ImageSet,
    extractor: Extractor,
    images: int = 5000,
    judged: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Card:
    """Judge `judged` samples of 100-step DDIM, and compare `images` fast samples with the data.

    The judge is a classifier of another architecture and seed than the extractor, trained here. The
    fast samples are those of UniPC-3 at 25 steps. Labels are balanced, guidance is off.
    """
    judge, judge_accuracy = fit_classifier(
        ClassifierConfig(architecture="lenet", seed=seed + 1),
        lambda done, total, text: progress(done, total, "training the judge"),
    )
    counter = Counter(progress, DDIM_STEPS * judged + FAST_STEPS * images)

    def samples(solver: str, steps: int, count: int) -> tuple[Tensor, Tensor]:
        counter.text = f"{solver} at {steps} steps"
        table = samplers.build(solver, grid(model.schedule, steps, "uniform"))
        seeds = range(seed, seed + count)
        labels = label_rule("balanced", model.classes, model.shape, seeds, "cpu")
        assert labels is not None
        return quantise(in_batches(model, table, Draw(seeds, labels), on_call=counter.add)), labels

    exact, labels = samples("ddim", DDIM_STEPS, judged)
    fast, _ = samples(FAST_SOLVER, FAST_STEPS, images)
    real = data.read(range(data.count))
    features = outputs_of(data, extractor).features
    of_samples = moments(outputs_of(in_memory("samples", fast), extractor).features)
    return Card(
        model=model,
        extractor=extractor,
        real=data.count,
        seed=seed,
        judged=judged,
        judge_accuracy=judge_accuracy,
        agreement=accuracy(judge, dequantise(exact), labels),
        images=images,
        frechet=frechet_distance(of_samples, moments(features)),
        halves=tuple(half_split_distances(features, SPLITS, seed)),
        speckled=float(speckled(fast).float().mean()),
        speckled_data=float(speckled(real).float().mean()),
        grid=exact[:100],
    )


def write_card(card: Card, folder: Path) -> Path:
    """Write `README.md` and `samples.png` into `folder`; return the former."""
    save_grid(card.grid, folder / "samples.png")
    path = folder / "README.md"
    write_atomically(path, to_markdown(card))
    return path


def to_markdown(card: Card) -> str:
    """The card as text."""
    model, env = card.model, environment(card.model.device)
    classes = model.classes or 0
    halves = float(np.mean(card.halves))
    parameters = sum(p.numel() for p in model.network.parameters())
    rows = [
        (
            f"intended class, read by an independent classifier ({card.judge_accuracy:.1%} right "
            f"on real digits it had not seen), {card.judged} samples of DDIM at {DDIM_STEPS} steps",
            f"{card.agreement:.1%}",
        ),
        (
            f"Frechet distance of {card.images} samples ({FAST_SOLVER}, {FAST_STEPS} steps) to "
            f"{card.real} real digits, in the features of {card.extractor.name}",
            f"{card.frechet:.4f}",
        ),
        (
            f"the same between random halves of the real digits, mean of {len(card.halves)} splits",
            f"{halves:.4f}",
        ),
        ("ratio of the two", f"{card.frechet / halves:.1f}"),
        (
            f"images with a bright pixel (> {STRAY}) farther than {REACH} pixels from any ink",
            f"{card.speckled:.1%}",
        ),
        ("the same among the real digits", f"{card.speckled_data:.1%}"),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    height, width = model.shape[1:]
    return f"""# Class-conditional digits, {height}x{width}

A noise-predicting U-Net (`diffusers.UNet2DModel`, {parameters:,} parameters) with a discrete
variance-preserving linear schedule of 1,000 steps, trained on 10,000 digits of MNIST. Class labels
are 0 to {classes - 1}; {classes} means no label, for classifier-free guidance.

![class-conditional samples, one column per class](samples.png)

| measured | |
| --- | ---: |
{table}

Guidance off, balanced labels, seeds from {card.seed}. The Frechet distance is not FID: its features
are those of a small digit classifier, and it is comparable only with others in the same features.

- Trained by `fewstep train mnist`; this card was written by `fewstep card`.
- Measured on {env["device"]} with torch {env["torch"]}, diffusers {env["diffusers"]},
  Python {env["python"]}. Digest of the weights: `{model.fingerprint}`.
- Data: MNIST by Y. LeCun, C. Cortes and C. J. C. Burges, CC BY-SA 3.0. Weights: Apache-2.0.
- It draws digits and nothing else; it is here to compare samplers with.
"""
