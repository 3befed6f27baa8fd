from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from fewstep import samplers
from fewstep.distill.tables import learn as learn_module
from fewstep.distill.tables.config import TableConfig
from fewstep.distill.tables.learn import key_of, learn_tables, objective_of
from fewstep.distill.tables.lessons import divided, first_batches, pairs, taught
from fewstep.distill.tables.objective import distance
from fewstep.eval.models import Draw
from fewstep.eval.models.networks import edm_model, placed, unet_model
from fewstep.eval.settings import SolverConfig, table_within
from fewstep.samplers.family import FAMILY
from fewstep.schedules import EDM, VPDiscrete, betas, grid
from fewstep.storage import read_json, write_json
from pydantic import ValidationError

from ...eval.models import tiny
from ...eval.models.exact import SHAPE, CurvedNoise, exact

SMALL = {"nfe": [3], "samples": 24, "held_out": 8, "search": 8, "batch_size": 10}
QUICK = {"teacher_steps": 20, "moves": 2, "steps": 2}


def config(**changes):
    return TableConfig.model_validate({"model": "exact", **SMALL, **QUICK, **changes})


def curved():
    return exact(network=CurvedNoise())


def counted():
    """A model, and how many samples its network has seen."""
    model, calls = curved(), []
    model.network.register_forward_hook(lambda m, given, out: calls.append(len(out)))
    return model, calls


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of a run with nothing changed, and the table of 3 evaluations that it found."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, learn_tables(config(), curved(), folder)[3]


def test_learned_tables_are_nearer_than_solvers(tmp_path):
    found = learn_tables(config(nfe=[5, 3]), curved(), tmp_path)
    assert list(found) == [3, 5]
    for nfe, each in found.items():
        assert each.table.nfe == nfe
        assert each.error < each.peer_error
    assert list(samplers.load_family(tmp_path / FAMILY)) == [3, 5]


def test_the_error_is_that_of_samples_that_it_has_not_seen(plain):
    model, each = curved(), plain[1]
    seeds = range(2**31 + 24, 2**31 + 32)
    draw = Draw(seeds, torch.tensor([seed % 3 for seed in seeds]))
    nodes = grid(model.schedule, 20, "uniform")
    noise = samplers.noise(nodes, SHAPE, seeds) / float(nodes.sigma[0])
    denoiser = model.denoiser_of(draw)
    truth = samplers.sample(denoiser, samplers.build("unipc-3", nodes), noise * nodes.sigma[0])
    ours = samplers.sample(denoiser, each.table, noise * each.table.grid.sigma[0])
    assert each.error == pytest.approx(float((ours - truth).square().mean().sqrt()), rel=1e-5)


def test_what_was_learned_is_not_learned_again(plain, tmp_path):
    folder, first = shutil.copytree(plain[0], tmp_path / "plain"), plain[1]
    model, calls = counted()
    again = learn_tables(config(), model, folder)
    assert not calls
    assert again[3].record == first.record
    np.testing.assert_array_equal(again[3].table.weights, first.table.weights)
    # Another number beside it, and another way of learning.
    learn_tables(config(nfe=[3, 4]), model, folder)
    assert sum(calls) > 0
    before = sum(calls)
    learn_tables(config(steps=1), model, folder)
    assert sum(calls) > before


def test_the_batch_size_changes_nothing_but_rounding(plain, tmp_path):
    other = learn_tables(config(batch_size=7), curved(), tmp_path)[3].table
    np.testing.assert_allclose(plain[1].table.weights, other.weights, atol=1e-3)


def test_tables_are_of_the_scale_that_they_were_learned_for(plain, tmp_path):
    guided = learn_tables(config(guidance=3.0), curved(), tmp_path)[3].table
    assert abs(plain[1].table.weights - guided.weights).max() > 1e-2


def test_one_family_serves_a_range_of_guidance_scales(tmp_path):
    changes = {"samples": 60, "held_out": 15, "search": 30, "nfe": [4], "steps": 3}
    several = learn_tables(config(guidance=[1, 2, 4], **changes), curved(), tmp_path / "all")[4]
    assert several.tables.scales == (1.0, 2.5, 4.0)
    path = tmp_path / "all" / FAMILY
    assert not (tmp_path / "all" / "scheduler").exists()
    for scale in (1.0, 3.0, 4.0):
        judge = config(guidance=scale, **{**changes, "samples": 24, "held_out": 24})
        unseen = judge.model_copy(update={"first_seed": 2**31 + 10_000})
        batches = taught(unseen, curved(), tmp_path / f"judge-{scale}").batches
        own = distance(batches, samplers.load_family(path, scale)[4])
        plain = distance(batches, samplers.build("unipc-3", grid(curved().schedule, 4, "uniform")))
        assert own < 0.4 * plain


