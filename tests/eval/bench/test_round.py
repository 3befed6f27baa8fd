from __future__ import annotations

from fewstep.eval.bench.round import rounds

from .fakes import config, ready


def test_the_check_takes_no_more_samples_than_the_reference_has(tmp_path):
    for images, asked in ((3, 3), (100, 6)):
        settings = config(reference={"steps": 20, "images": images, "check_images": 6})
        (turn,) = rounds(settings, ready(), tmp_path)
        exact, check = turn.references
        assert len(exact.draw.seeds) == min(images, 40)
        assert len(check.draw.seeds) == asked
