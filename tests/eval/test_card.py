from __future__ import annotations

import pytest
import torch
from fewstep import zoo
from fewstep.eval import card
from fewstep.eval.card import measure_model, write_card
from fewstep.eval.images import quantise
from fewstep.eval.sources import in_memory

from .bench.fakes import data, model, rows

pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")


def test_speckle_is_light_away_from_ink():
    pixels = torch.zeros(5, 1, 28, 28, dtype=torch.uint8)
    pixels[:, 0, 5:20, 14:16] = 255
    pixels[1, 0, 10, 17] = 200  # beside the stroke
    pixels[2, 0, 10, 18] = 60  # away from it
    pixels[3, 0, 25, 3] = 20  # too dark to see
    pixels[4, 0, 25, 3] = 255  # ink itself
    assert card.speckled(pixels).tolist() == [False, False, True, False, False]


def test_real_digits_have_hardly_any_speckle_and_noisy_ones_do():
    images = zoo.mnist().images[:500]
    noisy = images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert card.speckled(quantise(images)).float().mean() < 0.05
    assert card.speckled(quantise(noisy)).float().mean() > 0.95


def test_the_card_reports_what_was_measured(tmp_path, monkeypatch):
    class Judge(torch.nn.Module):
        """Reads the class from the brightness: right where the means are far apart."""

        def forward(self, images):
            means = torch.linspace(-0.8, 0.8, 3)
            return -(images.mean((1, 2, 3))[:, None] - means).square()

    def judge(config, progress):
        # Another architecture and seed than the extractor's.
        assert config.architecture == "lenet"
        assert config.seed == 5
        return Judge(), 0.97

    monkeypatch.setattr(card, "fit_classifier", judge)
    seen = []
    measured = measure_model(
        *(model(), in_memory("gauss", data()), rows(), 120, 60),
        seed=4,
        progress=lambda *each: seen.append(each),
    )
    assert measured.agreement > 0.95
    assert measured.frechet < 0.05
    assert all(0 < value < 0.1 for value in measured.halves)
    assert seen[-1][0] == seen[-1][1] == 60 * 100 + 120 * 25
    text = write_card(measured, tmp_path).read_text()
    assert f"{measured.agreement:.1%}" in text
    assert "97.0% right" in text
    assert "rows-4" in text
    assert (tmp_path / "samples.png").exists()
