"""Guidance by name is the guidance that it names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fewstep import grid, samplers
from fewstep.eval.models import Draw, load_model
from fewstep.guides.classifier import NoisyClassifier
from fewstep.guides.named import GUIDANCE, Asked, guided, parsed, sampled, summary
from fewstep.integrations import perturbed
from fewstep.samplers import guidance
from fewstep.schedules.files import to_dict

MODEL = load_model("mnist")
DRAW = Draw(range(3), torch.tensor([3, 8, 1]))
NODE = grid(MODEL.schedule, 6, "uniform").nodes[2]
COND = MODEL.denoiser(DRAW.labels, 3)
FREE = MODEL.denoiser(None, 3)


def made(*texts):
    return guided([parsed(text) for text in texts], MODEL, DRAW)(COND)


def expected():
    weak = replace(COND, network=perturbed(MODEL.network, "mid_block"))
    node = guidance.node_at(MODEL.schedule, 0.5 * MODEL.schedule.t_max)
    plain = guidance.cfg
    return {
        "3": plain(COND, FREE, 3.0),
        "cfg,scale=3": plain(COND, FREE, 3.0),
        "interval,scale=3,low=1,high=2": plain(COND, FREE, guidance.interval(3, 1, 2)),
        "cfg++,strength=.4": plain(COND, FREE, guidance.plus_plus(0.4)),
        "rescaled,scale=3,rescale=.5": guidance.rescaled(COND, FREE, 3.0, 0.5, "eps"),
        "zero-star,zero_steps=0": guidance.zero_star(COND, FREE, 3.0, 0),
        "apg,scale=6,norm=2": guidance.apg(COND, FREE, 6.0, norm=2.0),
        "apg,scale=6,norm=inf,parallel=1": plain(COND, FREE, 6.0),
        "auto,model=mnist,scale=4": COND,
        "pag,layers=mid_block,scale=3": guidance.autoguidance(COND, weak, 3.0),
        "self,scale=.1,time=.5": guidance.self_guided(COND, node, 0.1, range(3)),
        "threshold,quantile=.9": guidance.thresholded(COND, 0.9),
    }


@pytest.mark.parametrize("text", list(expected()))
def test_names_stand_for_guidance(text):
    x = 2 * torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(made(text)(x, NODE), expected()[text](x, NODE))


def test_minority_guides_towards_a_level(tmp_path):
    small = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "norm_num_groups": 4}
    torch.manual_seed(0)
    found = NoisyClassifier(4, to_dict(MODEL.schedule), in_channels=1, **small).eval()
    found.save_pretrained(tmp_path / "classifier")
    x = 2 * torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for level, text in ((3, ""), (1, ",level=1")):
        rule = guidance.classifier(COND, found.towards(level), 50.0)
        named = made(f"minority,folder={tmp_path},scale=50{text}")
        torch.testing.assert_close(named(x, NODE), rule(x, NODE))
    with pytest.raises(ValueError, match="level 4 is not one of 0 to 3"):
        made(f"minority,folder={tmp_path},level=4")


def test_several_are_nested_and_runs_are_those_of_their_denoiser():
    asked = [parsed("interval,scale=4"), parsed("threshold,most=1")]
    table = samplers.build("unipc-2", grid(MODEL.schedule, 4, "uniform"))
    inner = guidance.cfg(COND, FREE, guidance.interval(4.0, 0.3, 5.0))
    x = samplers.noise(table.grid, MODEL.shape, DRAW.seeds)
    with torch.no_grad():
        whole = samplers.sample(guidance.thresholded(inner, 0.995, 1.0), table, x)
    calls = []
    found = sampled(MODEL, table, DRAW, asked, 2, calls.append)
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)
    inside = sum(0.3 * n.alpha < n.sigma <= 5 * n.alpha for n in table.grid.nodes[:-1])
    assert sum(calls) == 3 * (4 + inside)


def test_worse_networks_are_counted():
    table = samplers.build("ddim", grid(MODEL.schedule, 2, "uniform"))
    calls = []
    sampled(MODEL, table, DRAW, [parsed("auto,model=mnist")], on_call=calls.append)
    assert sum(calls) == 3 * 2 * 2


def test_texts_are_read_and_mistakes_are_told():
    assert parsed("2") == Asked("cfg", {"scale": 2.0})
    assert parsed("pag, layers=up_blocks.0, blur=inf") == Asked(
        "pag", {"layers": "up_blocks.0", "blur": float("inf")}
    )
    for text, said in {
        "nothing": "no guidance 'nothing': a number, or cfg",
        "apg,strength=1": "'strength=1' is no option; there is scale=4.0,momentum",
        "apg,scale": "'scale' is no option",
        "apg,scale=much": "scale is a number, not much",
        "cfg,scale=inf": "scale is a finite number, not inf",
        "self,every=1.5": "every is a whole number, not 1.5",
        "minority": "minority needs folder",
    }.items():
        with pytest.raises(ValueError, match=said):
            parsed(text)
    assert all(summary(name).startswith(f"{name},") for name in GUIDANCE)
    assert parsed("1e1") == Asked("cfg", {"scale": 10.0})
    none = guided([parsed("2")], MODEL, replace(DRAW, labels=None))
    with pytest.raises(ValueError, match="give a label"):
        none(FREE)
