from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fewstep.distill.mmd.discrepancy import stratified
from fewstep.distill.mmd.task import real_rows
from fewstep.eval.progress import silent
from fewstep.training import accelerator_for, train
from fewstep.training.loop import seed_of

from ...two_processes import run_script
from .tuned import BLOCK, Affine, images_of, settings, space, task


def gradient(network, parts=1, **options):
    """That of step 3, as the loop would accumulate it."""
    given = task(network, **options)
    network.zero_grad()
    value = 0.0
    for part in range(parts):
        torch.manual_seed(100 + part)
        loss = given.loss(network, 3, part, parts) / parts
        loss.backward()
        value += float(loss.detach())
    return value, torch.cat([each.grad for each in network.parameters()])


def test_the_gradient_through_the_chain_is_that_of_differences():
    network = Affine()
    _, found = gradient(network)
    for parameter, each in zip(network.parameters(), found, strict=True):
        values = []
        for sign in (1, -1):
            parameter.data += sign * 1e-5
            values.append(gradient(network)[0])
            parameter.data -= sign * 1e-5
        assert float(each) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_checkpointed_calls_have_the_same_gradient_with_dropout():
    network = Affine(dropout=0.5)
    with torch.no_grad():
        network.offset += 0.3
    plain = gradient(network)
    again = gradient(network, calls=True)
    assert again[0] == pytest.approx(plain[0], abs=1e-12)
    torch.testing.assert_close(again[1], plain[1], rtol=0, atol=1e-10)
    network.eval()
    assert abs(gradient(network)[0] - plain[0]) > 1e-6


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_with_gathered_features_are_one_batch(parts):
    network = Affine()
    value, whole = gradient(network)
    found = gradient(network, parts)
    assert found[0] == pytest.approx(value, abs=1e-12)
    torch.testing.assert_close(found[1], whole, rtol=1e-9, atol=1e-12)
    alone = gradient(network, parts, gather_features=False)
    assert abs(alone[0] - value) > 1e-4


@pytest.mark.parametrize("gather_features", [True, False])
def test_classes_are_evened_out_in_whole_batches_and_in_parts(gather_features):
    shares = torch.tensor([1.0, 3.0])

    def classes(numbers):
        return torch.tensor([int(number % 3 > 0) for number in numbers]), shares

    network, real = Affine(), space(mean=0.5)
    options = {"classes": classes, "gather_features": gather_features}
    value, whole = gradient(network, **options)
    with torch.no_grad():
        made = images_of(network, 5)(range(48, 64))
    pairs = stratified(classes(range(48, 64)), 16)
    assert value == pytest.approx(float(real.distance(made, real_rows(4000, 2048, 0, 3), pairs)))
    assert abs(gradient(network)[0] - value) > 1e-4
    found = gradient(network, 2, **options)
    if gather_features:
        assert found[0] == pytest.approx(value, abs=1e-12)
        torch.testing.assert_close(found[1], whole, rtol=1e-9, atol=1e-12)
    else:
        assert abs(found[0] - value) > 1e-4


def test_a_memory_joins_the_pairs_of_a_step():
    network, real = Affine(), space(mean=0.5)
    given = task(network, real, memory_steps=2)
    made = []
    for step in range(4):
        network.zero_grad()
        with torch.no_grad():
            network.offset += 0.1
        value = given.loss(network, step, 0, 1)
        value.backward()
        now = images_of(network, 5)(range(16 * step, 16 * step + 16))
        joined = torch.cat([now, *made[-2:]])
        truth = real.distance(joined, real_rows(4000, 2048, 0, step))
        assert float(value) == pytest.approx(float(truth), rel=1e-6)
        scale = len(joined) / 16
        expected = scale * torch.cat(torch.autograd.grad(truth, list(network.parameters())))
        found = torch.cat([each.grad for each in network.parameters()])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
        made.append(now.detach())
    # A step that is made again is the same.
    assert float(given.loss(network, 3, 0, 1)) == pytest.approx(float(value), abs=1e-12)
    # Of parts it is that of the whole.
    whole = task(Affine(), real, memory_steps=2)
    parts = task(Affine(), real, memory_steps=2)
    for step in range(3):
        found = float(whole.loss(None, step, 0, 1))
        assert float(parts.loss(None, step, 0, 4)) == pytest.approx(found, abs=1e-12)
    with pytest.raises(ValueError, match="only of batches that are one"):
        task(Affine(), memory_steps=2, gather_features=False)


def test_classes_are_evened_out_with_those_of_the_memory():
    shares = torch.tensor([1.0, 3.0])

    def classes(numbers):
        return torch.tensor([int(number % 3 > 0) for number in numbers]), shares

    network, real = Affine(), space(mean=0.5)
    given = task(network, real, memory_steps=1, classes=classes)
    given.loss(network, 0, 0, 1)
    value = given.loss(network, 1, 0, 1)
    drawn = [*range(16, 32), *range(16)]
    with torch.no_grad():
        made = images_of(network, 5)(drawn)
    pairs = stratified(classes(drawn), 32)
    truth = real.distance(made, real_rows(4000, 2048, 0, 1), pairs)
    assert float(value) == pytest.approx(float(truth), rel=1e-6)


def test_a_memory_makes_small_discrepancies_less_noisy():
    network = Affine()
    with torch.no_grad():
        found = images_of(network, 5)(range(20_000))
    # Samples as they are to be.
    real = space(mean=float(found.mean()), std=float(found.std()))
    gradients = []
    for steps in (0, 15):
        given = task(network, real, memory_steps=steps)
        found = []
        for step in range(120):
            network.zero_grad()
            given.loss(network, step, 0, 1).backward()
            found.append(torch.cat([each.grad for each in network.parameters()]))
        gradients.append(torch.stack(found[20:]))
    plain, remembered = (each.var(0) for each in gradients)
    assert (remembered < 0.3 * plain).all()


