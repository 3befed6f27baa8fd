"""`fewstep steer`: drivers on the bundled digits, few steps each."""

from __future__ import annotations

import json

import pytest
import torch
from fewstep import cli, grid, samplers
from fewstep.cli import console
from fewstep.eval.images import load_image
from fewstep.eval.models import load_model
from fewstep.eval.models.pipeline import PipelineModel
from fewstep.eval.rewards import reward_of
from fewstep.guides.named import parsed
from fewstep.guides.steered import placed, steerable
from fewstep.integrations import pipeline_denoiser
from fewstep.samplers import guidance
from fewstep.steering import DRIVERS, load_tree
from rich.console import Console
from typer.testing import CliRunner

from ..eval.models import tiny

ABOUT = ("model", "label", "prompt", "guidance", "reward", "weights")
FEW = ("--nfe", 4, "--levels", 2, "--device", "cpu", "--together", 2)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr(console, "out", Console(width=200))
    monkeypatch.setattr(console, "err", Console(width=200, stderr=True))


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("driver", list(DRIVERS))
def test_every_driver_spends_its_budget(driver, tmp_path):
    options = ("--reward", "-30*brightness", "--budget", 24, "--count", 2, "--out", tmp_path)
    said = run("steer", driver, *options, *FEW)
    found = json.loads((tmp_path / "steered.json").read_text())
    # A rollout of dts-star is four of the 4 evaluations.
    assert 15 <= found["evaluations"] <= (32 if driver == "dts-star" else 30)
    assert len(found["rewards"]) == 2
    assert f"by {found['evaluations']} evaluations of the denoiser" in said
    assert found["network_calls"] == found["evaluations"]
    # Two digits, 2 pixels around each, doubled.
    assert load_image(tmp_path / "images.png").shape == (1, 64, 124)
    table = {"name": "ddpm", "nfe": 4, "spacing": "uniform", "levels": [0, 2]}
    assert found["table"] == table


def test_rewards_are_those_of_the_images_and_more_is_better(tmp_path):
    options = ("--reward", "class:7", "--count", 1, "--seed", 3, *FEW)
    found = []
    for budget in (4, 40):
        run("steer", "best-of", *options, "--budget", budget, "--out", tmp_path / str(budget))
        found.append(json.loads((tmp_path / str(budget) / "steered.json").read_text()))
    assert found[1]["rewards"][0] > found[0]["rewards"][0]
    pixels = load_image(tmp_path / "40" / "images.png")[:, ::2, ::2][:, 2:30, 2:30]
    again = reward_of("class:7")(pixels[None] / 127.5 - 1)
    assert float(again) == pytest.approx(found[1]["rewards"][0], abs=0.05)


def test_a_tree_grows_on(tmp_path):
    tree, options = tmp_path / "tree", ("--reward", "contrast", "--seed", 1, *FEW)
    run("steer", "dts", *options, "--budget", 30, "--out", tmp_path / "whole")
    for budget in (12, 30):
        run("steer", "dts", *options, "--budget", budget, "--tree", tree, "--out", tmp_path / "cut")
    whole, cut = (
        json.loads((tmp_path / name / "steered.json").read_text()) for name in ("whole", "cut")
    )
    # Rollouts that go together differ where it was cut: other last digits.
    assert cut["rewards"] == pytest.approx(whole["rewards"], abs=1e-4)
    assert cut["evaluations"] == whole["evaluations"]
    chain = steerable(load_model("mnist"), "ddpm", 4, levels=2).chain
    about = json.dumps({k: cut[k] for k in ABOUT}, sort_keys=True)
    assert load_tree(tree, chain, about).evaluations == cut["evaluations"]
    said = run("steer", "dts-star", *options, "--tree", tree, "--out", tmp_path / "x", code=2)
    assert "has grown by other rules" in said
    for other in (("--label", 4), ("--reward", "class:1")):
        again = (*options, "--tree", tree, "--out", tmp_path / "x")
        assert "it is about" in run("steer", "dts", *again, *other, code=2)


