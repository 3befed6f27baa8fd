from __future__ import annotations

import json
import math
from importlib.resources import files

import pytest
import torch
from fewstep import configs, zoo
from fewstep.cli.tasks import train
from fewstep.discrete import build, nodes, sample, start
from fewstep.discrete.chains import bigrams
from fewstep.zoo import text as module
from fewstep.zoo.text import (
    KERNEL,
    Text,
    TextConfig,
    TextNetwork,
    bound,
    decode,
    encode,
    held_out_bits,
    load_text_model,
    masked,
    read_text,
    windows,
)
from fewstep.zoo.train_text import train_text

CARD = json.loads((files("fewstep.zoo") / "pydoc" / "config.json").read_text())


def conditional_bits(tokens, order):
    """Entropy of a character given the `order` - 1 before it, in the text itself."""

    def entropy(n):
        code = sum(tokens[i : len(tokens) - n + 1 + i] * 27**i for i in range(n))
        shares = code.unique(return_counts=True)[1] / (len(tokens) - n + 1)
        return -float((shares * shares.log2()).sum())

    return entropy(order) - (entropy(order - 1) if order > 1 else 0)


def test_the_packaged_settings_are_the_defaults_and_those_of_the_card():
    values = configs.read(configs.find("train", "text"))
    assert values.pop("task") == "text"
    assert TextConfig(**values) == TextConfig() == TextConfig(**CARD["config"])


def test_encoding():
    tokens = encode("A  zoo,\n42 of b's!")
    assert tokens[:3].tolist() == [1, 0, 26]
    assert decode(tokens) == "a zoo of b s "
    assert decode(torch.tensor([1, 27, 0])) == "a_ "


def test_the_text_is_read_in_two_shares():
    text = read_text()
    whole = len(text.train) + len(text.held_out)
    assert 0.08 < len(text.held_out) / whole < 0.12
    assert len(text.sha256) == 64
    # English: neither few letters nor all alike.
    assert 3.9 < conditional_bits(text.train, 1) < 4.2
    assert 2 < conditional_bits(text.train, 3) < 2.7
    assert "the" in decode(text.held_out).split()


def test_another_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(97 + k % 26) for k in range(25 * 2048)))
    text = read_text(str(path))
    assert len(text.held_out) == 2 * 2048
    # The tenth block and the twentieth.
    assert text.held_out[0] == 9 * 2048 % 26 + 1
    assert text.held_out[2048] == 19 * 2048 % 26 + 1
    assert len(text.train) == 23 * 2048
    path.write_text("too short")
    with pytest.raises(ValueError, match="has 9 letters, too few"):
        read_text(str(path))
    with pytest.raises(ValueError, match=r"cannot read the text .*missing"):
        read_text(str(tmp_path / "missing"))


def test_a_python_without_the_text_says_so(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="path of a text file"):
        read_text()


class Unigrams(torch.nn.Module):
    """The same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return self.logits.expand(*x.shape, 27)


def test_the_bound_of_a_law_without_context_is_its_cross_entropy():
    """Each character is masked as often as its weight is small."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(27, (20000, 8), generator=generator)
    logits = torch.randn(27, generator=generator)
    found = bound(Unigrams(logits), x0, *masked(x0, generator))
    expected = -logits.log_softmax(0).mean()
    assert float(found) == pytest.approx(float(expected), rel=0.02)


def test_masks_fill_every_stratum_of_time():
    x0 = torch.zeros(1000, 500, dtype=torch.long)
    x, time = masked(x0, torch.Generator().manual_seed(0))
    assert (time * 1000).long().tolist() == list(range(1000))
    share = (x == KERNEL.states).double().mean(1)
    torch.testing.assert_close(share, time, atol=0.12, rtol=0)


def test_windows():
    tokens = torch.arange(100)
    assert windows(tokens, 3, torch.tensor([0, 97])).tolist() == [[0, 1, 2], [97, 98, 99]]


def test_the_network_sees_five_places_dilated():
    torch.manual_seed(0)
    network = TextNetwork(width=8, dilations=(1, 2))
    # GroupNorm looks at the whole sequence, a little.
    network.blocks[0].norm = network.blocks[1].norm = network.norm = torch.nn.Identity()
    x = torch.full((2, 40), 27)
    x[1, 20] = 5
    a, b = network(x)
    assert (a != b).any(1).nonzero()[:, 0].tolist() == list(range(14, 27))
    assert network(x).shape == (2, 40, 27)
    assert sum(each.numel() for each in TextNetwork().parameters()) < 650_000


def test_the_bundled_model_is_as_good_as_its_card_says():
    model, text = zoo.text_model(), read_text()
    bits = held_out_bits(model.network, text, model.length)
    if text.sha256 == CARD["sha256"]:
        assert bits == pytest.approx(CARD["held_out_bits"], abs=0.002)
    # The text of another Python is mostly the same.
    assert bits < conditional_bits(text.train, 3)


def test_the_bundled_model_writes_words():
    model, text = zoo.text_model(), read_text()
    seeds = range(32)
    few, x = (
        sample(model.log_score(), table, start(table, model.length, seeds), seeds)
        for table in (build("euler", model.kernel, model.noise, nodes(n)) for n in (4, 64))
    )
    known = {word for word in decode(text.train).split() if len(word) > 3}

    def share(lines):
        words = [word for line in lines for word in decode(line).split()[1:-1] if len(word) > 3]
        return sum(word in known for word in words) / len(words)

    # A chain of bigrams makes a word by accident.
    chain = bigrams(text.train, 27, model.length, smoothing=0.1)
    accidents = share(chain.sample(200, torch.Generator().manual_seed(0)))
    assert share(x) > 3 * accidents
    assert chain.bits_per_token(x) < chain.bits_per_token(few) - 0.1


@pytest.fixture
def short(tmp_path):
    """A text that is quickly learned, and settings for it."""
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog " * 700)
    return TextConfig(
        data=str(path), length=16, width=12, dilations=(1, 2), steps=30, batch_size=16
    )


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(short, tmp_path):
    whole = load_text_model(train_text(short, tmp_path / "whole")).network.state_dict()

    def interrupt(done, total, text):
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_text(short, tmp_path / "cut", interrupt)
    cut = load_text_model(train_text(short, tmp_path / "cut")).network.state_dict()
    for name, value in whole.items():
        assert torch.equal(cut[name], value)


def test_a_saved_model_has_its_card(short, tmp_path):
    folder = train("text", tmp_path, short.model_dump())
    card = json.loads((folder / "config.json").read_text())
    text, model = read_text(short.data), load_text_model(folder)
    assert card["sha256"] == text.sha256
    assert TextConfig(**card["config"]) == short
    assert model.length == 16
    bits = held_out_bits(model.network, text, 16)
    assert card["held_out_bits"] == pytest.approx(bits, abs=6e-4)
    # It has learned something in 30 steps.
    assert bits < math.log2(27)
    assert not model.network.training


@pytest.mark.slow
def test_a_short_training_learns_more_than_bigrams(tmp_path):
    folder = train("text", tmp_path, {"steps": 500})
    text, model = read_text(), load_text_model(folder)
    assert held_out_bits(model.network, text, model.length) < conditional_bits(text.train, 2) - 0.5


def test_held_out_bits_are_the_same_for_every_call():
    tokens = torch.randint(27, (3000,), generator=torch.Generator().manual_seed(0))
    text, flat = Text(tokens, tokens, ""), Unigrams(torch.zeros(27))
    first, again = (held_out_bits(flat, text, 64) for _ in range(2))
    assert first == again == pytest.approx(math.log2(27), rel=0.05)
