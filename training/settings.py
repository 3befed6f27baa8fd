"""How a training runs, by the names of diffusers' scripts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

Rate = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
]


class TrainingSettings(BaseModel):
    """How a training runs.

    The batch of a step is divided over processes and `gradient_accumulation_steps`; what is in it
    is for the task to say. `resume_from_checkpoint` is "latest" (go on if there is something to go
    on from), "never" (start anew, and remove what is there), or the path of a checkpoint.
    `report_to` names trackers of accelerate beside metrics.jsonl, which is always written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: NonNegativeInt = 0
    max_train_steps: PositiveInt = 1000
    gradient_accumulation_steps: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-3
    lr_scheduler: Rate = "cosine"
    lr_warmup_steps: NonNegativeInt = 0
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_weight_decay: NonNegativeFloat = 0.0
    adam_epsilon: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    use_ema: bool = False
    ema_max_decay: float = Field(default=0.999, ge=0, lt=1)
    validation_steps: PositiveInt = 100
    checkpointing_steps: PositiveInt = 500
    checkpoints_total_limit: PositiveInt | None = 2
    resume_from_checkpoint: str = "latest"
    report_to: tuple[str, ...] = ()

    @field_validator("report_to", mode="before")
    @classmethod
    def one_or_many(cls, value: Any) -> Any:
        """Accept `tensorboard` for `[tensorboard]`, and none for `[]`."""
        if value in (None, "none"):
            return ()
        return (value,) if isinstance(value, str) else value


# What may change when a training goes on: it decides how it is kept, and not what comes out.
FREE = (
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "report_to",
)


def gathered(values: Any, default: TrainingSettings | None) -> Any:
    """Settings in which those of the training, told by name, are where they belong.

    {"learning_rate": 1e-3, ...} becomes {"training": {"learning_rate": 1e-3, ...}, ...}, where what
    is not told is as in `default`. What is no mapping is for pydantic to refuse.
    """
    if not isinstance(values, dict) or not isinstance(values.get("training") or {}, dict):
        return values
    known = {key: value for key, value in values.items() if key in TrainingSettings.model_fields}
    told = {**(values.get("training") or {}), **known}
    if not told:
        return values
    rest = {key: value for key, value in values.items() if key not in known}
    return {**rest, "training": {**(default.model_dump() if default else {}), **told}}
