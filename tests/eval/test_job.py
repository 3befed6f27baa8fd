from __future__ import annotations

from dataclasses import replace

import pytest

from .models.exact import exact, job, means, table

FIRST = range(8)


def heavier():
    model = exact()
    model.network.means[0] += 1e-6
    return model


def test_shards_cover_every_sample_once():
    shards = job(1003, shard_size=64).shards
    assert [i for shard in shards for i in shard] == list(range(1003))
    assert {len(shard) for shard in shards} == {64, 1003 % 64}


def test_the_key_of_a_shard_is_that_of_its_content():
    own = job()
    assert job().key(FIRST) == own.key(FIRST)
    assert job(100, batch_size=5).key(FIRST) == own.key(FIRST)
    guided = replace(own.draw, guidance=2)
    assert job(draw=guided).key(FIRST) == job(draw=replace(guided, guidance=2.0)).key(FIRST)


@pytest.mark.parametrize(
    "change",
    [
        lambda own: replace(own, table=table(5)),
        lambda own: replace(own, table=table(4, "ddpm")),
        lambda own: replace(own, table=replace(own.table, bias=[0.0, 0.0, 1e-6, 0.0])),
        lambda own: replace(own, model=heavier()),
        lambda own: replace(own, draw=replace(own.draw, seeds=range(1, 21))),
        lambda own: replace(own, draw=replace(own.draw, labels=own.draw.labels.flip(0))),
        lambda own: replace(own, draw=replace(own.draw, labels=None)),
        lambda own: replace(own, draw=replace(own.draw, guidance=1.5)),
        lambda own: replace(own, draw=replace(own.draw, source="cuda")),
    ],
)
def test_the_key_sees_all_that_decides_a_shard(change):
    assert change(job()).key(FIRST) != job().key(FIRST)


def test_what_is_kept_does_not_change_the_samples():
    kept = job(extractors=(means("2"),), keep="png", preview=4, target_key="t", target_size=3)
    assert kept.key(FIRST) == job().key(FIRST)


def test_two_extractors_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two extractors are called means"):
        job(extractors=(means(), means("2")))


def test_guidance_doubles_the_calls():
    own = job()
    assert own.calls_per_image == 4
    assert replace(own, draw=replace(own.draw, guidance=2.0)).calls_per_image == 8
