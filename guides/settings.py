"""The settings of labels and of the classifiers that tell them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, model_validator

from ..eval.settings import STRICT, ExtractorConfig, ModelConfig
from ..training import TrainingSettings, gathered

TRAINING = TrainingSettings(
    max_train_steps=2000,
    learning_rate=3e-4,
    lr_scheduler="linear",
    adam_weight_decay=0.05,
    validation_steps=250,
)


class ClassifierConfig(BaseModel):
    """A classifier of noisy states, and its training.

    It learns the labels of `model.data` in the folder `labels` (of `fewstep train parts` or
    `minority`; "own" are the classes that the images have), from states at levels that are evenly
    drawn from those of a `spacing`; on EDM's law take karras. `network` are arguments of
    `NoisyClassifier`. The share `held_out` of every label is not trained on: its cross-entropy
    decides which weights are kept. Images are moved by up to `shift` pixels, and mirrored half of
    the time with `flip`. Settings of the training may stand here by their own names.
    """

    model_config = STRICT

    model: ModelConfig = ModelConfig(id="mnist", data="mnist")
    labels: str = "own"
    network: dict[str, Any] = {}
    spacing: str = "uniform"
    train_batch_size: PositiveInt = 128
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    shift: NonNegativeInt = 0
    flip: bool = False
    training: TrainingSettings = TRAINING

    @model_validator(mode="before")
    @classmethod
    def by_name(cls, values: Any) -> Any:
        """Accept settings of the training by their own names."""
        return gathered(values, TRAINING)


class MinorityConfig(ClassifierConfig):
    """Levels of rarity, and the classifier that tells them from noisy states.

    The minority score of an image is how far it is from what the model makes of its noisy version
    (see `minority_score`): `draws` noises at `time`, a share of the schedule's last, and a distance
    of pixels or of the features of an extractor. Scores are cut into `levels` of equal size, the
    last the rarest; with `per_class` within each class of the data, which the model is then told.
    """

    labels: Literal["minority"] = "minority"
    levels: Annotated[int, Field(ge=2)] = 10
    time: Annotated[float, Field(gt=0, lt=1)] = 0.6
    draws: PositiveInt = 5
    distance: ExtractorConfig = ExtractorConfig(id="pixels")
    per_class: bool = False
    batch_size: PositiveInt = 100
    seed: NonNegativeInt = 0


class PartsConfig(BaseModel):
    """Parts of a data set, one for each expert.

    "kmeans": clusters of the features of an extractor, of equal weight; first `fine` centroids of
    the images, then `parts` of these, as published. "classes": `groups` of the data's own classes.
    """

    model_config = STRICT

    data: str = "mnist"
    by: Literal["kmeans", "classes"] = "kmeans"
    parts: PositiveInt = 4
    fine: PositiveInt = 1024
    extractor: ExtractorConfig = ExtractorConfig(id="mnist-classifier")
    groups: tuple[tuple[NonNegativeInt, ...], ...] = ()
    batch_size: PositiveInt = 100
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def whole(self) -> PartsConfig:
        """Groups are those of "classes", each class in one."""
        if (self.by == "classes") != bool(self.groups):
            raise ValueError("groups of classes go with by: classes")
        every = [each for group in self.groups for each in group]
        if len(every) != len({*every}) or not all(self.groups):
            raise ValueError("groups: every class is in one of them, and none is empty")
        return self
