"""Labels for a data set: how rare its images are, and which of them belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..eval.evaluate import outputs_of
from ..eval.extractors import extractor
from ..eval.extractors.extractor import unrounded
from ..eval.images import dequantise, save_grid
from ..eval.models import NetworkModel
from ..eval.progress import Progress, silent
from ..eval.settings import ExtractorConfig
from ..eval.sources import ImageSet, open_images
from ..samplers.guidance import minority_score, node_at
from ..storage import digest, read_arrays, write_arrays
from ..zoo.data.labels import Labels
from .settings import MinorityConfig, PartsConfig

# Images of each label in the picture of them.
SHOWN = 20


def label_minority(
    config: MinorityConfig, model: NetworkModel, folder: Path, progress: Progress = silent
) -> Labels:
    """Score the images of the model's data, and cut the scores into levels of equal size.

    `folder` gets scores.npz, labels.safetensors and levels.png, a row for each level with the
    rarest below. Scores that are there already are not made again. Raises ValueError for images
    that the model is not one of, and for levels that images of a class are too few for.
    """
    images = images_of(config.model.data, model)
    own = images.labels if config.per_class else None
    if config.per_class and own is None:
        raise ValueError(f"per_class: {images.name} has no classes")
    scores = torch.from_numpy(scored(config, model, images, own, folder / "scores.npz", progress))
    labels = quantile_labels(scores, config.levels, own)
    said = config.model_dump(mode="json", include={"time", "draws", "distance", "per_class"})
    found = Labels(labels, config.levels, images.identity, {**said, "model": model.fingerprint})
    found.save(folder)
    picture(images, found, folder / "levels.png")
    return found


def scored(
    config: MinorityConfig,
    model: NetworkModel,
    images: ImageSet,
    own: Tensor | None,
    path: Path,
    progress: Progress,
) -> np.ndarray:
    """Minority scores, float64 [N], kept in a file after every batch of them."""
    node = node_at(model.schedule, config.time * model.schedule.t_max)
    said = config.model_dump(
        mode="json", include={"time", "draws", "distance", "per_class", "seed", "batch_size"}
    )
    key = digest(said, images.identity, model.fingerprint)
    distance = distance_of(config.distance, model.device)
    kept = read_arrays(path, key)
    found: list[np.ndarray] = [] if kept is None else [kept["scores"]]
    done = sum(map(len, found))
    while done < images.count:
        rows = range(done, min(done + config.batch_size, images.count))
        x0 = dequantise(images.read(rows)).to(model.device)
        labels = None if own is None else own[list(rows)].to(model.device)
        score = minority_score(
            model.denoiser(labels, len(rows)),
            x0,
            node,
            [config.seed + row for row in rows],
            draws=config.draws,
            distance=distance,
        )
        found.append(score.cpu().numpy())
        done = rows.stop
        write_arrays(path, key, {"scores": np.concatenate(found)})
        progress(done, images.count, "scores")
    return np.concatenate(found)


def distance_of(
    config: ExtractorConfig, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """Squared distances of pixels, or of an extractor's features, [B]."""
    if config.id == "pixels":
        return lambda a, b: (a - b).square().flatten(1).sum(1)
    built = extractor(config.id, device, **config.options)
    return lambda a, b: (unrounded(built, a) - unrounded(built, b)).square().sum(1)


def quantile_labels(scores: Tensor, levels: int, groups: Tensor | None = None) -> Tensor:
    """Levels 0 to `levels` - 1 of equal size by rising score, within each group: int64 [N].

    Level j is q_(j-1) < score <= q_j with q_j the quantile (j + 1) / levels (Um et al. 2024, "Don't
    Play Favorites", section 4). ValueError for groups with fewer members than levels.
    """
    found = torch.empty(len(scores), dtype=torch.long)
    group = torch.zeros(len(scores), dtype=torch.long) if groups is None else groups
    for each in group.unique():
        rows = group == each
        own = scores[rows].double()
        if len(own) < levels:
            raise ValueError(f"{len(own)} images of a class are too few for {levels} levels")
        places = torch.arange(1, levels, dtype=torch.float64) / levels
        found[rows] = torch.searchsorted(torch.quantile(own, places), own)
    return found


def label_parts(config: PartsConfig, folder: Path, progress: Progress = silent) -> Labels:
    """Cut a data set into parts; `folder` gets labels.safetensors and parts.png.

    Raises ValueError for classes that are in no group, and for fewer images than parts.
    """
    images = open_images(config.data)
    if config.groups:
        labels, count = grouped(images, config.groups), len(config.groups)
    else:
        built = extractor(config.extractor.id, **config.extractor.options)
        features = outputs_of(images, built, config.batch_size, progress).features
        labels, count = clustered(features, config), config.parts
    said = config.model_dump(mode="json", exclude={"batch_size"})
    found = Labels(labels, count, images.identity, said)
    found.save(folder)
    picture(images, found, folder / "parts.png")
    return found


def grouped(images: ImageSet, groups: tuple[tuple[int, ...], ...]) -> Tensor:
    """The group of each image's class."""
    if images.labels is None:
        raise ValueError(f"groups: {images.name} has no classes")
    where = {each: k for k, group in enumerate(groups) for each in group}
    missing = [each for each in images.labels.unique().tolist() if each not in where]
    if missing:
        raise ValueError(f"groups: class {missing[0]} is in none of them")
    return torch.tensor([where[each] for each in images.labels.tolist()])


def clustered(features: Tensor, config: PartsConfig) -> Tensor:
    """Parts by k-means in two stages: many centroids of images, then few of these, by weight.

    One stage follows single outliers; centroids of many images are steadier, and cheaper for
    millions (McAllister et al. 2025, "Decentralized Diffusion Models", section 3.4).
    """
    # Here, because it takes a second.
    from sklearn.cluster import KMeans, MiniBatchKMeans

    values = features.double().numpy()
    if len(values) < config.parts:
        raise ValueError(f"{len(values)} images are too few for {config.parts} parts")
    fine = min(config.fine, len(values))
    first = MiniBatchKMeans(max(fine, config.parts), random_state=config.seed, n_init=3)
    near = first.fit_predict(values)
    weights = np.bincount(near, minlength=len(first.cluster_centers_))
    second = KMeans(config.parts, random_state=config.seed, n_init=10)
    coarse = second.fit_predict(first.cluster_centers_, sample_weight=weights)
    return torch.from_numpy(coarse[near].astype(np.int64))


def images_of(data: str | None, model: NetworkModel) -> ImageSet:
    """The images that a model is one of; ValueError where it cannot be."""
    if data is None:
        raise ValueError(f"say which images {model.name} was trained on: model.data")
    images = open_images(data)
    shape = tuple(images.read([0]).shape[1:])
    if model.decode is not None or shape != tuple(model.shape):
        raise ValueError(
            f"{model.name} has samples of {list(model.shape)}"
            f"{' that are latents' if model.decode is not None else ''}, "
            f"and {images.name} images of {list(shape)}"
        )
    return images


def picture(images: ImageSet, labels: Labels, path: Path) -> None:
    """Some images of each label, a row each, from all over the data set."""
    rows = [(labels.labels == k).nonzero()[:, 0] for k in range(labels.classes)]
    few = min(SHOWN, *map(len, rows))
    if few:
        shown = [row[(torch.arange(few) + 0.5).mul(len(row) / few).long()] for row in rows]
        save_grid(images.read(torch.cat(shown).tolist()), path, columns=few)
