"""What a training or a search leaves: folders that diffusers and fewstep load, and their cards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..samplers import Tableau
from ..storage import environment, write_atomically
from ..zoo.edm import EDMNetwork, save_edm
from .models import NetworkModel

TABLE, CARD = "table.json", "README.md"


def scheduler_of(config: Mapping[str, Any] | None, tables: Mapping[int, Tableau]) -> Any:
    """The diffusers scheduler of a model's `config`, with these tables by number of steps."""
    # Here, because diffusers takes seconds to import.
    from ..integrations import TableauScheduler

    found: dict[str, Any] = {str(nfe): table.to_dict() for nfe, table in tables.items()}
    return TableauScheduler.from_config(
        dict(config or {}), tableau=found if len(found) > 1 else next(iter(found.values()))
    )


def save_scheduler(
    config: Mapping[str, Any] | None, tables: Mapping[int, Tableau], folder: Path
) -> None:
    """Write `folder`/scheduler, which diffusers loads; nothing for a model without a scheduler."""
    if config is not None:
        scheduler_of(config, tables).save_pretrained(folder / "scheduler")


def save_model(model: NetworkModel, table: Tableau, folder: Path) -> None:
    """Write a network and the table that it is for: a pipeline of diffusers, and table.json.

    U-Nets become a DDPMPipeline, those of latents an LDMPipeline; EDM networks a folder as `fewstep
    convert` writes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model.network, EDMNetwork):
        save_edm(model.network, folder)
    else:
        from diffusers import DDPMPipeline, LDMPipeline

        scheduler = scheduler_of(model.scheduler_config, {table.nfe: table})
        parts: dict[str, Any] = {"unet": model.network, "scheduler": scheduler}
        vae = getattr(model.decode, "vae", None)
        kind = DDPMPipeline if vae is None else LDMPipeline
        kind(**parts, **({} if vae is None else {"vqvae": vae})).save_pretrained(folder)
    table.save(folder / TABLE)


def write_card(
    folder: Path,
    title: str,
    text: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    settings: Mapping[str, Any],
    device: torch.device,
) -> Path:
    """Write `folder`/README.md: what it is, its numbers as a table, the settings, the machine."""
    facts = environment(device)
    lines = [
        *(f"# {title}", "", text, ""),
        f"| {' | '.join(head)} |",
        f"| {' | '.join('---:' for _ in head)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
        *("", "Settings:", "", "```json", json.dumps(dict(settings), indent=1), "```", ""),
        f"Machine: {facts['device']}, {facts['threads']} threads, Python {facts['python']}, torch "
        f"{facts['torch']}, fewstep {facts['fewstep']}.",
    ]
    write_atomically(folder / CARD, "\n".join(lines) + "\n")
    return folder / CARD
