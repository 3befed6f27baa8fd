"""What a search begins with: published solvers, on the nodes of tables and on common grids."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ... import samplers
from ...schedules import Grid, grid
from ..presets import preset
from ..space import Space
from .breeding import Made, key_of
from .config import SearchConfig


def starts(config: SearchConfig, space: Space) -> tuple[dict[str, Made], dict[str, Made]]:
    """Published solvers on the nodes of tables, and on common grids, by their keys.

    Families may lack some of the evaluations asked for. Raises ValueError for one that lacks all,
    or is for another noise schedule, or takes several evaluations a step.
    """

    def built(grids: Iterable[tuple[str, Grid]]) -> dict[str, Made]:
        found: dict[str, Made] = {}
        for where, nodes in grids:
            for name in config.presets:
                made = preset(name, nodes), f"{name}, {where}"
                found.setdefault(key_of(made[0], space), made)
        return found

    near = built(of_tables(config, space))
    far = built(of_spacings(config, space))
    return near, {key: made for key, made in far.items() if key not in near}


def of_tables(config: SearchConfig, space: Space) -> Iterator[tuple[str, Grid]]:
    """The nodes of tables, and whose they are; see `starts`."""
    for name in config.families:
        tables = samplers.load_family(name, config.guidance)
        if not {*config.nfe} & {*tables}:
            raise ValueError(
                f"families: {name} holds tables of {', '.join(map(str, tables))} evaluations, and "
                f"the search is for {', '.join(map(str, config.nfe))}"
            )
        table = tables.get(space.nfe)
        if table is None:
            continue
        if table.grid.schedule != space.law:
            raise ValueError(f"families: {name} is not on the noise schedule of the model")
        if table.grid.stage.any():
            raise ValueError(f"families: {name} has several evaluations a step; its nodes are none")
        yield f"nodes of {name}", table.grid


def of_spacings(config: SearchConfig, space: Space) -> Iterator[tuple[str, Grid]]:
    """The common grids of as many nodes as there are evaluations, and what they are."""
    for spacing, end in itertools.product(config.spacings, dict.fromkeys(space.ends)):
        # Some need more nodes, or less noise at first.
        with suppress(ValueError):
            yield f"{spacing}, end {end}", grid(space.law, space.nfe, spacing, end=end)
