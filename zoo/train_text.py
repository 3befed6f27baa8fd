"""Training of the bundled text model."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..training import Task, TrainingSettings, accelerator_for, share, train
from .text import TextConfig, TextNetwork, bound, held_out_bits, masked, read_text, windows


def train_text(
    config: TextConfig,
    out: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Path:
    """Train the network of `config`; weights (float16), config and bound in `out`/model.

    Resumed, on several processes or not, as `training.train` says: every process draws the whole
    batch of a step, and takes its share of it.
    """
    settings = TrainingSettings(
        seed=config.seed,
        max_train_steps=config.steps,
        learning_rate=config.learning_rate,
        lr_warmup_steps=min(20, config.steps // 10),
        adam_beta2=0.99,
        adam_weight_decay=1e-2,
        checkpointing_steps=500,
    )
    accelerator = accelerator_for(settings, out)
    text = read_text(config.data)
    torch.manual_seed(config.seed)
    network = TextNetwork(config.width, config.dilations)

    def part_loss(module: nn.Module, step: int, part: int, parts: int) -> Tensor:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        last = len(text.train) - config.length
        starts = torch.randint(last + 1, (config.batch_size,), generator=generator)
        x0 = windows(text.train, config.length, starts)
        batch = (x0, *masked(x0, generator))
        own = share(config.batch_size, part, parts)
        return bound(module, *(each[own].to(accelerator.device) for each in batch))

    facts = {**config.model_dump(mode="json"), "sha256": text.sha256}
    train(Task(network, part_loss, facts=facts), settings, out, accelerator, progress)
    folder = out / "model"
    if accelerator.is_main_process:
        network.cpu().eval()
        half = {name: each.half() for name, each in network.state_dict().items()}
        network.load_state_dict(half)
        card = {
            "config": config.model_dump(mode="json"),
            "held_out_bits": round(held_out_bits(network, text, config.length), 3),
            "sha256": text.sha256,
            "python": platform.python_version(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(half, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    accelerator.wait_for_everyone()
    return folder
