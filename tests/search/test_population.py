from __future__ import annotations

from dataclasses import replace

import diffusers
import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.eval.models import Draw, edm_model, unet_model
from fewstep.eval.models.model import counting
from fewstep.eval.models.networks import dtype_of
from fewstep.samplers.denoiser import several
from fewstep.schedules import EDM, Grid
from fewstep.search.population import population_images, shared
from fewstep.search.presets import correcting
from fewstep.search.schedule import SolverSchedule, Step, Update
from fewstep.search.space import Space

from ..eval.models import tiny

# In float64 a network gives in any batch what it gives alone, to the rounding of the states.
DRAW = Draw(range(3, 8), torch.tensor([3, 1, 0, 2, 2]))
CONFIG = {"beta_schedule": "scaled_linear", "clip_sample": False}


def unet(prediction="epsilon", vae=None):
    torch.manual_seed(0)
    network = tiny.unet(channels=4 if vae else 3, num_class_embeds=5).double()
    return unet_model("tiny", network, {**CONFIG, "prediction_type": prediction}, vae)


def edm():
    torch.manual_seed(0)
    return edm_model("tiny", tiny.edm(label_dim=4))


MODELS = {
    "eps": unet,
    "v": lambda: unet("v_prediction"),
    "x0": lambda: unet("sample"),
    "latents": lambda: unet(vae=tiny.vae().double()),
    "edm": edm,
    "edm-unet": lambda: unet_model(
        "tiny",
        tiny.unet(num_class_embeds=5).double(),
        diffusers.EDMDPMSolverMultistepScheduler().config,
    ),
}


def population(model, nfe=5):
    """Published solvers and drawn ones, with as many evaluations but not as many nodes."""
    grid = fewstep.grid(model.schedule, nfe, "karras")
    found = [samplers.build(name, grid) for name in ("ddim", "unipc-3", "ab-3", "dpmpp-2m")]
    space = Space(model.schedule, nfe, order=2, marks=10, free_starts=(False, True))
    rng = np.random.default_rng(0)
    return [*found, *(space.drawn(rng).tableau(model.schedule) for _ in range(3))]


def close(found, tables, model, draw):
    assert found.shape[:2] == (len(tables), len(draw.seeds))
    for ours, table in zip(found, tables, strict=True):
        theirs = model.images(table, draw)
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype == torch.float32
        # In float32 a random network makes 1e-5 of what batches of other sizes round off.
        bound = 1e-6 if dtype_of(model.network) == torch.float64 else 1e-4
        bound *= max(1.0, float(theirs.abs().max()))
        assert (ours - theirs).abs().max() <= bound


@pytest.mark.parametrize(("name", "guidance"), [*((name, 1.0) for name in MODELS), ("v", 2.0)])
def test_a_population_is_its_tables_one_by_one(name, guidance):
    model = MODELS[name]()
    tables, draw = population(model), replace(DRAW, guidance=guidance)
    assert len({table.grid.nfe for table in tables}) > 1
    close(population_images(model, tables, draw, 7), tables, model, draw)


def test_stochastic_tables_draw_what_they_would_alone():
    model = unet()
    grid = fewstep.grid(model.schedule, 4, "karras")
    tables = [samplers.build(name, grid) for name in ("sde-dpmpp-2m", "ddim", "ddpm")]
    close(population_images(model, tables, DRAW), tables, model, DRAW)


def test_each_start_has_its_own_scale():
    model = edm()
    grids = [fewstep.grid(EDM(0.002, top), 4, "karras") for top in (80.0, 20.0)]
    same = [replace(grid, schedule=model.schedule) for grid in grids]
    tables = [samplers.build("dpmpp-2m", grid) for grid in same]
    close(population_images(model, tables, DRAW), tables, model, DRAW)


def evaluated(model, tables, at_once=64, draw=DRAW):
    """The sizes of the batches that the network gets."""
    sizes = []
    with counting(model.network, sizes.append):
        population_images(model, tables, draw, at_once)
    return sizes


