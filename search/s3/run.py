"""Searching for solver schedules: propose, judge, learn, again; all of it in one archive."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ... import samplers
from ...eval.models import Model
from ...eval.processes import ALONE, Processes
from ...eval.progress import Progress, silent
from ...eval.results import save_scheduler, write_card
from ...samplers import Tableau
from ...samplers.family import FAMILY
from ...storage import read_json, write_json
from ..space import Space
from .archive import Archive, Entry, Proposal
from .breeding import Brood, advised, at_random, evolved
from .config import SearchConfig
from .judge import Judge, judge_of
from .predictor import learn, tokens
from .report import write_report
from .starts import starts

ARCHIVE, SETTINGS = "archive.sqlite", "search.json"
# What may change from one call to the next: how much is looked for, and how it ends.
FREE = {"nfe", "evaluations", "minutes", "batch_size", "finalists", "validation"}
# Seconds between looks at what other processes are at.
PAUSE = 0.5


@dataclass(frozen=True)
class Found:
    """The best schedule of one NFE: its table, its scores, and all that was evaluated.

    `score` is by the judge's samples, `validated` by others.
    """

    table: Tableau
    entry: Entry
    validated: Entry
    entries: tuple[Entry, ...]
    seconds: float


def search(
    config: SearchConfig,
    model: Model,
    folder: Path,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> dict[int, Found]:
    """The best schedule of every NFE of `config`; `folder` keeps all that was evaluated.

    Any number of processes may work on one folder, also started apart, and a call that was stopped
    goes on where it was: no schedule is evaluated twice, by any of them. In the folder: the
    archive, a family of tables, a scheduler that diffusers loads, a card, a report with the course
    of the search. Raises ValueError for what the model cannot do, and for a folder that holds a
    search of other settings (but for `FREE`).
    """
    check_same(config, model, folder)
    spaces = {nfe: config.space_of(model.schedule, nfe) for nfe in config.nfe}
    judges = []
    for each in (config, other_samples(config)):
        if processes.first:
            judge_of(each, model, folder, progress)
        processes.wait()
        judges.append(judge_of(each, model, folder, progress))
    first, last = judges
    archive = Archive(folder / ARCHIVE)
    found = {}
    try:
        for nfe, space in spaces.items():
            explore(config, space, first, archive, folder, progress, processes)
            found[nfe] = best(config, space, first, last, archive, progress)
            if processes.first:
                write_result(config, model, found, folder)
            processes.wait()
    except BaseException:
        archive.abandon()
        raise
    return found


def check_same(config: SearchConfig, model: Model, folder: Path) -> None:
    """Note the settings in `folder`; ValueError if others are there: their finds would count."""
    said = config.model_dump(mode="json", exclude={*FREE, "model"})
    said["model"] = model.fingerprint
    path = folder / SETTINGS
    if not path.exists():
        write_json(path, said)
        return
    known = read_json(path)
    other = [key for key in said if known.get(key) != said[key]]
    if other:
        raise ValueError(
            f"{folder} holds a search with other settings ("
            + "; ".join(f"{key} {known.get(key)!r}, not {said[key]!r}" for key in other)
            + "): give another --out, or remove it"
        )


def other_samples(config: SearchConfig) -> SearchConfig:
    """The settings with which finalists are judged: by samples that decided nothing before."""
    first = config.first_seed + config.samples
    return config.model_copy(update={"first_seed": first, "samples": config.validation})


def explore(
    config: SearchConfig,
    space: Space,
    judge: Judge,
    archive: Archive,
    folder: Path,
    progress: Progress,
    processes: Processes,
) -> None:
    """Evaluate schedules of one NFE until the budget is spent, by whatever processes there are."""
    clock = time.monotonic()
    here = 0
    while True:
        entries = archive.entries(judge.key, space.nfe)
        show(config, space, entries, here, time.monotonic() - clock, progress)
        if processes.first:
            write_report(config, space.nfe, entries, folder)
        if spent(config, entries):
            return
        pending = archive.pending(judge.key, space.nfe)
        early = len(entries) + len(pending) < config.first
        if not early and pending and len(entries) < config.first:
            # What others find of the first ones is to be known before any is bred.
            wait(archive, judge.key, space.nfe, entries, pending)
            continue
        begun = time.process_time()
        stage = 1 + max([-1, *pending.values(), *(each.proposal.stage for each in entries)])
        rng = np.random.default_rng([config.seed, space.nfe, processes.rank, stage])
        proposals = propose(config, space, entries, frozenset(pending), stage, rng, early)
        most = min(config.first, config.evaluations) if early else config.evaluations
        ours = archive.claim(
            judge.key, space.nfe, [replace(p, stage=stage, rank=processes.rank) for p in proposals],
            most,
        )  # fmt: skip
        if not ours:
            if not proposals and not pending:
                # All that this space has was evaluated.
                return
            # Others are at the rest; what they find is to be known first.
            wait(archive, judge.key, space.nfe, entries, pending)
            continue
        overhead = (time.process_time() - begun) / len(ours)
        verdicts = judge([space.table(each.schedule) for each in ours])
        found = (replace(each, seconds=each.seconds + overhead) for each in verdicts)
        archive.finish(judge.key, space.nfe, [*map(Entry, ours, found)])
        here += len(ours)


def wait(
    archive: Archive, judge: str, nfe: int, entries: list[Entry], pending: Mapping[str, int]
) -> None:
    """Until others have finished something, or are at something else."""
    done = len(entries)
    while archive.pending(judge, nfe) == pending and len(archive.entries(judge, nfe)) == done:
        time.sleep(PAUSE)


def spent(config: SearchConfig, entries: list[Entry]) -> bool:
    """Whether the evaluations are used up, or the time: but for another batch and the finalists."""
    return len(entries) >= config.evaluations or (
        config.minutes is not None and used(config, entries, config.batch) > 60 * config.minutes
    )


def used(config: SearchConfig, entries: list[Entry], more: int = 0) -> float:
    """Seconds of processors with all that is ahead: the finalists, and so many `more` schedules."""
    seconds = sum(each.verdict.seconds for each in entries)
    ahead = more + config.finalists * config.validation / config.samples
    return seconds * (1 + ahead / max(len(entries), 1))


def show(
    config: SearchConfig,
    space: Space,
    entries: list[Entry],
    here: int,
    seconds: float,
    progress: Progress,
) -> None:
    """Say how far it is, how good the best one, and how well the predictor tells."""
    text = f"NFE {space.nfe}"
    if entries:
        text += f", best {min(each.verdict.score for each in entries):.4g}"
    tau = next((e.proposal.tau for e in reversed(entries) if e.proposal.tau is not None), None)
    if tau is not None:
        text += f", tau {tau:.2f}"
    if here:
        text += f", {60 * here / seconds:.0f}/min"
    progress(*way(config, entries), text)


def way(config: SearchConfig, entries: list[Entry]) -> tuple[int, int]:
    """How far it is, and of how much: evaluations, or seconds where these end sooner."""
    if config.minutes is not None and entries:
        seconds, most = used(config, entries), 60 * config.minutes
        if seconds / most > len(entries) / config.evaluations:
            return min(round(seconds), round(most)), round(most)
    return len(entries), config.evaluations


def propose(
    config: SearchConfig,
    space: Space,
    entries: list[Entry],
    pending: frozenset[str],
    stage: int,
    rng: np.random.Generator,
    early: bool,
) -> list[Proposal]:
    """What to evaluate next, but for what others are at."""
    ranked = sorted(entries, key=lambda each: each.verdict.score)
    brood = Brood(
        space,
        [each.proposal.schedule for each in ranked],
        pending | {each.proposal.key for each in entries},
        config.parents,
        config.crossover,
    )
    if early:
        near, far = starts(config, space)
        # Those on the nodes of tables come first; of the rest any.
        order = [*near, *rng.permutation([*far]).tolist()]
        new = [key for key in order if key not in brood.seen]
        made = {key: (near | far)[key] for key in new[: (config.batch + 1) // 2]}
        made |= at_random(
            replace(brood, seen=brood.seen | made.keys()), config.batch - len(made), rng
        )
        return [Proposal(key, *each) for key, each in made.items()]
    if config.strategy == "random":
        return [Proposal(k, *each) for k, each in at_random(brood, config.batch, rng).items()]
    if config.strategy == "evolution":
        return [Proposal(k, *each) for k, each in evolved(brood, config.batch, rng).items()]
    rows = np.stack([tokens(each.proposal.schedule, space) for each in entries])
    scores = [each.verdict.score for each in entries]
    predictor = learn(rows, scores, config.seed + stage)
    chosen = advised(
        brood,
        config.batch,
        rng,
        predictor,
        population=config.population,
        generations=config.generations,
        fresh=config.fresh,
        also=[made for part in starts(config, space) for made in part.values()],
    )
    return [
        Proposal(key, schedule, origin, predicted=score, tau=predictor.tau)
        for key, ((schedule, origin), score) in chosen.items()
    ]


def best(
    config: SearchConfig,
    space: Space,
    first: Judge,
    last: Judge,
    archive: Archive,
    progress: Progress,
) -> Found:
    """The finalists judged by other samples, and the best of them there."""
    entries = archive.entries(first.key, space.nfe)
    ranked = sorted(entries, key=lambda each: each.verdict.score)
    finalists = [each for each in ranked[: config.finalists] if np.isfinite(each.verdict.score)]
    if not finalists:
        raise ArithmeticError(
            f"NFE {space.nfe}: none of {len(entries)} schedules gave finite samples; look at the "
            "model, or lower the `gain` of the space"
        )
    wanted = {each.proposal.key: each for each in finalists}
    again: list[Entry] = []
    while len(again) < len(wanted):
        for each in finalists:
            progress(*way(config, entries), f"NFE {space.nfe}, finalists")
            ours = archive.claim(last.key, space.nfe, [each.proposal])
            verdicts = last([space.table(one.schedule) for one in ours]) if ours else []
            archive.finish(last.key, space.nfe, [*map(Entry, ours, verdicts)])
        known = archive.entries(last.key, space.nfe)
        again = [each for each in known if each.proposal.key in wanted]
        if len(again) < len(wanted):
            # Others are at some, and may be stopped.
            time.sleep(PAUSE)
    validated = min(again, key=lambda each: each.verdict.score)
    schedule = validated.proposal.schedule
    return Found(
        schedule.tableau(space.law, name=f"s3-{space.nfe}"),
        wanted[validated.proposal.key],
        validated,
        tuple(entries),
        sum(each.verdict.seconds for each in (*entries, *again)),
    )


def write_result(
    config: SearchConfig, model: Model, found: Mapping[int, Found], folder: Path
) -> None:
    """Write the family of tables with those found before, a scheduler, and the card."""
    path = folder / FAMILY
    before = samplers.load_family(path) if path.exists() else {}
    tables = before | {nfe: provided(config, model, nfe, each) for nfe, each in found.items()}
    samplers.save_family(tables, path)
    save_scheduler(model.scheduler_config, tables, folder)
    measures = ", ".join(each.kind for each in config.measures)
    rows = []
    for nfe in sorted(tables):
        said = tables[nfe].meta["searched"]
        numbers = f"{said['score']:.4f}", f"{said['validated']:.4f}"
        cost = f"{said['evaluations']}", f"{said['seconds']:.0f} s"
        rows.append([f"{nfe}", *numbers, said["origin"], *cost])
    write_card(
        folder,
        f"Searched samplers for {model.name}",
        f"Solver schedules found by {config.strategy} search on the network {model.fingerprint}; "
        f"the score ({measures}; less is better) is of {config.samples} samples, and of "
        f"{config.validation} others for the finalists. Use them by "
        f'`fewstep.use(pipe, "{FAMILY}")`.',
        ["NFE", "score", "of other samples", "origin", "evaluated", "processor time"],
        rows,
        config.model_dump(mode="json", exclude_defaults=True),
        model.device,
    )


def provided(config: SearchConfig, model: Model, nfe: int, found: Found) -> Tableau:
    """The table with where it comes from."""
    return found.table.renamed(
        found.table.name,
        searched={
            "model": model.fingerprint,
            "schedule": found.entry.proposal.schedule.to_dict(),
            "origin": found.entry.proposal.origin,
            "score": found.entry.verdict.score,
            "validated": found.validated.verdict.score,
            "numbers": dict(found.validated.verdict.numbers),
            "evaluations": len(found.entries),
            "seconds": found.seconds,
            "settings": config.model_dump(mode="json", exclude_defaults=True, exclude={"nfe"}),
        },
    )
