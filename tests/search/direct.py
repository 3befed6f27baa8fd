"""Solver schedules run step by step as they are described, without a table."""

from __future__ import annotations

from math import factorial

import numpy as np


def output(x, alpha, sigma):
    """A prediction of x0 that is smooth, and linear in nothing."""
    return 0.8 * np.tanh(x / np.hypot(alpha, sigma) + alpha) + 0.1 * np.cos(3 * x)


class Direct:
    """One run: states, and outputs as (x0, eps), of which the newest are last."""

    def __init__(self, schedule, law, predict=output):
        self.schedule, self.law, self.predict = schedule, law, predict
        self.calls = 0

    def level(self, k):
        time = self.schedule.times[k]
        return tuple(float(f(time)) for f in (self.law.alpha, self.law.sigma, self.law.lam))

    def ask(self, x, k):
        alpha, sigma, _ = self.level(k)
        self.calls += 1
        return self.pair(x, self.predict(x, alpha, sigma), k)

    def pair(self, x, x0, k):
        alpha, sigma, _ = self.level(k)
        return x0, (x - alpha * x0) / sigma

    def run(self, x, first=None):
        """The last state; `first` is the first output if that is free."""
        self.states = [x]
        self.outputs = [self.ask(x, 0) if first is None else self.pair(x, first, 0)]
        for k, step in enumerate(self.schedule.steps):
            self.states.append(self.update(step.predictor, step.prediction, k, k + 1))
            if k + 1 == len(self.schedule.steps):
                break
            self.outputs.append(self.ask(self.states[-1], k + 1))
            if step.corrector is not None:
                self.states[-1] = self.update(step.corrector, step.prediction, k + 1, k + 1)
            if step.again:
                self.outputs[-1] = self.ask(self.states[-1], k + 1)
        return self.states[-1]

    def update(self, rule, prediction, newest, target):
        """The integral of the Taylor polynomial, by quadrature."""
        kind = ("x0", "eps").index(prediction)
        s = newest - rule.start
        x, m = self.states[s], self.outputs[s][kind]
        alpha, sigma, lam = self.level(s)
        alpha_t, sigma_t, lam_t = self.level(target)
        if not rule.estimates:
            # Held constant, the integral is closed, and regular into clean data.
            if kind == 0 or alpha == 0:
                x0 = self.outputs[s][0]
                return sigma_t / sigma * x + (alpha_t - alpha * sigma_t / sigma) * x0
            return alpha_t / alpha * (x - sigma * m) + sigma_t * m
        h = lam_t - lam
        z = h if prediction == "eps" else -h
        derivatives = [m]
        for k, points in enumerate(rule.estimates, 1):
            used = [s, *(newest - each for each in points)]
            where = np.array([self.level(each)[2] - lam for each in used])
            values = np.stack([self.outputs[each][kind].ravel() for each in used])
            found = np.polyfit(where / h, values, len(points))[-1 - k]
            derivatives.append(factorial(k) * found.reshape(x.shape))
        derivatives[1] = derivatives[1] * relaxation(rule.relaxation, z, h)
        at, weight = np.polynomial.legendre.leggauss(60)
        share, weight = (at + 1) / 2, weight / 2
        total = 0
        for u, w in zip(share, weight, strict=True):
            value = sum(d * u**k / factorial(k) for k, d in enumerate(derivatives))
            # e^lam relative to the start, or e^-lam.
            total = total + w * h * np.exp(-z * u) * value
        if kind == 0:
            return sigma_t / sigma * x + sigma_t * np.exp(lam) * total
        return alpha_t / alpha * x - alpha_t * np.exp(-lam) * total


def relaxation(kind, z, h):
    """The factor of the first derivative, as USF writes it."""
    growth = np.expm1(z)
    match kind:
        case "bh1":
            return 0.5 * z * z / (growth - z)
        case "bh2":
            return 0.5 * z * growth / (growth - z)
        case "exp":
            return 1 + 0.5 * growth
        case "-exp":
            return 1 - 0.5 * growth
    return 1 + kind * h
