"""Learned tables and tuned networks on the bundled digits: what is promised of real networks."""

from __future__ import annotations

import pytest
import torch
from fewstep import samplers
from fewstep.distill.mmd.discrepancy import kernel, mmd2
from fewstep.distill.mmd.finetune import MMDConfig, finetune, images_of
from fewstep.distill.tables import learn_tables
from fewstep.distill.tables.config import TableConfig
from fewstep.distill.tables.lessons import taught
from fewstep.distill.tables.objective import distance
from fewstep.eval.evaluate import outputs_of
from fewstep.eval.extractors import extractor
from fewstep.eval.images import dequantise, quantise
from fewstep.eval.metrics import KernelDistance
from fewstep.eval.models import load_model
from fewstep.eval.sources import in_memory, open_images
from fewstep.schedules import grid
from fewstep.zoo.classifier import ClassifierConfig, train_classifier


@pytest.mark.slow
def test_a_descent_comes_nearer_than_its_start_and_fifteen_solvers(tmp_path):
    model = load_model("mnist")
    values = {
        "model": "mnist", "nfe": [5], "samples": 200, "held_out": 100, "teacher_steps": 40,
        "fitted": False, "steps": 0, "free": "all", "loss": "l2",
        "what": ["weights", "times", "labels"], "train_batch_size": 48, "max_train_steps": 100,
        "learning_rate": 5e-3, "validation_steps": 25,
    }  # fmt: skip
    config = TableConfig.model_validate({**values, "base": "ipndm-2", "spacing": "leading"})
    found = learn_tables(config, model, tmp_path)[5].table
    # By a teacher that begins at the noisiest time, as those of the peers.
    fair = TableConfig.model_validate(values)
    held_out = taught(fair, model, tmp_path / "fair").batches[-1:]
    tables = [
        samplers.build(solver, grid(model.schedule, 5, spacing))
        for solver in ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3")
        for spacing in ("uniform", "karras", "quadratic")
    ]
    best = min(distance(held_out, each) for each in tables)
    start = distance(held_out, samplers.build("ipndm-2", grid(model.schedule, 5, "leading")))
    error = distance(held_out, found)
    assert error <= 0.8 * best
    assert error <= 0.96 * start


@pytest.mark.slow
def test_a_tuned_network_is_better_by_a_judge_and_does_not_copy(tmp_path):
    train_classifier(ClassifierConfig(architecture="lenet", seed=1, epochs=8), tmp_path / "lenet")
    lenet = {"id": "mnist-classifier", "options": {"path": str(tmp_path / "lenet")}}
    config = MMDConfig.model_validate(
        {
            "model": "mnist", "nfe": 5, "solver": "ddim", "judge": "mnist-classifier",
            "spaces": [
                {"features": lenet}, {"features": "pixels", "kernel": "rbf", "weight": 10.0}
            ],
            "train_batch_size": 64, "validation_images": 300, "max_train_steps": 60,
            "learning_rate": 3e-5, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 10,
            "max_grad_norm": 0.5, "use_ema": True, "ema_max_decay": 0.95, "validation_steps": 10,
        }
    )  # fmt: skip
    data = open_images("mnist")
    real = dequantise(data.read(range(data.count))).flatten(1)
    model = load_model("mnist")
    table = samplers.build("ddim", grid(model.schedule, 5, "uniform"))

    def pixels():
        with torch.no_grad():
            made = images_of(config, model, table)(range(10_000, 10_300))
        return dequantise(quantise(made)).flatten(1)

    judge = extractor("mnist-classifier", "cpu")
    features = outputs_of(data, judge).features

    def kernel_distance(table):
        distance = KernelDistance(features)
        with torch.no_grad():
            made = images_of(config, model, table)(range(10_000, 10_300))
        distance.update(outputs_of(in_memory("made", quantise(made)), judge).features)
        return float(distance.compute())

    before = pixels()
    spacings = ("leading", "uniform", "quadratic")
    untuned = [
        kernel_distance(samplers.build("ddim", grid(model.schedule, 5, spacing)))
        for spacing in spacings
    ]
    tuned = finetune(config, model, tmp_path / "out")
    assert kernel_distance(table) <= 0.5 * min(untuned)
    after = pixels()
    name = "judge_kd_mnist-classifier-64"
    assert tuned.after[name] <= 0.55 * tuned.before[name]
    radial = kernel("rbf", 784)
    distances = [float(mmd2(x.double(), real.double(), radial)) for x in (before, after)]
    assert distances[1] <= 0.6 * distances[0]
    near = torch.cdist(after, real).min(1).values.median()
    apart = torch.cdist(real[:300], real).topk(2, 1, largest=False).values[:, 1].median()
    assert float(near) >= 0.9 * float(apart)
