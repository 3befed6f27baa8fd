"""What a distillation leaves: folders that diffusers and fewstep load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..eval.models import NetworkModel
from ..integrations import TableauScheduler
from ..samplers import Tableau
from ..zoo.edm import EDMNetwork, save_edm

TABLE = "table.json"


def scheduler_of(model: NetworkModel, table: Tableau) -> Any:
    """The diffusers scheduler that samples a model with a table, whatever steps it is asked for."""
    return TableauScheduler.from_config(dict(model.scheduler_config or {}), tableau=table.to_dict())


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

        parts: dict[str, Any] = {"unet": model.network, "scheduler": scheduler_of(model, table)}
        vae = getattr(model.decode, "vae", None)
        kind = DDPMPipeline if vae is None else LDMPipeline
        kind(**parts, **({} if vae is None else {"vqvae": vae})).save_pretrained(folder)
    table.save(folder / TABLE)
