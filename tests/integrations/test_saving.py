"""Schedulers in files, in folders of pipelines, and copied."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import diffusers
import fewstep
import numpy as np
import pytest
import torch
from fewstep import TableauScheduler, samplers

from .peers import SD, finish, network, start


def test_a_saved_scheduler_is_the_same_one(tmp_path):
    scheduler = TableauScheduler(**SD, solver="unipc-3", spacing="karras")
    scheduler.save_pretrained(tmp_path)
    again = TableauScheduler.from_pretrained(tmp_path)
    for each in (scheduler, again):
        each.set_timesteps(5)
    x = start(scheduler)
    assert torch.equal(finish(scheduler, x), finish(again, x))


def test_copies_run_alone():
    scheduler = TableauScheduler(**SD, solver="unipc-2")
    scheduler.set_timesteps(4)
    x, t = start(scheduler), scheduler.timesteps[0]
    x = scheduler.step(network(x, t), t, x).prev_sample
    copies = [copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    results = [finish(each, x, 1) for each in (*copies, scheduler)]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])
    # A fresh run from there, without the history, is another one.
    scheduler.set_begin_index(1)
    scheduler.restart()
    assert not torch.allclose(finish(scheduler, x, 1), results[2])


def test_tables_travel_in_the_config(tmp_path):
    """A folder with tables by their number of steps is a complete scheduler."""
    schedule, _ = samplers.from_diffusers_config(SD)
    tables = {n: samplers.build("ab-4", fewstep.grid(schedule, n, "lam")) for n in (4, 6)}
    held = {str(n): table.to_dict() for n, table in tables.items()}
    TableauScheduler(**SD, tableau=held).save_pretrained(tmp_path)
    assert "weights" in json.loads((tmp_path / "scheduler_config.json").read_text())["tableau"]["4"]
    scheduler = TableauScheduler.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="4, 6 evaluations, not 5"):
        scheduler.set_timesteps(5)
    scheduler.set_timesteps(6)
    named = TableauScheduler(**SD, solver="ab-4", spacing="lam")
    named.set_timesteps(6)
    x = start(scheduler)
    torch.testing.assert_close(finish(scheduler, x), finish(named, x), rtol=1e-4, atol=1e-5)


LOAD = """
import torch
from diffusers import DDPMPipeline
try:
    DDPMPipeline.from_pretrained({folder!r})
except Exception as error:
    print(error)
import fewstep
import numpy as np
pipe = DDPMPipeline.from_pretrained({folder!r})
pipe.set_progress_bar_config(disable=True)
images = pipe(2, torch.Generator().manual_seed(1), 3, output_type="np").images
print(type(pipe.scheduler).__name__, float(images.sum()))
"""


def test_a_pipeline_loads_where_fewstep_is_imported(tmp_path):
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
    )
    scheduler = TableauScheduler.from_config(
        diffusers.DDPMScheduler(clip_sample=False).config, solver="dpmpp-2m"
    )
    pipe = diffusers.DDPMPipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["fewstep", "TableauScheduler"]
    images = pipe(2, torch.Generator().manual_seed(1), 3, output_type="np").images
    code = LOAD.format(folder=str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    forgotten, loaded = ran.stdout.strip().rsplit("\n", 1)
    assert "import fewstep before calling" in forgotten
    kind, total = loaded.split()
    assert kind == "TableauScheduler"
    assert float(total) == pytest.approx(float(images.sum()), abs=1e-4)


def test_placed_nodes_are_saved_with_the_scheduler(tmp_path):
    law = fewstep.schedules.VPDiscrete(
        fewstep.schedules.betas("scaled_linear", 1000, 0.00085, 0.012)
    )
    nodes = fewstep.grid(law, 4, "quadratic")
    fewstep.schedules.Placed.of(nodes).save(tmp_path / "run" / "spacing.json")
    scheduler = TableauScheduler(**SD, solver="unipc-3", spacing=str(tmp_path / "run"))
    for given in (tmp_path / "run", fewstep.schedules.Placed.of(nodes)):
        assert (
            TableauScheduler(**SD, spacing=given).config["spacing"] == scheduler.config["spacing"]
        )
    with pytest.raises(ValueError, match="a config holds a name or placed nodes"):
        TableauScheduler(**SD, spacing=fewstep.schedules.SPACINGS["karras"])
    (tmp_path / "run" / "spacing.json").unlink()
    scheduler.save_pretrained(tmp_path)
    again = TableauScheduler.from_pretrained(tmp_path)
    again.set_timesteps(4)
    np.testing.assert_allclose(again.timesteps, nodes.time[:-1], atol=0.01)
    again.set_timesteps(9)
    assert len(again.timesteps) == 9


def test_changes_of_a_solver_travel_in_the_config(tmp_path):
    """Ratios by number and by name, and what is moved on, are those of the table that is built."""
    for change in ({"compensate": [1, 1, 0.8, 1.2, 1.1]}, {"dualfast": 0.2}):
        folder = tmp_path / next(iter(change))
        TableauScheduler(
            **SD, solver="unipc-3", spacing="lam", solver_options=change
        ).save_pretrained(folder)
        scheduler = TableauScheduler.from_pretrained(folder)
        scheduler.set_timesteps(5)
        schedule, _ = samplers.from_diffusers_config(SD)
        table = samplers.build("unipc-3", fewstep.grid(schedule, 5, "lam"), **change)
        ours = scheduler._plan.table.in_basis("x0")
        np.testing.assert_allclose(ours.weights, table.weights, atol=1e-6)
    # A file of one number of steps is no reason to refuse runs of that many.
    samplers.Ratios({(5, 1.0): (1, 1, 0.8, 1.2, 1.1)}).save(tmp_path / "ratios.json")
    alone = TableauScheduler(
        **SD, solver="unipc-3", solver_options={"compensate": str(tmp_path / "ratios.json")}
    )
    alone.set_timesteps(5)
    with pytest.raises(FileNotFoundError, match="no ratios in sd3"):
        TableauScheduler(**SD, solver="unipc-3", solver_options={"compensate": "sd3"})
    named = {"compensate": {"ratios": "sd21", "guidance": 7.5}}
    scheduler = TableauScheduler(**SD, solver="unipc-3", solver_options=named)
    scheduler.set_timesteps(10)
    assert finish(scheduler, start(scheduler)).isfinite().all()
    with pytest.raises(ValueError, match=r"strenght.*compensate, dualfast, analytic_first_step"):
        TableauScheduler(**SD, solver="unipc-3", solver_options={"dualfast": {"strenght": 1}})
