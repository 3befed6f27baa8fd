from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import fewstep
import numpy as np
import pytest
from fewstep import samplers
from fewstep.search.s3 import run as module
from fewstep.search.s3.archive import Archive
from fewstep.search.s3.judge import judge_of
from fewstep.search.s3.run import (
    ARCHIVE,
    other_samples,
    propose,
    search,
    spent,
    way,
)
from fewstep.search.schedule import SolverSchedule
from pydantic import ValidationError

from .problem import LAW, config, model


@pytest.fixture(scope="module", autouse=True)
def quick():
    """A predictor that is trained for a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "learn", partial(module.learn, epochs=15))
        yield


def entries(folder, said=None, nfe=4):
    said = said or config()
    return Archive(folder / ARCHIVE).entries(judge_of(said, model(), folder).key, nfe)


def course(folder, said=None):
    return [(each.proposal, each.verdict.score) for each in entries(folder, said)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, quick):
    folder = tmp_path_factory.mktemp("whole")
    return folder, search(config(), model(), folder)


def test_the_budget_is_spent_on_different_schedules(whole):
    folder, found = whole
    known = entries(folder)
    assert len(known) == len({each.proposal.key for each in known}) == 20
    assert {each.proposal.schedule.nfe for each in known} == {4}
    origins = [each.proposal.origin for each in known]
    assert origins.count("advised") == 8
    assert origins.count("drawn") == 6
    assert sum(", end " in each for each in origins) == 6
    assert found[4].entries == tuple(known)
    assert [each.proposal.stage for each in known] == [k // 4 for k in range(20)]
    assert all((each.proposal.tau is None) == (each.proposal.stage < 3) for each in known)


def test_what_is_found_is_better_than_what_it_began_with(whole):
    folder, found = whole
    known = entries(folder)
    published = [each for each in known if each.proposal.stage < 3]
    best = min(each.verdict.score for each in known)
    assert best < min(each.verdict.score for each in published)
    assert found[4].entry.verdict.score < min(each.verdict.score for each in published)


def test_the_result_is_the_best_of_the_finalists_by_other_samples(whole):
    folder, found = whole
    said = module.other_samples(config())
    assert (said.first_seed, said.samples) == (2**31 + 24, 40)
    judged = entries(folder, said)
    ranked = sorted(entries(folder), key=lambda each: each.verdict.score)
    assert {each.proposal.key for each in judged} == {each.proposal.key for each in ranked[:3]}
    assert found[4].validated.verdict.score == min(each.verdict.score for each in judged)
    assert found[4].validated.proposal.key == found[4].entry.proposal.key


def test_the_folder_is_a_solver_with_its_provenance(whole):
    folder, found = whole
    table = samplers.load_family(folder)[4]
    assert table.nfe == 4
    assert (table.weights == found[4].table.weights).all()
    said = table.meta["searched"]
    assert said["evaluations"] == 20
    assert said["model"] == model().fingerprint
    again = SolverSchedule.from_dict(said["schedule"]).tableau(LAW)
    assert (again.weights == table.weights).all()
    assert "| 4 |" in (folder / "README.md").read_text()
    for suffix in ("html", "md", "png"):
        assert (folder / f"search-004.{suffix}").stat().st_size > 100


def stopped(monkeypatch, at):
    """A judge that is interrupted at its call number `at`, after the work is done."""
    calls = itertools.count(1)
    real = module.Judge.__call__

    def call(self, tables):
        found = real(self, tables)
        if next(calls) == at:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(module.Judge, "__call__", call)


@pytest.mark.parametrize("at", [5, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 6))])
def test_a_search_that_is_stopped_goes_on_as_if_it_had_not(whole, tmp_path, monkeypatch, at):
    with monkeypatch.context() as patch:
        stopped(patch, at)
        with pytest.raises(KeyboardInterrupt):
            search(config(), model(), tmp_path)
    before = len(entries(tmp_path))
    assert before == min(4 * (at - 1), 20)
    count = []
    real = module.Judge.__call__
    monkeypatch.setattr(
        module.Judge, "__call__", lambda self, t: count.append(len(t)) or real(self, t)
    )
    found = search(config(), model(), tmp_path)
    assert course(tmp_path) == course(whole[0])
    assert sum(count) == 20 - before + 3
    assert found[4].table.weights.tolist() == whole[1][4].table.weights.tolist()
    # What is there already costs nothing.
    search(config(), model(), tmp_path)
    assert sum(count) == 20 - before + 3


@pytest.mark.slow
def test_a_larger_budget_goes_on(whole, tmp_path):
    search(config(evaluations=16), model(), tmp_path)
    search(config(), model(), tmp_path)
    assert course(tmp_path) == course(whole[0])


@pytest.mark.parametrize("strategy", ["random", "evolution"])
def test_rivals_have_the_same_start_and_no_predictor(whole, tmp_path, strategy):
    search(config(strategy=strategy), model(), tmp_path)
    known = entries(tmp_path)
    assert course(tmp_path)[:12] == course(whole[0])[:12]
    kinds = {each.proposal.origin for each in known[12:]}
    assert kinds == ({"drawn"} if strategy == "random" else {"mutated", "crossed"})
    assert all(each.proposal.predicted is None for each in known)


def test_several_budgets_are_one_family(tmp_path):
    said = config(nfe=[2, 3], evaluations=8, first=8, finalists=1)
    found = search(said, model(), tmp_path)
    assert {nfe: each.nfe for nfe, each in samplers.load_family(tmp_path).items()} == {2: 2, 3: 3}
    assert [*found] == [2, 3]


def test_a_folder_gathers_what_goes_together(tmp_path):
    few = {"evaluations": 8, "first": 8, "finalists": 1}
    for nfe in (3, 2):
        search(config(nfe=nfe, **few), model(), tmp_path)
    assert [*samplers.load_family(tmp_path)] == [2, 3]
    card = (tmp_path / "README.md").read_text()
    assert "\n| 2 | " in card
    assert "\n| 3 | " in card
    with pytest.raises(ValueError, match="strategy 'predictor', not 'random'"):
        search(config(strategy="random", **few), model(), tmp_path)


def test_finalists_that_another_gives_back_are_judged_here(tmp_path, monkeypatch):
    """The other claims them all, and is stopped while this one waits."""
    said = config(evaluations=8, first=8, finalists=2)
    found = search(said, model(), tmp_path)[4]
    judge = judge_of(other_samples(said), model(), tmp_path)
    archive = Archive(tmp_path / ARCHIVE)
    with archive.opened() as connection:
        connection.execute("delete from evaluations where judge = ?", (judge.key,))
    ranked = sorted(found.entries, key=lambda each: each.verdict.score)[:2]
    archive.claim(judge.key, 4, [each.proposal for each in ranked])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: archive.abandon())
    again = search(said, model(), tmp_path)[4]
    assert again.validated.proposal.key == found.validated.proposal.key
    assert len(archive.entries(judge.key, 4)) == 2


def test_what_others_are_at_is_not_proposed(tmp_path):
    said = config()
    space = said.space_of(LAW, 4)

    def proposed(pending):
        return {
            each.key
            for each in propose(said, space, [], pending, 0, np.random.default_rng(0), True)
        }

    first = proposed(frozenset())
    assert len(first) == len(proposed(frozenset(first)) - first) == 4


def test_time_is_a_budget_too(tmp_path):
    search(config(minutes=1e-9), model(), tmp_path)
    known = entries(tmp_path)
    assert len(known) == 4
    # 16 evaluations of 10 seconds, another batch of 4, and 2 finalists of half the samples.
    slow = [replace(e, verdict=replace(e.verdict, seconds=10.0)) for e in 4 * known]
    said = {"batch": 4, "finalists": 2, "samples": 16, "validation": 8}
    assert not spent(config(minutes=210 / 60 + 1e-9, **said), slow)
    assert spent(config(minutes=210 / 60 - 1e-9, **said), slow)
    # 160 seconds, and 10 for the finalists.
    assert way(config(minutes=200 / 60, evaluations=100, **said), slow) == (170, 200)
    assert way(config(minutes=2000 / 60, evaluations=100, **said), slow) == (16, 100)


def replace_config(said, **changes):
    return said.model_copy(update=changes)


def test_a_used_up_space_ends_the_search(tmp_path):
    tiny = {"marks": 4, "order": 1, "predictions": ["x0"], "ends": ["zero"],
            "corrections": ["none"]}  # fmt: skip
    said = config(nfe=2, space=tiny, strategy="evolution", presets=["ddim"], finalists=1)
    search(said, model(), tmp_path)
    # Three places for the one time between, and what DDIM has on two spacings with both ends.
    assert 3 <= len(entries(tmp_path, said, 2)) <= 7


def test_none_that_is_finite_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module.Judge, "numbers", lambda self, images: {})
    with pytest.raises(ArithmeticError, match="none of 8 schedules gave finite samples"):
        search(config(evaluations=8, first=8), model(), tmp_path)


WORK = """
import sys
from pathlib import Path
from fewstep.eval.processes import Processes
from tests.search.s3.problem import config, model
from fewstep.search.s3 import search
search(config(), model(), Path(sys.argv[1]), processes=Processes(int(sys.argv[2]), 2))
"""


@pytest.mark.slow
def test_two_processes_do_not_evaluate_the_same_twice(tmp_path):
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(Path(fewstep.__file__).parents[1]), str(root), *sys.path])
    # Converged samples and statistics are made by the first, which both wait for when launched.
    judge_of(config(), model(), tmp_path)
    judge_of(module.other_samples(config()), model(), tmp_path)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(tmp_path), str(rank)],
            env={**os.environ, "PYTHONPATH": paths},
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for each in both:
        _, said = each.communicate(timeout=300)
        assert each.returncode == 0, said
    known = entries(tmp_path)
    assert len(known) == len({each.proposal.key for each in known}) == 20
    assert {each.proposal.rank for each in known} == {0, 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"space": {"orders": 3}}, "no such part 'orders'; there is spacing"),
        ({"space": {"gain": "high"}}, "gain: Input should be a valid number.*'high'"),
        ({"space": {"starts": 0}}, "starts: Input should be a valid tuple"),
        ({"space": {"spacing": "leading"}}, "spacing: Input should be 'uniform', .*'leading'"),
        ({"presets": ["euler"]}, "'euler' is none"),
        ({"spacings": ["even"]}, "even"),
        ({"families": ["none-such"]}, "no family of tables"),
        ({"measures": []}, "measures"),
        ({"measures": ["frechet"]}, "frechet needs features"),
        ({"measures": [{"kind": "rmse", "features": "pixels"}]}, "rmse takes no features"),
        ({"first_seed": 2**32 - 50}, "first_seed"),
        ({"solver": "magic"}, "magic"),
        ({"strategy": "luck"}, "strategy"),
        ({"first": 7}, "first: a predictor learns from 8"),
    ],
)
def test_mistakes_are_said(given, said):
    with pytest.raises((ValidationError, ValueError), match=said):
        config(**given)


def test_a_space_is_measured_by_a_law():
    assert config(space={"spacing": "lam"}).space_of(LAW, 3).spacing.variable == "lam"
    assert replace(config(space={"starts": [0]}).space_of(LAW, 3), nfe=2).starts == (0,)
