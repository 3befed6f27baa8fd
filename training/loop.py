"""The training loop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .checkpoint import (
    BEST,
    EMA,
    MEMORY,
    MODEL,
    OPTIMIZER,
    Checkpoint,
    find,
    forget,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_tensors,
)
from .journal import Journal, finite
from .rates import rate
from .settings import FREE, TrainingSettings
from .task import Task

# Of the loss that is shown: how much the newest counts.
SMOOTH = 0.05
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """What came out: steps done, seconds of this call, the best validation and its step."""

    steps: int
    seconds: float
    best: tuple[float, int] | None


def accelerator_for(
    settings: TrainingSettings, folder: Path, device: torch.device | None = None
) -> Accelerator:
    """The accelerator of a training on a device; ValueError for a tracker that is not installed.

    None: whatever accelerate finds.
    """
    for name in settings.report_to:
        if find_spec(name) is None:
            raise ValueError(
                f"report_to: {name} is not installed (pip install {name}); metrics.jsonl is "
                "written without it"
            )
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return Accelerator(
        cpu=device is not None and device.type == "cpu",
        mixed_precision=settings.mixed_precision,
        log_with=list(settings.report_to) or None,
        project_dir=folder,
    )


def train(
    task: Task,
    settings: TrainingSettings,
    folder: Path,
    accelerator: Accelerator,
    progress: Progress = lambda done, total, text: None,
) -> Outcome:
    """Train; `task.module` ends with the parameters that validated best, or the last ones.

    AdamW, with gradients averaged over parts and processes, clipped, and a rate after diffusers'
    schedules. `folder` gets metrics.jsonl and checkpoint-N; the same call goes on from the last one
    bit for bit, because batches and dropout depend on the seed, the step and the part alone. Ctrl-C
    leaves a checkpoint, and so does a gradient that is not finite: ArithmeticError then says where.
    """
    run = Run(task, settings, folder, accelerator)
    run.resume()
    start = time.monotonic()
    journal = Journal(folder, run.done) if accelerator.is_main_process else None
    if settings.report_to:
        accelerator.init_trackers("fewstep", run.facts["settings"])
    running = math.nan
    try:
        while run.done < settings.max_train_steps or run.pending is not None:
            values = run.pending = run.step() if run.pending is None else run.pending
            last = run.done == settings.max_train_steps
            if task.validate is not None and (last or run.done % settings.validation_steps == 0):
                values = values | run.validated()
            run.pending = None
            if journal is not None:
                journal.add(run.done, values)
            if settings.report_to:
                accelerator.log(values, step=run.done)
            if last or run.done % settings.checkpointing_steps == 0:
                run.keep()
            loss = values["loss"]
            running = loss if math.isnan(running) else running + SMOOTH * (loss - running)
            text = f"loss {running:.4g}"
            if run.best is not None:
                text += f", best {run.best[0]:.4g} at {run.best[1]}"
            progress(run.done, settings.max_train_steps, text)
    except KeyboardInterrupt:
        run.keep()
        raise
    finally:
        if settings.report_to:
            accelerator.end_training()
    accelerator.wait_for_everyone()
    run.finish()
    return Outcome(run.done, time.monotonic() - start, run.best)


class Run:
    """A training under way: after `done` steps, with the `best` validation and its step."""

    def __init__(
        self, task: Task, settings: TrainingSettings, folder: Path, accelerator: Accelerator
    ) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.accelerator = accelerator
        self.module = task.module.to(accelerator.device)
        self.wanted = [each for each in self.module.parameters() if each.requires_grad]
        self.adam = torch.optim.AdamW(
            self.wanted,
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            weight_decay=settings.adam_weight_decay,
            eps=settings.adam_epsilon,
        )
        # Scales the loss where the precision asks for it.
        self.optimizer: Any = accelerator.prepare(self.adam)
        mix = partial(averaging, settings.ema_max_decay)
        self.average = AveragedModel(self.module, multi_avg_fn=mix) if settings.use_ema else None
        self.factor = task.rate or rate(settings, self.adam)
        kept = settings.model_dump(mode="json", exclude=set(FREE))
        world = {"processes": accelerator.num_processes}
        self.facts = {"settings": kept, "task": dict(task.facts), **world}
        self.done = 0
        self.best: tuple[float, int] | None = None
        # Whether parameters, optimizer and average are of the same step.
        self.whole = True
        # The numbers of a step that is done, until its validation is.
        self.pending: dict[str, Any] | None = None

    @property
    def judged(self) -> nn.Module:
        """What is validated: the average, if there is one."""
        return self.module if self.average is None else self.average.module

    def step(self) -> dict[str, Any]:
        """One step; ArithmeticError, with a checkpoint, if it would not be finite."""
        rate = self.settings.learning_rate * self.factor(self.done)
        for group in self.adam.param_groups:
            group["lr"] = rate
        loss, norm = self.gradient()
        scaled = self.accelerator.scaler is not None
        # A scaler tries smaller scales by itself.
        if not (math.isfinite(loss) and (math.isfinite(norm) or scaled)):
            self.keep()
            raise ArithmeticError(
                f"loss {loss:g}, norm of its gradient {norm:g} at step {self.done}: the parameters "
                f"before are in {self.folder}; lower learning_rate, or raise lr_warmup_steps"
            )
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.module)
        self.done, self.whole = self.done + 1, True
        return {"loss": loss, "gradient_norm": norm, "learning_rate": rate}

    def gradient(self) -> tuple[float, float]:
        """Leave the gradient of a step in the parameters; the loss, and the norm before clipping.

        Gradients are averaged here and not by a wrapper of the module, which may be called any
        number of times within a loss.
        """
        accumulated = self.settings.gradient_accumulation_steps
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        parts = accumulated * processes
        total = torch.zeros((), device=self.accelerator.device)
        for k in range(accumulated):
            part = k * processes + rank
            torch.manual_seed(seed_of(self.settings.seed, self.done, part))
            with self.accelerator.autocast():
                loss = self.task.loss(self.module, self.done, part, parts)
            self.accelerator.backward(loss / accumulated)
            total += loss.detach() / accumulated
        for each in self.wanted:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
            each.grad = averaged(self.accelerator, each.grad)
        norm = self.accelerator.clip_grad_norm_(self.wanted, self.settings.max_grad_norm)
        return float(averaged(self.accelerator, total)), float(norm)

    def validated(self) -> dict[str, float]:
        """The numbers of the validation; the best parameters are kept, and a preview drawn."""
        validate, preview = self.task.validate, self.task.preview
        if validate is None:
            return {}
        mode = self.judged.training
        # How often it comes is not to change the noise of the training.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found = dict(validate(self.judged.eval()))
        self.judged.train(mode)
        first = next(iter(found.values()))
        if math.isfinite(first) and (self.best is None or first < self.best[0]):
            self.best = (first, self.done)
            if self.accelerator.is_main_process:
                save_tensors(self.judged.state_dict(), self.folder / BEST)
        if preview is not None and self.accelerator.is_main_process:
            preview(self.judged, self.folder / "previews" / f"{self.done:06d}.png")
        return {f"validation_{name}": value for name, value in found.items()}

    def keep(self) -> None:
        """Write a checkpoint, but not in the moment when its parts are of two steps."""
        if not (self.whole and self.accelerator.is_main_process):
            return
        tensors = {MODEL: self.module.state_dict(), OPTIMIZER: optimizer_tensors(self.adam)}
        if self.average is not None:
            tensors[EMA] = self.average.state_dict()
        if self.task.memory.state_dict():
            tensors[MEMORY] = self.task.memory.state_dict()
        scaler = self.accelerator.scaler
        state = None if scaler is None else scaler.state_dict()
        pending = None if self.pending is None else {k: finite(v) for k, v in self.pending.items()}
        point = Checkpoint(self.done, tensors, self.facts, self.best, state, pending)
        point.save(self.folder, self.settings.checkpoints_total_limit)

    def resume(self) -> None:
        """Go on from a checkpoint, if there is one; ValueError if it is of another training."""
        if self.settings.resume_from_checkpoint == "never" and self.accelerator.is_main_process:
            forget(self.folder)
        self.accelerator.wait_for_everyone()
        path = find(self.folder, self.settings.resume_from_checkpoint)
        if path is None:
            return
        point = Checkpoint.load(path)
        other = differences(point.facts, self.facts)
        if other:
            raise ValueError(
                f"{path} is of a training with other settings ({'; '.join(other)}): take another "
                "folder, or resume_from_checkpoint=never to begin anew"
            )
        restore_module(self.module, point.tensors[MODEL], str(path))
        restore_optimizer(self.adam, point.tensors[OPTIMIZER])
        if self.average is not None:
            restore_module(self.average, point.tensors[EMA], str(path))
        restore_module(self.task.memory, point.tensors.get(MEMORY, {}), str(path))
        if self.accelerator.scaler is not None and point.scaler:
            self.accelerator.scaler.load_state_dict(dict(point.scaler))
        self.done, self.best = point.step, point.best
        self.pending = None if point.pending is None else dict(point.pending)

    def finish(self) -> None:
        """Give the module its result."""
        if self.best is not None:
            restore_module(self.module, load_file(self.folder / BEST), str(self.folder / BEST))
        elif self.average is not None:
            self.module.load_state_dict(self.average.module.state_dict())


@torch.no_grad()
def averaging(most: float, average: Any, newest: Any, count: Any) -> None:
    """average <- d average + (1 - d) newest with d = min(`most`, (1 + n) / (10 + n)), in place.

    The ramp lets early averages forget the parameters that it began with.
    """
    decay = min(most, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(average, newest, 1 - decay)


def averaged(accelerator: Accelerator, value: Tensor) -> Tensor:
    """The mean over processes."""
    return accelerator.reduce(value, "mean") if accelerator.num_processes > 1 else value


def seed_of(seed: int, step: int, part: int) -> int:
    """A seed for what is random within the loss of a part of a step."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {part}".encode()).digest()[:7])


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two nested mappings do not share, as "key: a there, b here"."""
    found = []
    for key in {**there, **here}:
        a, b = there.get(key), here.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b)
        elif a != b:
            found.append(f"{key}: {a} there, {b} here")
    return found