def test_the_network_is_asked_once_for_what_is_shared():
    model = unet()
    law, grid = model.schedule, fewstep.grid(model.schedule, 4, "karras")
    times = tuple(grid.time)
    first = SolverSchedule(times, (Step(),) * 4)
    # The first step of all goes to one time, and of order 1 it is one in x0 and in eps.
    second = replace(first, steps=(Step("eps"), Step("x0", Update(0, ((1,),))), Step(), Step()))
    # A corrector comes to bear after the next evaluation.
    third = replace(first, steps=(Step("x0", Update(), correcting(Update())), *first.steps[1:]))
    other = replace(
        first, times=(times[0], *np.mean([times[:-2], times[1:-1]], 0)[1:], *times[-2:])
    )
    tables = [each.tableau(law) for each in (first, second, third, other)]
    assert [list(node.values()) for node in shared(tables)] == [
        [[0, 1, 2, 3]],
        [[0, 1, 2], [3]],
        [[0], [1], [2], [3]],
        [[0], [1], [2], [3]],
    ]
    assert sum(evaluated(model, tables)) == 5 * (1 + 2 + 4 + 4)
    close(population_images(model, tables, DRAW), tables, model, DRAW)
    # The same table costs nothing again, and another start everything.
    assert sum(evaluated(model, [tables[0]] * 3)) == 5 * 4
    shifted = samplers.build("ddim", fewstep.grid(law, 4, "karras", t_max=900.0))
    assert sum(evaluated(model, [tables[0], shifted])) == 5 * 8


@pytest.mark.parametrize("what", ["carry", "weights", "noise", "label"])
def test_any_difference_ends_what_is_shared(what):
    """Also of tables that are no solver's: in one number, or in what the network is told."""
    grid = fewstep.grid(unet().schedule, 3, "karras")
    one = samplers.build("ddpm", grid)
    if what == "label":
        other = replace(one, grid=replace(grid, label=np.add(grid.label, [0, 1, 0, 0])))
    else:
        changed = getattr(one, what).copy()
        changed[(0, 0)[: changed.ndim]] += 0.01
        other = replace(one, **{what: changed})
    assert [len(asking) for asking in shared([one, other])] == [1, 2, 2]
    assert [len(asking) for asking in shared([one, replace(one)])] == [1, 1, 1]


def test_a_bias_is_a_difference():
    model = unet()
    plain = samplers.build("ddim", fewstep.grid(model.schedule, 3, "karras"))
    moved = replace(plain, bias=[0.0, 0.5, 0.0])
    assert [list(node.values()) for node in shared([plain, moved])] == [
        *([[0, 1]], [[0, 1]], [[0], [1]])
    ]
    close(population_images(model, [plain, moved], DRAW), [plain, moved], model, DRAW)


def test_a_free_start_asks_nothing():
    model = unet()
    steps = (Step(),) * 3
    free = SolverSchedule((999.0, 600.0, 200.0, -1.0), steps, True)
    tables = [each.tableau(model.schedule) for each in (free, replace(free, free_start=False))]
    assert sum(evaluated(model, tables[:1])) == 5 * 2
    assert sum(evaluated(model, tables)) == 5 * (1 + 4)


def test_batches_are_full_and_even():
    model = unet()
    tables = population(model)[:4]
    assert max(evaluated(model, tables, 4)) <= 4
    # Nine tables at most and five samples: never a batch with a rest of one.
    sizes = evaluated(model, population(model), 6)
    assert max(sizes) <= 6
    assert min(sizes) >= 5


def test_tables_must_be_on_the_schedule_of_the_model():
    model = unet()
    with pytest.raises(ValueError, match="0 tables"):
        population_images(model, [], DRAW)
    with pytest.raises(ValueError, match="0 samples at once"):
        population_images(model, population(model)[:1], DRAW, 0)
    foreign = samplers.build("ddim", fewstep.grid(EDM(), 3))
    with pytest.raises(ValueError, match=r"ddim.* not on the noise schedule of tiny"):
        population_images(model, [foreign], DRAW)


def test_nodes_of_one_batch_have_one_schedule():
    x = torch.zeros(2, 3, 4, 4)
    one, other = Grid.from_sigmas([3.0, 1.0]).nodes[0], Grid.from_sigmas([2.0, 1.0]).nodes[0]
    both = several([one, other], x)
    assert both.sigma.flatten().tolist() == [3.0, 2.0]
    assert both.sigma.shape == both.label.shape == (2, 1, 1, 1)
    for bad in (replace(other, schedule=None), replace(other, schedule=EDM(0.01, 10.0))):
        with pytest.raises(ValueError, match="one noise schedule"):
            several([one, bad], x)
