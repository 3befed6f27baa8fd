from __future__ import annotations

import numpy as np
import torch
from fewstep.search.s3.breeding import Brood, advised, at_random, evolved, key_of
from fewstep.search.s3.predictor import Predictor, tokens
from fewstep.search.space import Space

from ..test_space import legal
from .problem import LAW

SPACE = Space(LAW, 4)


def brood(count=30, space=SPACE, parents=5):
    rng = np.random.default_rng(0)
    schedules = [space.drawn(rng) for _ in range(count)]
    return Brood(space, schedules, frozenset(key_of(each, space) for each in schedules), parents)


class Earlier(Predictor):
    """Likes rows whose first numbers are low, and counts what it is asked."""

    def __init__(self):
        super().__init__((), torch.zeros(1), torch.ones(1), 0.5)

    def __call__(self, rows):
        return rows[:, :, 0].sum(1)


def test_a_key_is_that_of_the_table():
    rng = np.random.default_rng(0)
    schedules = [SPACE.drawn(rng) for _ in range(50)]
    assert len({key_of(each, SPACE) for each in schedules}) == 50
    assert key_of(schedules[0], SPACE) == key_of(schedules[0], SPACE)


def test_what_is_proposed_is_new_legal_and_all_different():
    known = brood()
    for made in (
        at_random(known, 12, np.random.default_rng(1)),
        evolved(known, 12, np.random.default_rng(1)),
        {
            key: made
            for key, (made, _) in advised(
                known, 12, np.random.default_rng(1), Earlier(), population=20, generations=2
            ).items()
        },
    ):
        assert len(made) == 12
        assert not known.seen & made.keys()
        for key, (schedule, _) in made.items():
            legal(SPACE, schedule)
            assert key == key_of(schedule, SPACE)


def test_children_are_of_the_best_only():
    known = brood(parents=1)
    still = Brood(Space(LAW, 4, rate=0.0), known.schedules, known.seen, 1)
    # What does not mutate is its parent, which is known.
    assert evolved(still, 2, np.random.default_rng(0)) == {}
    # Crossed with itself, too, it stays what it is, unless it is mutated.
    lone = Brood(Space(LAW, 4, rate=0.0), known.schedules, known.seen, 1, crossover=1.0)
    assert evolved(lone, 2, np.random.default_rng(0)) == {}
    two = Brood(Space(LAW, 4, rate=0.0), known.schedules, known.seen, 2, crossover=1.0)
    children = evolved(two, 3, np.random.default_rng(0))
    times = {time for each in known.schedules[:2] for time in each.times}
    assert len(children) == 3
    assert all({*schedule.times} <= times for schedule, _ in children.values())


def test_a_used_up_space_gives_what_there_is():
    tiny = Space(LAW, 1, marks=3, predictions=("x0",), ends=("zero",))
    rng = np.random.default_rng(0)
    found = at_random(brood(1, tiny), 5, rng)
    assert found == {}


def test_a_predictor_chooses_among_many():
    known, predictor = brood(), Earlier()
    plain = evolved(known, 20, np.random.default_rng(0))
    mean = np.mean([predictor(rows_of(plain)).mean()])
    few = {"population": 40, "fresh": 0.25}
    chosen = advised(known, 20, np.random.default_rng(0), predictor, generations=2, **few)
    said = {key: score for key, (_, score) in chosen.items()}
    origins = [origin for (_, origin), _ in chosen.values()]
    assert origins.count("advised") == 15
    assert {*origins} == {"advised", "crossed", "mutated"}
    best = [said[key] for key, ((_, origin), _) in chosen.items() if origin == "advised"]
    assert max(best) < mean
    rows = rows_of({key: made for key, (made, _) in chosen.items()})
    np.testing.assert_allclose([*said.values()], predictor(rows))
    # More generations find what it likes more.
    more = advised(known, 20, np.random.default_rng(0), predictor, generations=8, **few)
    assert min(score for _, score in more.values()) < min(best)


def test_what_stands_beside_is_chosen_if_it_is_liked():
    known, predictor = brood(), Earlier()
    many = at_random(known, 60, np.random.default_rng(5))
    liked = min(many.items(), key=lambda each: predictor(rows_of(dict([each])))[0])
    chosen = advised(
        known, 8, np.random.default_rng(0), predictor, generations=0, also=[*many.values()]
    )
    assert liked[0] in chosen
    assert chosen[liked[0]][0] == (liked[1][0], "advised")


def rows_of(made):
    return np.stack([tokens(schedule, SPACE) for schedule, _ in made.values()])
