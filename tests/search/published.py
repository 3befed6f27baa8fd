"""The searched schedules of USF that numbers alone can say (Liu et al. 2023, released code).

27 others use statistics of the network per pixel in some step. Letters are the predictions, a
number a Taylor order with full differences and its linear relaxation, `+` a corrector that reuses
the output. All start free. LOW has a first derivative by the newest two outputs, in order 3.
"""

from __future__ import annotations

from fewstep.search.presets import correcting
from fewstep.search.schedule import SolverSchedule, Step, Update

LOW = ((1,), (1, 2))


def read(times, steps):
    made = []
    for prediction, shape, relaxation, *corrector in steps:
        estimates = (tuple(range(1, shape)),) * (shape - 1) if isinstance(shape, int) else shape
        update = Update(0, estimates, relaxation)
        made.append(Step(prediction, update, correcting(update) if corrector else None))
    return SolverSchedule(tuple(times), tuple(made), True)


D, N = "x0", "eps"
SCHEDULES = {
    "imagenet256-3": read(
        (1, 0.8176361918449402, 0.6000561714172363, 0.4087893068790436, 0.001),
        ((N, 1, 0), (D, 2, 1 / 6, "+"), (D, 3, 0), (D, 1, 0)),
    ),
    "imagenet256-4": read(
        (1, 0.8354654312133789, 0.667, 0.5005, 0.31269970536231995, 0.0010426189983263612),
        ((D, 1, 0, "+"), (D, 2, 1 / 3, "+"), (D, 2, 0, "+"), (D, 2, 1 / 3, "+"), (D, 1, 0)),
    ),
    "lsun-4": read(
        (
            1,
            0.7083439230918884,
            0.5067110061645508,
            0.43684685230255127,
            0.1885509341955185,
            0.00166,
        ),
        ((D, 1, 0), (D, 2, 0, "+"), (N, 3, 0, "+"), (N, 2, -0.2522519729638991), (N, 2, 0)),
    ),
    "lsun-6": read(
        (
            *(1, 0.857285737991333, 0.638624906539917, 0.5718570947647095, 0.49252116680145264),
            *(0.2864285707473755, 0.1437142938375473, 0.0013019400648772717),
        ),
        (
            *((N, 1, 0), (D, 2, -1 / 6, "+"), (D, 3, 0), (N, 2, 1 / 6, "+")),
            *((D, LOW, 0.047021186762502144), (N, 2, -1 / 6), (N, 2, 0)),
        ),
    ),
    "lsun-9": read(
        (
            *(1, 0.9744718670845032, 0.7283180356025696, 0.6259281039237976, 0.5367009043693542),
            *(0.48765817284584045, 0.47120988368988037, 0.3493664860725403, 0.14253051578998566),
            *(0.06817089766263962, 0.001026917016133666),
        ),
        (
            *((N, 1, 0, "+"), (N, 1, 0), (D, 1, 0), (D, 3, 0, "+"), (D, 2, 0, "+")),
            *((N, 2, -1 / 6), (D, 3, 0, "+"), (D, 2, -0.1918465095081265, "+"), (N, 2, 0)),
            (N, 1, 0),
        ),
    ),
}
