"""Which schedules are evaluated next: at random, by evolution, or as a predictor advises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...storage import digest
from ..schedule import SolverSchedule
from ..space import Space
from .predictor import Predictor, tokens

# Of the weights and times in a key: two ways to one table end in other last digits.
DIGITS = 9
# Tries for each schedule that is wanted, before a space counts as used up.
TRIES = 50


def key_of(schedule: SolverSchedule, space: Space) -> str:
    """What tells schedules apart: their tables, to nine digits."""
    table = space.table(schedule)
    numbers = (table.grid.time, table.weights, table.grid.label)
    return digest(*(np.round(each, DIGITS) + 0.0 for each in numbers))


@dataclass(frozen=True, eq=False)
class Brood:
    """Schedules that are known, best first, and how children are made of them.

    `parents` of the best are bred, each as likely as another. With probability `crossover` a child
    has two of them, and is mutated as often as not; else it has one, and is mutated. `seen` are
    the keys of all that is known.
    """

    space: Space
    schedules: Sequence[SolverSchedule]
    seen: frozenset[str]
    parents: int = 15
    crossover: float = 0.4

    def child(self, rng: np.random.Generator) -> tuple[SolverSchedule, str]:
        """A child of the best, and how it came about."""
        best = self.schedules[: self.parents]
        one = best[int(rng.integers(len(best)))]
        if rng.random() < self.crossover:
            both = self.space.crossed(one, best[int(rng.integers(len(best)))], rng)
            return (both if rng.random() < 0.5 else self.space.mutated(both, rng)), "crossed"
        return self.space.mutated(one, rng), "mutated"

    def drawn(self, rng: np.random.Generator) -> tuple[SolverSchedule, str]:
        """A random schedule."""
        return self.space.drawn(rng), "drawn"


Made = tuple[SolverSchedule, str]


def different(
    make: Callable[[], Made], count: int, space: Space, seen: frozenset[str]
) -> dict[str, Made]:
    """Up to `count` schedules by their keys, none in `seen`; fewer where there are no more."""
    found: dict[str, Made] = {}
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        made = make()
        key = key_of(made[0], space)
        if key not in seen:
            found.setdefault(key, made)
    return found


def at_random(brood: Brood, count: int, rng: np.random.Generator) -> dict[str, Made]:
    """Random schedules."""
    return different(lambda: brood.drawn(rng), count, brood.space, brood.seen)


def evolved(brood: Brood, count: int, rng: np.random.Generator) -> dict[str, Made]:
    """Children of the best."""
    return different(lambda: brood.child(rng), count, brood.space, brood.seen)


def advised(
    brood: Brood,
    count: int,
    rng: np.random.Generator,
    predictor: Predictor,
    *,
    population: int = 200,
    generations: int = 6,
    fresh: float = 0.1,
    also: Sequence[Made] = (),
) -> dict[str, tuple[Made, float]]:
    """What a predictor thinks best among the children of children, with what it thinks of them.

    Of each generation those that score best are bred next, together with the best that are known;
    `also` stand beside the first. A share `fresh` of the result are children as `evolved` makes
    them, which the predictor did not choose: where it is always asked it does not learn of its
    mistakes.
    """
    space, seen = brood.space, brood.seen
    pool = {key: made for made in also if (key := key_of(made[0], space)) not in seen}
    scores = scored(pool, predictor, space)
    breeding = brood
    for _ in range(generations):
        new = different(
            lambda: breeding.child(rng),  # noqa: B023 - called within this turn
            population,
            space,
            seen | pool.keys(),
        )
        scores |= scored(new, predictor, space)
        pool |= new
        best = [pool[key][0] for key in sorted(pool, key=lambda key: scores[key])[: brood.parents]]
        both = [*brood.schedules[: brood.parents], *best]
        breeding = Brood(space, both, seen, len(both), brood.crossover)
    free = round(fresh * count)
    chosen = sorted(pool, key=lambda key: scores[key])[: count - free]
    found = {key: (pool[key][0], "advised") for key in chosen}
    rest = evolved(replace(brood, seen=seen | found.keys()), count - len(found), rng)
    scores |= scored(rest, predictor, space)
    return {key: (made, scores[key]) for key, made in (found | rest).items()}


def scored(made: Mapping[str, Made], predictor: Predictor, space: Space) -> dict[str, float]:
    """What a predictor says of schedules."""
    if not made:
        return {}
    rows = np.stack([tokens(schedule, space) for schedule, _ in made.values()])
    return dict(zip(made, predictor(rows).tolist(), strict=True))
