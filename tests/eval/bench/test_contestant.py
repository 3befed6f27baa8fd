from __future__ import annotations

from dataclasses import replace

import pytest
from fewstep.eval.bench.contestant import check_plan, contestant
from fewstep.eval.sources import in_memory
from fewstep.eval.statistics import collect_statistics

from .fakes import config, data, model, ready, rows


def test_guidance_needs_something_to_guide():
    free = replace(model(), classes=None)
    check_plan(config(guidance=[1, 2]), "gaussian", model())
    check_plan(config(), "gaussian", free)
    with pytest.raises(ValueError, match="guidance 2: gaussian has no classes"):
        check_plan(config(guidance=[1, 2]), "gaussian", free)


def test_two_extractors_of_one_name_are_refused():
    known = collect_statistics(in_memory("gauss", data()), rows())
    with pytest.raises(ValueError, match="two extractors are called rows-4"):
        contestant("gaussian", model(), [(rows(), known), (rows(), known)], ("frechet",))


def test_a_key_sees_every_part_of_the_statistics():
    one = ready(metrics=("frechet", "kernel"))
    assert ready(metrics=("frechet", "kernel")).key == one.key
    known = one.statistics["rows-4"]
    for changed in (
        replace(known, members=known.members[:-1]),
        replace(known, features=replace(known.features, n=599)),
        replace(known, features=replace(known.features, cov=2 * known.features.cov)),
        replace(known, spatial=known.features),
    ):
        assert replace(one, statistics={"rows-4": changed}).key != one.key
    assert ready(metrics=("frechet",)).key != one.key
