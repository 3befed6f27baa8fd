"""What is known of schedules, in one SQLite file that many processes share."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from ..schedule import SolverSchedule

SCHEMA = """
create table if not exists evaluations (
    judge text not null,
    key text not null,
    nfe integer not null,
    schedule text not null,
    origin text not null,
    stage integer not null,
    rank integer not null,
    predicted real,
    tau real,
    owner text not null,
    claimed real not null,
    place integer,
    score real,
    numbers text,
    seconds real,
    primary key (judge, key)
)
"""
INSERT = (
    "insert into evaluations (judge, key, nfe, schedule, origin, stage, rank, predicted, tau, "
    "owner, claimed, place, score, numbers, seconds) "
    "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
)
# Seconds that another process may hold the file, and that one elsewhere may be at an evaluation.
BUSY, LEASE = 120.0, 3600.0


@dataclass(frozen=True)
class Proposal:
    """A schedule that is to be evaluated, and why.

    `key` tells it from others; `origin` says where it came from, such as "drawn", `stage` and
    `rank` which round of which process of a search, `predicted` what was expected of it, and `tau`
    how well the predictor ranked then what it had not seen.
    """

    key: str
    schedule: SolverSchedule
    origin: str
    stage: int = 0
    rank: int = 0
    predicted: float | None = None
    tau: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A score, where less is better, the `numbers` that it is made of, and what it cost."""

    score: float
    numbers: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Entry:
    """A schedule and what was found of it."""

    proposal: Proposal
    verdict: Verdict


@dataclass(frozen=True)
class Archive:
    """All evaluations of a search, of one or several judges and NFE; safe to share and to kill.

    A schedule is first claimed, by one process only, and then finished. What a process claimed and
    did not finish is free again when that process is gone: at once where it ran on this machine,
    after an hour elsewhere. A batch is written as a whole or not at all.
    """

    path: Path

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """A connection within one transaction that no other process writes in.

        Raises OSError where the file is none, or cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Closing it takes back what was not committed.
            with closing(sqlite3.connect(self.path, BUSY, isolation_level=None)) as connection:
                connection.execute("begin immediate")
                connection.execute(SCHEMA)
                yield connection
                connection.execute("commit")
        except sqlite3.Error as error:
            raise OSError(f"archive {self.path}: {error}") from error

    def claim(
        self, judge: str, nfe: int, proposals: Sequence[Proposal], most: int | None = None
    ) -> list[Proposal]:
        """Those that nobody has evaluated or is at; they are this process's to finish.

        With `most`, no more than leaves that many of this judge and NFE in all.
        """
        with self.opened() as connection:
            self.free(connection)
            (there,) = connection.execute(
                "select count(*) from evaluations where judge = ? and nfe = ?", (judge, nfe)
            ).fetchone()
            taken: list[Proposal] = []
            for each in proposals:
                if most is not None and there + len(taken) >= most:
                    break
                cursor = connection.execute(
                    INSERT + "on conflict (judge, key) do nothing",
                    (*self.claimed(judge, nfe, each), None, None, None, None),
                )
                if cursor.rowcount:
                    taken.append(each)
        return taken

    def finish(self, judge: str, nfe: int, found: Sequence[Entry]) -> None:
        """Write verdicts, also on what was given to others as if this process were gone.

        Of two verdicts on one schedule the first stays.
        """
        with self.opened() as connection:
            (last,) = connection.execute("select max(place) from evaluations").fetchone()
            for place, each in enumerate(found, 1 + (last or 0)):
                said = each.verdict
                connection.execute(
                    INSERT + "on conflict (judge, key) do update set place = excluded.place, "
                    "score = excluded.score, numbers = excluded.numbers, "
                    "seconds = excluded.seconds where place is null",
                    (
                        *self.claimed(judge, nfe, each.proposal),
                        *(place, said.score, json.dumps(dict(said.numbers)), said.seconds),
                    ),
                )

    def claimed(self, judge: str, nfe: int, each: Proposal) -> tuple[Any, ...]:
        """What the archive says of a schedule that this process is at."""
        said = json.dumps(each.schedule.to_dict())
        why = (each.origin, each.stage, each.rank, each.predicted, each.tau)
        return judge, each.key, nfe, said, *why, self.owner, time.time()

    def abandon(self) -> None:
        """Give back what this process has claimed and not finished."""
        with self.opened() as connection:
            connection.execute(
                "delete from evaluations where place is null and owner = ?", (self.owner,)
            )

    def entries(self, judge: str, nfe: int) -> list[Entry]:
        """All that is finished, in the order in which it was."""
        with self.opened() as connection:
            rows = connection.execute(
                "select key, schedule, origin, stage, rank, predicted, tau, score, numbers, "
                "seconds from evaluations where judge = ? and nfe = ? and place is not null "
                "order by place",
                (judge, nfe),
            ).fetchall()
        return [
            Entry(
                Proposal(key, SolverSchedule.from_dict(json.loads(said)), *rest),
                Verdict(score, json.loads(numbers), seconds),
            )
            for key, said, *rest, score, numbers, seconds in rows
        ]

    def pending(self, judge: str, nfe: int) -> dict[str, int]:
        """The keys of what living processes have claimed and not finished, with their stages."""
        with self.opened() as connection:
            self.free(connection)
            rows = connection.execute(
                "select key, stage from evaluations where judge = ? and nfe = ? and place is null",
                (judge, nfe),
            ).fetchall()
        return dict(rows)

    def free(self, connection: sqlite3.Connection) -> None:
        """Give back the claims of processes that are gone."""
        held = connection.execute(
            "select owner, min(claimed) from evaluations where place is null group by owner"
        ).fetchall()
        for owner, since in held:
            if not alive(owner, time.time() - since):
                connection.execute(
                    "delete from evaluations where place is null and owner = ?", (owner,)
                )

    @cached_property
    def owner(self) -> str:
        """What tells the process from all others, also from a later one of the same number."""
        return f"{platform.node()}/{os.getpid()}/{psutil.Process().create_time()}"


def alive(owner: str, age: float) -> bool:
    """Whether a process that claimed something `age` seconds ago can still be at it."""
    node, number, began = owner.rsplit("/", 2)
    if node != platform.node():
        return age < LEASE
    try:
        return psutil.Process(int(number)).create_time() == float(began)
    except psutil.NoSuchProcess:
        return False