def test_a_training_with_a_memory_goes_on_as_if_it_had_not_stopped(tmp_path):
    chosen = settings(max_train_steps=9, checkpointing_steps=4)

    def run(folder, progress=silent):
        network = Affine()
        train(
            task(network, memory_steps=3), chosen, folder, accelerator_for(chosen, folder), progress
        )
        return [float(each.detach()) for each in network.parameters()]

    def stop(done, total, text):
        if done == 6:
            raise KeyboardInterrupt

    whole = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop)
    assert run(tmp_path / "b") == whole


def test_every_step_has_a_gradient_of_its_own(tmp_path):
    found = []
    for accumulated in (1, 4):
        network, folder = Affine(), tmp_path / str(accumulated)
        chosen = settings(gradient_accumulation_steps=accumulated)
        train(task(network), chosen, folder, accelerator_for(chosen, folder))
        found.append([float(each.detach()) for each in network.parameters()])
    assert found[1] == pytest.approx(found[0], abs=1e-9)


def test_parts_are_made_again_with_the_same_dropout():
    network = Affine(dropout=0.5)
    with torch.no_grad():
        network.offset += 0.3
    real = space(mean=0.5)
    made = []
    for part in range(2):
        torch.manual_seed(seed_of(0, 3, part))
        made.append(images_of(network, 5)(range(48 + part, 64, 2)))
    whole = real.distance(torch.cat(made), real_rows(4000, 2048, 0, 3))
    truth = torch.cat(torch.autograd.grad(whole, list(network.parameters())))
    given = task(network)
    for part in range(2):
        torch.manual_seed(seed_of(0, 3, part))
        (given.loss(network, 3, part, 2) / 2).backward()
    found = torch.cat([each.grad for each in network.parameters()])
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


def fitted(tmp_path, name, learning_rate):
    network = Affine()
    network.bend.requires_grad_(False)
    real = space(name, mean=0.5, std=1.2, count=BLOCK)
    given = task(network, real, steps=3, batch_size=BLOCK)
    chosen = settings(
        max_train_steps=250,
        learning_rate=learning_rate,
        lr_scheduler="linear",
        use_ema=True,
        ema_max_decay=0.98,
    )
    train(given, chosen, tmp_path, accelerator_for(chosen, tmp_path))
    with torch.no_grad():
        found = images_of(network, 3)(range(40_000))
    return float(found.mean()), float(found.std())


def test_a_cubic_kernel_finds_mean_and_deviation(tmp_path):
    assert fitted(tmp_path, "cubic", 0.02) == pytest.approx((0.5, 1.2), rel=0.03)


def test_a_linear_kernel_sees_the_mean_only(tmp_path):
    mean, std = fitted(tmp_path, "linear", 0.03)
    assert mean == pytest.approx(0.5, rel=0.05)
    assert std != pytest.approx(1.2, rel=0.1)


def test_real_images_of_a_step_are_different_ones_and_its_own():
    rows = real_rows(100, 30, 0, 7)
    assert len(set(rows.tolist())) == 30
    assert torch.equal(rows, real_rows(100, 30, 0, 7))
    assert not torch.equal(rows, real_rows(100, 30, 0, 8))
    assert not torch.equal(rows, real_rows(100, 30, 1, 7))


@pytest.mark.parametrize(
    ("options", "parts", "said"),
    [({}, 3, "16 cannot be divided into 3"), ({"batch_size": 4}, 4, "parts of at least 2")],
)
def test_batches_that_cannot_be_divided_are_refused(options, parts, said):
    with pytest.raises(ValueError, match=said):
        gradient(Affine(), parts, **options)


def test_more_real_images_are_less_noise():
    real = space(mean=0.5)
    network = Affine()

    def spread(count):
        given = task(network, real, real_batch_size=count)
        found = []
        for step in range(20):
            # The same samples, so that only the real ones differ.
            loss = given.loss(network, step, 0, 1)
            whole = real.distance(images_of(network, 5)(range(step * 16, step * 16 + 16)), rows)
            found.append(float((loss - whole).detach()))
        return torch.tensor(found).std()

    rows = torch.arange(4000)
    assert spread(4000) < 1e-9
    assert spread(1000) < 0.5 * spread(16)
    assert spread(9999) < 1e-9


SCRIPT = """
import sys
from pathlib import Path
from tuned import Affine, settings, task
from accelerate import Accelerator
from fewstep.training import train
for name, gather in (("with", True), ("without", False)):
    network = Affine()
    accelerator = Accelerator(cpu=True)
    given = task(network, gather_features=gather, accelerator=accelerator)
    train(given, settings(), Path(sys.argv[1]) / name, accelerator)
    if accelerator.is_main_process:
        print(name, *[float(each) for each in network.parameters()])
"""


@pytest.mark.slow
def test_two_processes_that_gather_are_one_with_their_batches(tmp_path):
    lines = run_script(SCRIPT, tmp_path, Path(__file__).parent)
    two = {each[0]: [float(x) for x in each[1:]] for each in lines if each[:1] > ["w"]}
    network = Affine()
    train(task(network), settings(), tmp_path / "one", accelerator_for(settings(), tmp_path))
    one = [float(each.detach()) for each in network.parameters()]
    assert two["with"] == pytest.approx(one, abs=1e-6)
    assert two["without"] != pytest.approx(one, abs=1e-6)