def test_an_interrupted_tree_is_kept(tmp_path, monkeypatch):
    from fewstep.cli import steer

    def stopping(specs, device):
        calls = []

        def reward(images):
            calls.append(1)
            # Each of two levels is looked at, and what comes out of it.
            if len(calls) == 7:
                raise KeyboardInterrupt
            return images.mean((1, 2, 3))

        return reward

    monkeypatch.setattr(steer, "total_reward", stopping)
    options = ("--reward", "contrast", "--budget", 60, "--tree", tmp_path / "tree", *FEW)
    run("steer", "dts", *options, "--out", tmp_path / "x", code=4)
    chain = steerable(load_model("mnist"), "ddpm", 4, levels=2).chain
    said = {"model": "mnist", "label": None, "prompt": None, "guidance": []}
    said |= {"reward": ["contrast"], "weights": load_model("mnist").fingerprint}
    about = json.dumps(said, sort_keys=True)
    assert load_tree(tmp_path / "tree", chain, about).iterations == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("everything", "--reward", "contrast"), "no driver 'everything': there is best-of"),
        (("smc",), "say what samples are to be good at"),
        (("smc", "--reward", "contrast", "--tree", "x"), "smc grows none"),
        (("smc", "--reward", "beauty"), "no reward 'beauty': there is brightness"),
        (("smc", "--reward", "class:10"), "a class is 0 to 9"),
        (("smc", "--reward", "x*contrast"), "no reward 'x*contrast'"),
        (("smc", "--reward", "json:nothing"), "no such function"),
        (
            ("smc", "--reward", "contrast", "--budget", "2"),
            "not enough for 1 x 4: so many runs",
        ),
        (("smc", "--reward", "contrast", "--label", "10"), "label 10 is not one of the 10"),
        (("smc", "--reward", "contrast", "--guidance", "2"), "towards a class: give a label"),
        (("smc", "--reward", "contrast", "--levels", "9"), "levels: 1 to 4 for 4 steps"),
        (("smc", "--reward", "contrast", "--levels", "a"), "a number, or nodes such as"),
    ],
)
def test_what_is_wrong_is_said(options, said):
    # Of an option that is given twice the last counts.
    assert said in run("steer", *FEW, *options, code=2)


@pytest.mark.parametrize("solver", ["sde-dpmpp-2m", "unipc-2"])
def test_pipelines_are_driven_with_their_prompt(solver):
    pipe = tiny.stable_diffusion()
    model = PipelineModel("tiny", pipe, (4, 8, 8), ("a digit",))
    found = steerable(model, solver, 4, levels=2, label=0, asked=[parsed("3")])
    best = DRIVERS["best-of"].run(
        found.chain, lambda x: reward_of("contrast")(found.images(x)), 3 * found.chain.table.nfe
    )
    alone = pipeline_denoiser(pipe, prompt=["a digit"], guidance_scale=3.0)
    assert found.images(best.x).shape == (1, 3, 16, 16)
    node = found.chain.table.grid.nodes[1]
    with torch.no_grad():
        assert torch.equal(found.chain.denoiser(1)(best.x, node), alone(best.x, node))
    with pytest.raises(ValueError, match="takes a guidance scale alone"):
        steerable(model, solver, 4, levels=2, asked=[parsed("apg")])


def test_a_chain_is_of_the_guided_model():
    """Of a label, guided; a deterministic solver restarts at its levels."""
    model = load_model("mnist")
    found = steerable(model, "unipc-2", 6, levels=3, label=4, asked=[parsed("3")])
    assert [*found.chain.levels] == found.chain.table.meta["levels"]
    assert len(found.chain.levels) == 3
    assert found.chain.table.name == "unipc-2-restarted"
    node = grid(model.schedule, 6, "uniform").nodes[1]
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([4, 4])
    rule = guidance.cfg(model.denoiser(labels, 2), model.denoiser(None, 2), 3.0)
    with torch.no_grad():
        torch.testing.assert_close(found.chain.denoiser(2)(x, node), rule(x, node))
    stages = samplers.build("dpm-2-ancestral", grid(model.schedule, 4, "uniform"))
    assert all(not stages.grid.stage[k] for k in placed(2, stages))