def test_scales_and_evaluations_rise_and_one_will_do():
    found = config(guidance=["10", "2", 2], nfe="7", samples=30, held_out=9)
    assert (found.guidance, found.nfe) == ((2.0, 10.0), (7,))
    assert (found.scales, found.knots) == ((2.0, 6.0, 10.0), (2.0, 10.0))


def test_batches_are_of_all_scales_in_turn():
    parts = divided(range(10, 40), (1.0, 2.0, 4.0), 8)
    assert [scale for _, scale in parts] == [1.0, 2.0, 4.0] * 2
    assert [row for rows, _ in parts for row in rows] == list(range(10, 40))
    assert max(len(rows) for rows, _ in parts) <= 8
    assert [len(rows) for rows, _ in divided(range(10), (1.0,), 4)] == [3, 3, 4]


def test_the_first_batches_are_for_the_search(tmp_path):
    batches = taught(config(), curved(), tmp_path).batches
    assert [len(each.z) for each in batches] == [8, 8, 8, 8]
    assert (first_batches(batches, 8), first_batches(batches, 24)) == (1, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nfe": []}, "at least 1 item"),
        ({"nfe": [0]}, "nfe"),
        ({"samples": 0}, "samples"),
        ({"what": ["noise"]}, "what"),
        ({"first_seed": 2**32 - 1}, "room for the samples"),
        ({"stepz": 1}, "stepz"),
        ({"guidance": []}, "at least 1 item"),
        ({"guidance": [1, 3], "max_train_steps": 5, "train_batch_size": 4}, "for one guidance"),
        ({"guidance": [1, 2, 3], "search": 2}, "each cover 5 guidance scales"),
        ({"likeness": 1.0}, "name an extractor in features"),
        (
            {"likeness": 1.0, "features": "pixels", "max_train_steps": 5, "train_batch_size": 4},
            "no likeness",
        ),
    ],
)
def test_bad_settings_are_named(changes, said):
    with pytest.raises(ValidationError, match=said):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"solver": "nope"}, "unknown solver"),
        ({"solver": "ddpm"}, "must be deterministic"),
        ({"spacing": "nope"}, "unknown spacing"),
        ({"nfe": [20]}, "a teacher of 20 steps has no nodes for 20"),
        ({"labels": 7}, "label 7"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        learn_tables(config(**changes), curved(), tmp_path)


def test_a_file_of_tables_is_a_solver(tmp_path):
    learn_tables(config(nfe=[3, 4]), curved(), tmp_path)
    path = str(tmp_path / FAMILY)
    table = table_within(curved().schedule, SolverConfig(name=path), 10, "uniform", "zero")
    # Of a run it is called like its folder, and the folder will do.
    assert (table.nfe, table.name) == (4, tmp_path.name)
    again = table_within(curved().schedule, SolverConfig(name=str(tmp_path)), 3, "uniform", "zero")
    assert again.nfe == 3
    with pytest.raises(ValueError, match=r"has tables of VPDiscrete.*, not of EDM"):
        table_within(EDM(), SolverConfig(name=path), 10, "karras", "zero")


def test_a_training_follows_and_what_is_better_is_kept(tmp_path):
    plain = learn_tables(config(fitted=False, steps=0), curved(), tmp_path / "a")[3]
    np.testing.assert_array_equal(
        plain.table.weights,
        samplers.build("unipc-3", grid(curved().schedule, 3, "uniform")).weights,
    )
    changes = {"fitted": False, "steps": 0, "train_batch_size": 12, "validation_steps": 10}
    trained = config(**changes, max_train_steps=40, learning_rate=1e-2)
    assert trained.training.max_train_steps == 40
    found = learn_tables(trained, curved(), tmp_path / "b")[3]
    assert found.error < 0.8 * plain.error
    # A step far too long is not kept.
    wild = config(**changes, max_train_steps=2, learning_rate=10.0)
    kept = learn_tables(wild, curved(), tmp_path / "c")[3]
    assert kept.error == pytest.approx(plain.error)


def test_the_teacher_is_asked_once(tmp_path):
    model, calls = counted()
    taught(config(), model, tmp_path)
    assert sum(calls) == 20 * 32
    taught(config(nfe=[4]), model, tmp_path)
    assert sum(calls) == 20 * 32
    sorted(tmp_path.iterdir())[0].write_bytes(b"damaged")
    taught(config(), model, tmp_path)
    assert sum(calls) == 20 * (32 + 8)


def test_another_teacher_is_not_taken_from_the_files(tmp_path):
    one = taught(config(), curved(), tmp_path).batches[0].states[-1]
    other = taught(config(guidance=2.0), curved(), tmp_path).batches[0].states[-1]
    assert not torch.equal(one, other)
    again = taught(config(), curved(), tmp_path).batches[0]
    assert torch.equal(one, again.states[-1])


def test_a_folder_gathers_what_goes_together(tmp_path):
    learn_tables(config(nfe=[3, 4]), curved(), tmp_path)
    learn_tables(config(nfe=[5], loss="l2"), curved(), tmp_path)
    assert list(samplers.load_family(tmp_path / FAMILY)) == [3, 4, 5]
    card = (tmp_path / "README.md").read_text()
    assert card.count('"loss": "l2"') == 1
    assert "| 3 |" in card
    # Of another scale is another family.
    learn_tables(config(nfe=[3], guidance=2.0), curved(), tmp_path)
    assert list(samplers.load_family(tmp_path / FAMILY)) == [3]


def flow():
    """A U-Net of a flow."""
    pipe = tiny.ddpm()
    law = FlowMatchEulerDiscreteScheduler().config
    return placed(unet_model("flow", pipe.unet, law), torch.float32, "cpu")


def latent():
    pipe = tiny.ldm()
    made = unet_model("ldm", pipe.unet, pipe.scheduler.config, pipe.vqvae)
    return placed(made, torch.float32, "cpu")


@pytest.mark.parametrize(
    ("make", "spacing"),
    [
        (lambda: edm_model("edm", tiny.edm().requires_grad_(False)), "karras"),
        pytest.param(flow, "uniform", marks=pytest.mark.slow),
        (latent, "uniform"),
    ],
)
def test_tables_of_all_kinds_of_models(tmp_path, make, spacing):
    model = make()
    changes = {"spacing": spacing, "features": "pixels", "train_batch_size": 8}
    learning = {"max_train_steps": 3, "learning_rate": 1e-3, "what": ["weights", "times", "labels"]}
    few = {"nfe": [4], "samples": 12, "search": 4, "teacher_steps": 12}
    found = learn_tables(config(**few, **changes, **learning), model, tmp_path)[4]
    assert found.error <= found.peer_error
    assert found.table.grid.schedule == model.schedule
    draw = Draw(range(2), None if model.classes is None else torch.zeros(2, dtype=torch.long))
    assert model.images(found.table, draw).isfinite().all()


def test_features_of_latents_are_those_of_images(tmp_path):
    model = latent()
    settings = config(features="pixels")
    teacher = taught(settings, model, tmp_path)
    objective = objective_of(settings, model, teacher)
    x = teacher.batches[0].states[-1]
    assert objective.features(x).shape[1] == model.decode(x)[0].numel()


def photographs(path, seed=0):
    """A file of real images of the model's shape."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, *SHAPE[1:], 3), dtype=np.uint8)
    np.save(path, pixels)
    return {"id": "exact", "data": str(path)}


def test_sets_are_to_be_like_real_images_or_else_like_the_teachers(tmp_path):
    model, asked = curved(), {"features": "pixels", "likeness": 2.0}
    settings = config(**asked)
    teacher = taught(settings, model, tmp_path)
    ends = torch.cat([batch.states[-1] for batch in teacher.batches])

    plain = objective_of(settings, model, teacher)
    own = plain.wanted(ends).means
    torch.testing.assert_close(plain.moments.expected, own, rtol=1e-5, atol=1e-5)

    data = photographs(tmp_path / "real.npy")
    found = objective_of(config(**asked, model=data), model, teacher)
    real = torch.from_numpy(np.load(data["data"])).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(found.outputs(real).means, found.goal, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.wanted(ends).means, found.goal)
    torch.testing.assert_close(found.wanted(ends).each, plain.wanted(ends).each)
    # Two sets, by far: noise and the samples.
    gap = (plain.outputs(real).means - own).square().sum()
    assert plain.compare(teacher.batches, [b.states[-1] for b in teacher.batches]).loss == 0.03
    losses = [
        each.compare(teacher.batches, [b.states[-1] for b in teacher.batches]).loss
        for each in (found, replace(found, likeness=0.0))
    ]
    assert losses[1] == pytest.approx(0.03)
    assert losses[0] - losses[1] > 0.5 * float(gap)


def test_real_images_decide_a_table_where_it_is_to_be_like_them(tmp_path):
    model, asked = curved(), {"features": "pixels", "likeness": 2.0}
    data = [photographs(tmp_path / f"{seed}.npy", seed) for seed in (0, 1)]
    keys = {key_of(config(**asked, model=each), model) for each in ("exact", *data)}
    assert len(keys) == 3
    unlike = {key_of(config(features="pixels", model=each), model) for each in ("exact", *data)}
    assert len(unlike) == 1


def test_nodes_are_chosen_without_likeness_and_refined_with_it(tmp_path, monkeypatch):
    told = {}

    def watch(name):
        own = getattr(learn_module, name)

        def watched(*given, **options):
            told[name] = options["objective"].likeness
            return own(*given, **options)

        monkeypatch.setattr(learn_module, name, watched)

    watch("place")
    watch("refine")
    learn_tables(config(features="pixels", likeness=2.0), curved(), tmp_path)
    assert told == {"place": 0.0, "refine": 2.0}


CHANGES = [
    {"solver": "dpmpp-2m"}, {"teacher_steps": 21}, {"spacing": "karras"}, {"samples": 25},
    {"held_out": 9}, {"search": 9}, {"first_seed": 5}, {"labels": 1}, {"guidance": 2.0},
    {"base": "ddim"}, {"fitted": False}, {"moves": 3}, {"steps": 3}, {"sketch": 11},
    {"what": ["weights"]}, {"free": "all"}, {"loss": "l2"}, {"eps": 0.1}, {"features": "pixels"},
    {"feature_weight": 0.3}, {"ball": 0.1}, {"batch_size": 11}, {"degree": 1},
    {"train_batch_size": 8}, {"learning_rate": 1e-2}, {"max_train_steps": 9},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_all_that_decides_a_table_decides_its_key(change):
    model = curved()
    training = {"max_train_steps": 5, "train_batch_size": 4}
    if "guidance" in change:
        training = {"train_batch_size": 4}
    plain = config(**training)
    assert key_of(config(**training), model) == key_of(plain, model)
    assert key_of(config(**{**training, **change}), model) != key_of(plain, model)


def test_weights_and_law_decide_the_key_and_how_it_is_kept_does_not():
    model, plain = curved(), config(max_train_steps=5, train_batch_size=4)
    key = key_of(plain, model)
    with torch.no_grad():
        other = curved()
        other.network.means += 0.1
    assert key != key_of(plain, other)
    law = replace(curved(), schedule=VPDiscrete(betas("scaled_linear")))
    assert key != key_of(plain, law)
    kept = config(max_train_steps=5, train_batch_size=4, checkpointing_steps=7, nfe=[3, 9])
    assert key == key_of(kept, model)


def test_pairs_have_the_labels_of_their_samples(tmp_path):
    settings, model = config(), curved()
    batches = taught(settings, model, tmp_path).batches
    found = pairs(settings, model, batches)
    node = grid(model.schedule, 3, "uniform").nodes[0]
    whole = torch.cat([batch.denoiser(batch.z, node) for batch in batches])
    index = torch.tensor([13, 2, 30])
    torch.testing.assert_close(found.denoiser(index)(found.z[index], node), whole[index])
    ends = torch.cat([batch.states[-1] for batch in batches])
    assert torch.equal(found.ends[index], ends[index])


@pytest.mark.parametrize("solver", ["heun", "dpm-2"])
def test_a_teacher_with_stages_is_refused(tmp_path, solver):
    with pytest.raises(ValueError, match="has stages"):
        learn_tables(config(solver=solver), curved(), tmp_path)


def test_a_stopped_refinement_goes_on_where_it_was(tmp_path, monkeypatch):
    wanted = config(nfe=[4], steps=4)
    (whole,) = learn_tables(wanted, curved(), tmp_path / "whole").values()

    def stop(done, total, text):
        if total == 4 and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_tables(wanted, curved(), tmp_path / "parts", stop)

    def again(*args, **kwargs):
        raise AssertionError("nodes are known")

    (kept,) = (tmp_path / "parts").glob("training-*/refinement.json")
    so_far = read_json(kept)
    assert so_far["state"]["step"] == 1
    write_json(kept, {**so_far, "seconds": 1000.0})
    monkeypatch.setattr(learn_module, "place", again)
    (found,) = learn_tables(wanted, curved(), tmp_path / "parts").values()
    np.testing.assert_array_equal(found.table.weights, whole.table.weights)
    np.testing.assert_array_equal(found.table.grid.time, whole.table.grid.time)
    assert found.error == whole.error
    assert found.record["seconds"] > 1000
