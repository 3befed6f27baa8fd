"""Which of two schedules is better, guessed from what was found of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import get_args

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from ...schedules.base import Float
from ..repair import Correction, correction_of
from ..schedule import REMEDIES, SolverSchedule, Step, Update
from ..space import ORDERS, Space

# Outputs back from the newest that are told apart.
REACH = 6
# Numbers that a time is embedded in: sines and cosines of rising frequency.
WAVES = 8
WIDTH = 64
# How much better the better one of a pair is to score.
MARGIN = 0.1
MOST_WEIGHT = 5.0
# Rankers, each without another part of what is known.
FOLDS = 4
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)


def tokens(schedule: SolverSchedule, space: Space) -> Float:
    """One row for each row of the table, [nfe + 1, F], zeros first where one is lacking.

    A row holds the times that it leads from and to, as shares of the way in sines and cosines; the
    decisions of its step; and the weights of the table, newest first, over alpha. Two schedules of
    the same table differ in the decisions alone.
    """
    table = space.table(schedule)
    owners = [step for step in schedule.steps for _ in range(1 + step.again)]
    shares = space.ruler.shares(np.minimum(table.grid.time, space.law.t_max))
    # On some ways clean data is infinitely far.
    shares[np.isposinf(shares)] = 1.0
    rows = []
    for n, step in enumerate(owners):
        newest = table.weights[n, n::-1][:REACH]
        row = newest / table.grid.alpha[n + 1]
        rows.append(
            np.concatenate(
                [
                    *(waves(each) for each in shares[n : n + 2]),
                    decisions(step),
                    [float(schedule.free_start)],
                    np.clip(np.pad(row, (0, REACH - len(row))), -MOST_WEIGHT, MOST_WEIGHT),
                ]
            )
        )
    padding = np.zeros((space.nfe + 1 - len(rows), len(rows[0])))
    return np.concatenate([padding, np.stack(rows)])


def waves(share: float) -> Float:
    """A share of the way as sines and cosines."""
    angles = np.pi * share * 2.0 ** np.arange(WAVES)
    return np.concatenate([np.sin(angles), np.cos(angles)])


def decisions(step: Step) -> Float:
    """The decisions of a step as numbers."""
    kinds = [correction_of(step) == each for each in CORRECTIONS]
    return np.concatenate([[float(step.prediction == "eps")], kinds, rule(step.predictor)])


def rule(update: Update) -> Float:
    """The decisions of an update as numbers."""
    named = [update.relaxation == each for each in REMEDIES]
    linear = 0.0 if any(named) else float(update.relaxation)
    orders = [update.order == k + 1 for k in range(len(ORDERS))]
    starts = [update.start == k for k in range(REACH)]
    used = np.zeros((len(ORDERS) - 1, REACH))
    for k, points in enumerate(update.estimates):
        used[k, [each for each in points if each < REACH]] = 1
    return np.concatenate([orders, starts, used.ravel(), named, [linear]])


class Ranker(nn.Module):
    """Rows, each through two layers, then a recurrent layer, then a score; the less the better."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(features, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU()
        )
        self.read = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.score = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))

    def forward(self, rows: Tensor) -> Tensor:
        """Scores [B] of rows [B, N, F]."""
        states, _ = self.read(self.embed(rows))
        return self.score(states[:, -1])[:, 0]


def hinge(scores: Tensor, places: Tensor) -> Tensor:
    """Mean over all pairs of different `places` of max(0, margin - (s_worse - s_better))."""
    gap = scores[:, None] - scores
    worse = places[:, None] > places
    return (MARGIN - gap[worse]).clamp(min=0).mean()


@dataclass(frozen=True, eq=False)
class Predictor:
    """Rankers that each learned from all but a part of what is known, and how well they do.

    `tau` is Kendall's rank correlation with the truth, each schedule scored by the ranker that has
    not seen it; NaN where there was too little to tell.
    """

    rankers: tuple[tuple[Ranker, float, float], ...]
    mean: Tensor
    scale: Tensor
    tau: float

    @torch.no_grad()
    def __call__(self, rows: Float) -> Float:
        """Scores [B] of tokens [B, N, F], the mean of all rankers in units of their spread."""
        inputs = (torch.as_tensor(rows, dtype=torch.float32) - self.mean) / self.scale
        found = [(net(inputs) - mean) / spread for net, mean, spread in self.rankers]
        return np.asarray(torch.stack(found).mean(0).double().numpy())


def learn(
    rows: Float, scores: Sequence[float], seed: int, *, folds: int = FOLDS, epochs: int = 120
) -> Predictor:
    """Train a predictor on tokens [B, N, F] and their true scores; reproducible by `seed`.

    Each of `folds` rankers leaves out another part. Infinite scores are the worst, all alike.
    Raises ValueError for fewer than two schedules a fold.
    """
    if len(rows) < 2 * folds:
        raise ValueError(f"{len(rows)} schedules are too few for {folds} folds: 2 each at least")
    inputs = torch.as_tensor(rows, dtype=torch.float32)
    mean = inputs.mean((0, 1))
    # What has been the same for all says nothing, and is no reason for large numbers later.
    spread = inputs.std((0, 1))
    scale = torch.where(spread > 1e-3, spread, 1.0)
    inputs = (inputs - mean) / scale
    truth = torch.as_tensor(np.asarray(scores, dtype=np.float64))
    fold = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)) % folds
    unseen = torch.zeros(len(rows), dtype=torch.float64)
    rankers = []
    for k in range(folds):
        ranker = trained(inputs[fold != k], truth[fold != k], seed * folds + k, epochs)
        with torch.no_grad():
            found = ranker(inputs)
        level, width = float(found.mean()), max(float(found.std()), 1e-6)
        unseen[fold == k] = ((found - level) / width)[fold == k].double()
        rankers.append((ranker, level, width))
    tau = kendalltau(unseen, truth).statistic if len({*truth.tolist()}) > 1 else nan
    return Predictor(tuple(rankers), mean, scale, float(tau))


def trained(inputs: Tensor, truth: Tensor, seed: int, epochs: int) -> Ranker:
    """A ranker of these inputs, by AdamW on all pairs at once."""
    # The weights are drawn from a stream of their own.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ranker = Ranker(inputs.shape[-1])
    places = truth.argsort().argsort().double()
    # Infinite ones share a place: none is better than another.
    places[truth.isinf()] = float(len(truth))
    optimizer = torch.optim.AdamW(ranker.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        optimizer.zero_grad()
        hinge(ranker(inputs), places).backward()
        optimizer.step()
        schedule.step()
    return ranker
