from __future__ import annotations

import pytest
from fewstep import samplers
from fewstep.distill.tables import place
from fewstep.distill.tables.nodes import neighbours, placed, spread
from fewstep.distill.tables.objective import distance

from .problem import STEPS, held_out, plain, teacher


def test_a_search_ends_no_worse_than_it_began():
    found = place(teacher(0, 150), 5, moves=20)
    begun = min(
        placed(teacher(0, 150), spread(STEPS, 5, start, power), "unipc-3", 1e-6).loss
        for start in (0.0, 0.12)
        for power in (0.8, 1.0, 1.25)
    )
    assert found.loss <= begun
    assert found.loss == pytest.approx(distance(met(found.places), found.tables) ** 2)


def met(places):
    return teacher(0, 150).trajectories(places)[1]


def test_the_nodes_are_better_than_even_ones_on_other_samples():
    chosen = place(teacher(0, 300), 4, moves=30)
    even = placed(teacher(0, 300), tuple(plain(4)), "unipc-3", 1e-6)
    judged = [
        distance(held_out().trajectories(each.places)[1], each.tables) for each in (chosen, even)
    ]
    assert judged[0] < judged[1]
    base = samplers.build("unipc-3", held_out().trajectories(plain(4))[0])
    assert judged[0] < 0.6 * distance(held_out().trajectories(plain(4))[1], base)


def test_progress_is_told_and_ends_with_the_moves():
    told = []
    place(teacher(0, 40), 3, moves=5, progress=lambda *each: told.append(each))
    assert [done for done, *_ in told] == list(range(1, len(told) + 1))
    assert told[-1][0] <= told[-1][1]


@pytest.mark.parametrize("nfe", [1, 3, 20, 58])
@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_a_spread_has_no_place_twice(nfe, start, power):
    places = spread(STEPS, nfe, start, power)
    assert len(places) == nfe
    assert list(places) == sorted(set(places))
    assert places[0] >= 0
    assert places[-1] < STEPS


def test_neighbours_keep_their_order():
    assert neighbours((0, 2, 3), 1, 4) == [(1, 2, 3), (0, 1, 3)]


@pytest.mark.parametrize("nfe", [0, STEPS])
def test_a_student_has_fewer_steps_than_its_teacher(nfe):
    with pytest.raises(ValueError, match=f"a teacher of {STEPS} steps has no nodes for {nfe}"):
        place(teacher(0, 5), nfe)
