from __future__ import annotations

import fewstep
import pytest
from fewstep import samplers
from fewstep.search.s3 import search
from fewstep.search.s3.archive import Archive
from fewstep.search.s3.judge import judge_of
from fewstep.search.s3.run import ARCHIVE
from fewstep.search.s3.starts import starts

from .problem import LAW, config, model


def test_it_may_start_from_tables(tmp_path):
    nodes = fewstep.grid(LAW, 4, "lam", end="min")
    samplers.save_family({4: samplers.build("ddim", nodes)}, tmp_path / "tables.json")
    said = config(families=[str(tmp_path / "tables.json")])
    first = next(iter(starts(said, said.space_of(LAW, 4))[0].values()))
    assert first[1] == f"ddim, nodes of {tmp_path / 'tables.json'}"
    assert first[0].times == tuple(nodes.time)
    search(said.model_copy(update={"evaluations": 8}), model(), tmp_path)
    archive = Archive(tmp_path / ARCHIVE)
    known = archive.entries(judge_of(said, model(), tmp_path).key, 4)
    assert known[0].proposal.schedule == first[0]


def test_tables_that_are_none_to_start_from_are_refused(tmp_path):
    nodes = fewstep.grid(LAW, 4, "lam", end="min")
    tables = {
        "has no": {4: samplers.build("ddim", nodes)},
        "law": {3: samplers.build("ddim", fewstep.grid(fewstep.schedules.VPLinear(), 3))},
        "stages": {3: samplers.build("heun", fewstep.grid(LAW, 2))},
    }
    for name, table in tables.items():
        samplers.save_family(table, tmp_path / f"{name}.json")
    for name, said in (
        ("has no", "holds tables of 4 evaluations, and the search is for 3"),
        ("law", "not on the noise schedule"),
        ("stages", "several evaluations a step"),
    ):
        wanted = config(nfe=3, families=[str(tmp_path / f"{name}.json")])
        with pytest.raises(ValueError, match=said):
            starts(wanted, wanted.space_of(LAW, 3))
    # One that has some of the budgets serves for these.
    some = config(nfe=[3, 4], families=[str(tmp_path / "has no.json")])
    near, far = starts(some, some.space_of(LAW, 3))
    assert (len(near), len(far) > 5) == (0, True)
